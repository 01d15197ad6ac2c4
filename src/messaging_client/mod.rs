//! A client of messaging: end-to-end encrypted messages to users who may be offline, over the WebSocket `/messages`.
//!
//! An [`Account`] is a user at one server; its folder has the keys of this device. A [`Client`] is a connection of the device that is opened
//! again whenever it is lost.
//!
//! - A message is sent when [`Client::send`] returns: the server has stored it durably. It is encrypted for each device of the recipient and
//!   signed by this one. A recipient without keys, who uses the TCP protocol, gets plaintext, and [`Sent::protection`] says so.
//! - A message that arrives stays on the server until [`Client::acknowledge`]; after a crash it arrives again. The client writes no text of a
//!   message to the disk.
//! - The identity key of a party is pinned when it is first seen ([`Event::Pinned`]). A server that replaces keys, denies them, or forges or
//!   repeats messages is refused, and the user is told ([`Event::Refused`], [`RequestError::Distrusted`]).
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use ginnel::messaging_client::{Account, Client, Event, Receive, ServerUrl};
//!
//! let folder = "alice".as_ref();
//! let account = match Account::open(folder)? {
//!     Some(account) => account,
//!     None => Account::register(folder, &"wss://im.example".parse()?, "alice").await?,
//! };
//! let mut client = Client::connect(&account, Receive::Everything).await?;
//! client.send(&"bob".parse()?, "hello").await?;
//! loop {
//!     if let Event::Message(message) = client.next_event().await? {
//!         println!("{}: {:?}", message.from, message.text);
//!         client.acknowledge(message.number).await?;
//!     }
//! }
//! # }
//! ```
//!
//! | module | content | |
//! | --- | --- | --- |
//! | `machine`, `sending`, `receiving` | the state machine | pure |
//! | `known_peers`, `replay_window` | which keys and messages are trusted | pure |
//! | `encryption`, `keys` | HPKE and signatures; keys, fingerprints, linking codes | pure |
//! | `state`, `party_name`, `event`, `error` | what is remembered; names; what the user is told | pure |
//! | `enrollment` | the registration of an account | pure |
//! | `account`, `storage` | the folder of an account | files |
//! | `server_url`, `client` | the connection | tokio |

mod account;
mod client;
#[cfg(test)]
mod copy_tests;
pub(crate) mod encryption;
mod enrollment;
mod error;
mod event;
mod keys;
mod known_peers;
mod machine;
#[cfg(test)]
mod machine_tests;
mod party_name;
mod receiving;
mod replay_window;
mod sending;
mod server_url;
mod state;
mod storage;
#[cfg(test)]
mod trust_tests;

pub use crate::net::proxy_settings::{ProxySettings, ProxySettingsError};
pub use account::{Account, RegistrationOptions};
pub use client::Client;
pub(crate) use client::{Contact, PartyDevices};
pub use error::{ClientError, ErrorCode, RequestError};
pub use event::{Event, Protection, ReceiptState, ReceivedMessage, Sent};
pub(crate) use keys::{DeviceCode, DeviceCodeError};
pub use keys::{Fingerprint, FingerprintError};
pub use known_peers::Distrust;
pub(crate) use machine::AccountChange;
pub use machine::Receive;
pub use party_name::{PartyName, PartyNameError};
pub use server_url::{ServerUrl, ServerUrlError};
