//! What all hands share: the first-byte demultiplexer and the limits on strangers (pure), batched UDP sockets, and the clock's reader.

pub mod connections;
pub mod demux;
pub mod gate;
pub mod interfaces;
pub mod time;
pub mod udp;
