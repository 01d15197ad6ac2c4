//! What all hands share: the first-byte demultiplexer (pure), batched UDP sockets, and the clock's reader.

pub mod demux;
pub mod interfaces;
pub mod time;
pub mod udp;
