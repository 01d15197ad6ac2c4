//! What all hands share: the first-byte demultiplexer, the PROXY header, the DTLS cookie and the limits on strangers (pure), batched
//! UDP sockets, TLS and its certificate, and the clock's reader.

#[forbid(unsafe_code)]
pub mod addresses;
#[forbid(unsafe_code)]
pub(crate) mod certificate;
#[forbid(unsafe_code)]
pub(crate) mod connect;
#[forbid(unsafe_code)]
pub mod connections;
#[forbid(unsafe_code)]
pub mod cookie;
#[forbid(unsafe_code)]
pub mod demux;
#[forbid(unsafe_code)]
pub mod forwarded;
#[forbid(unsafe_code)]
pub mod gate;
pub(crate) mod heap;
#[forbid(unsafe_code)]
pub mod interfaces;
#[forbid(unsafe_code)]
pub(crate) mod limited;
#[forbid(unsafe_code)]
pub(crate) mod prefixed;
#[forbid(unsafe_code)]
pub mod proxy;
#[forbid(unsafe_code)]
pub(crate) mod roaming;
#[forbid(unsafe_code)]
pub mod time;
#[forbid(unsafe_code)]
pub(crate) mod tls;
pub mod udp;
#[forbid(unsafe_code)]
pub(crate) mod upgrade;
#[forbid(unsafe_code)]
pub(crate) mod websocket;
