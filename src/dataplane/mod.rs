//! The I/O of the packet path: worker threads with their sockets, the send queue, DTLS and clients' TCP connections.

mod clients;
pub(crate) mod counters;
pub(crate) mod dtls;
mod forward_table;
pub(crate) mod framing;
pub(crate) mod inbox;
pub(crate) mod lookups;
mod moved_clients;
mod peer_streams;
mod ready_queue;
mod send_queue;
pub(crate) mod stream_limits;
pub(crate) mod stream_task;
mod stun_requests;
pub(crate) mod tcp_connections;
mod tcp_frames;
mod waker;
pub(crate) mod worker;
mod worker_channel;
mod worker_messages;
mod worker_outputs;
pub(crate) mod worker_pool;
