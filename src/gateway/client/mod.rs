//! Client library of the gateway: clients and servers that dial each other through it.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use ginnel::gateway::client::{ClientBuilder, ServerBuilder, Key};
//!
//! let server = ServerBuilder::hmac("gw.example", 7, Key::new("the servers' key")?).connect().await?;
//! let client = ClientBuilder::new("gw.example").connect().await?;
//! let mut there = client.dial(7).await?;
//! let mut here = server.accept().await?;
//! there.send("Hello".into()).await?;
//! assert_eq!(here.receive().await?.as_deref(), Some(&b"Hello"[..]));
//! # Ok(())
//! # }
//! ```
//!
//! | module | content | |
//! | --- | --- | --- |
//! | `machine` | one endpoint's side of the protocol | pure |
//! | [`Codec`] | the format of messages | pure |
//! | `address` | parses addresses, opens connections, authenticates | tokio |
//! | `transport` | byte streams and WebSockets, read and written in batches | tokio |
//! | `gateway_connection` | one connection to the gateway: the machine behind a lock, and wakers | tokio |
//! | [`Endpoint`] | dials, accepts, reconnects | tokio |
//! | [`VirtualConnection`], [`VirtualStream`] | send and receive messages; read and write bytes | tokio |

mod address;
mod builder;
mod codec;
mod endpoint;
mod error;
mod gateway_connection;
mod machine;
mod settings;
#[cfg(test)]
mod tests;
mod transport;
mod virtual_connection;
mod virtual_stream;

pub use super::handshake::{Key, ShortKey};
pub use super::token::{GatewayToken, InvalidToken};
pub use super::wire::WireError;
pub use crate::net::client_tls::Tls;
pub use crate::net::proxy_settings::{ProxySettings, ProxySettingsError};
pub use builder::{ClientBuilder, ServerBuilder};
pub use codec::{Codec, Json, Raw};
pub use endpoint::{Changes, Endpoint, Status};
pub use error::{
    AcceptError, ConnectError, ConnectionError, DialError, ProtocolError, ReceiveError, SendError,
};
pub use settings::Settings;
pub use virtual_connection::{Receiver, Sender, VirtualConnection};
pub use virtual_stream::VirtualStream;
