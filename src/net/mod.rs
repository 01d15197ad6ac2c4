//! What all hands share: the first-byte demultiplexer, the PROXY header, the DTLS cookie and the limits on strangers (pure), batched
//! UDP sockets, TLS and its certificate, and the clock's reader.

#[cfg(any(feature = "server", feature = "gateway-client"))]
pub mod addresses;
#[cfg(feature = "server")]
pub(crate) mod certificate;
#[cfg(any(feature = "server", feature = "gateway-client"))]
pub(crate) mod connect;
#[cfg(feature = "server")]
pub mod connections;
#[cfg(feature = "server")]
pub mod cookie;
#[cfg(feature = "server")]
pub mod demux;
#[cfg(feature = "server")]
pub mod forwarded;
#[cfg(feature = "server")]
pub(crate) mod heap;
#[cfg(any(feature = "server", feature = "gateway-client"))]
pub mod interfaces;
#[cfg(feature = "server")]
pub(crate) mod limited;
#[cfg(feature = "server")]
pub(crate) mod prefixed;
#[cfg(feature = "server")]
pub mod proxy;
#[cfg(any(feature = "server", feature = "gateway-client"))]
pub(crate) mod roaming;
pub mod time;
#[cfg(feature = "server")]
pub(crate) mod tls;
#[cfg(feature = "server")]
pub mod udp;
#[cfg(feature = "server")]
pub mod unauthenticated;
#[cfg(feature = "server")]
pub(crate) mod websocket;
