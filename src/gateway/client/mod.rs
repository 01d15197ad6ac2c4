//! The gateway's endpoints as a library: clients and servers that dial each other through it.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use ginnel::gateway::client::{DialClient, DialServer, Key};
//!
//! let server = DialServer::hmac("gw.example", 7, Key::new("the servers' key")?).connect().await?;
//! let client = DialClient::new("gw.example").connect().await?;
//! let mut there = client.dial(7).await?;
//! let mut here = server.accept().await?;
//! there.send("Hello".into()).await?;
//! assert_eq!(here.receive().await?.as_deref(), Some(&b"Hello"[..]));
//! # Ok(())
//! # }
//! ```
//!
//! | file | holds | |
//! | --- | --- | --- |
//! | `machine` | one endpoint's half of the wire | pure |
//! | [`Codec`] | what messages mean | pure |
//! | `line` | the machine behind a lock, and who waits for it | |
//! | `carrier` | streams and WebSockets, read and written in batches | tokio |
//! | `door`, [`Tls`] | the way to the gateway and what is said at its door | tokio |
//! | [`Endpoint`] | dial, accept, reconnect | tokio |
//! | [`VirtualConnection`], [`VirtualStream`] | send, receive; read, write | tokio |

mod carrier;
mod codec;
mod connection;
mod dial;
mod door;
mod endpoint;
mod error;
mod line;
mod machine;
mod settings;
mod stream;
#[cfg(test)]
mod tests;
mod tls;

pub use super::handshake::{Key, ShortKey};
pub use super::token::{GatewayToken, InvalidToken};
pub use codec::{Codec, Json, Raw};
pub use connection::{Receiver, Sender, VirtualConnection};
pub use dial::{DialClient, DialServer};
pub use endpoint::{Changes, Endpoint, Status};
pub use error::{AcceptError, ConnectError, DialError, Fault, Loss, ReceiveError, SendError};
pub use settings::Settings;
pub use stream::VirtualStream;
pub use tls::Tls;
