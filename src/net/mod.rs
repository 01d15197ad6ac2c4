//! What all hands share: the first-byte demultiplexer, the PROXY header and the DTLS cookie (pure), batched UDP sockets, TLS and
//! its certificate, and the clock's reader.

pub(crate) mod certificate;
pub mod cookie;
pub mod demux;
pub mod interfaces;
pub(crate) mod prefixed;
pub mod proxy;
pub mod time;
pub(crate) mod tls;
pub mod udp;
