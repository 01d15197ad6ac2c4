//! Networking that several services use: protocol detection, PROXY and forwarding headers, the DTLS cookie, the limits on
//! connections and on unauthenticated clients (pure); batched UDP sockets, TLS and its certificate; the dialer of all clients and its proxies;
//! the only reader of the clocks.

#[cfg(any(feature = "server", feature = "gateway-client"))]
pub(crate) mod addresses;
#[cfg(feature = "server")]
pub(crate) mod certificate;
#[cfg(feature = "gateway-client")]
pub(crate) mod client_tls;
#[cfg(any(feature = "server", feature = "gateway-client"))]
pub(crate) mod connect;
#[cfg(feature = "server")]
pub(crate) mod connection_limiter;
#[cfg(feature = "agent")]
pub(crate) mod default_gateway;
#[cfg(feature = "server")]
pub(crate) mod demux;
#[cfg(feature = "gateway-client")]
pub(crate) mod dialer;
#[cfg(feature = "server")]
pub(crate) mod dtls_cookie;
#[cfg(feature = "server")]
pub(crate) mod forwarded;
#[cfg(feature = "server")]
pub(crate) mod heap;
#[cfg(any(feature = "server", feature = "gateway-client"))]
pub(crate) mod interfaces;
#[cfg(any(feature = "server", feature = "gateway-client"))]
pub(crate) mod network_changes;
#[cfg(feature = "server")]
pub(crate) mod peeked_stream;
#[cfg(feature = "server")]
pub mod proxy;
#[cfg(feature = "gateway-client")]
mod proxy_handshake;
#[cfg(feature = "gateway-client")]
pub(crate) mod proxy_settings;
pub mod time;
#[cfg(feature = "server")]
pub(crate) mod tls;
#[cfg(feature = "server")]
pub(crate) mod udp;
#[cfg(feature = "server")]
pub(crate) mod unauthenticated;
#[cfg(feature = "server")]
pub(crate) mod websocket;
