//! What all hands share: the first-byte demultiplexer, the PROXY header, the DTLS cookie and the limits on strangers (pure), batched
//! UDP sockets, TLS and its certificate, and the clock's reader.

pub(crate) mod certificate;
pub mod connections;
pub mod cookie;
pub mod demux;
pub mod gate;
pub mod interfaces;
pub(crate) mod prefixed;
pub mod proxy;
pub mod time;
pub(crate) mod tls;
pub mod udp;
