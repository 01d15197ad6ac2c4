//! The I/O of the packet path: worker threads with their sockets, the send queue, DTLS and clients' TCP connections.

mod binding_requests;
mod clients;
pub(crate) mod dtls;
mod forward_table;
pub(crate) mod frames;
pub(crate) mod inbox;
pub(crate) mod lookups;
mod moved_clients;
mod peer_connections;
mod send_queue;
pub(crate) mod stream_limits;
mod streams;
pub(crate) mod tcp_client;
pub(crate) mod tls_client;
mod waker;
pub(crate) mod worker;
mod worker_channel;
pub(crate) mod worker_pool;
