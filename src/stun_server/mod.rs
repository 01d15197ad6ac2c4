//! Binding: tells a client the address it is seen from ([RFC 8489 section 3](https://www.rfc-editor.org/rfc/rfc8489#section-3)),
//! and how the NATs before it behave ([RFC 5780](https://www.rfc-editor.org/rfc/rfc5780)).
//!
//! Stateless and open to everybody, so an answer holds nothing but what was asked for and never leaves for another IP address
//! than the one that asked. [`answer`] serves one address and every kind of connection; [`Discovery`] serves datagrams on a
//! server's two ports and, where it has them, two addresses.

mod binding;
mod discovery;
pub(crate) mod shared_secret;

pub use binding::answer;
pub use discovery::{BindingResponse, Discovery, ServerAddress};
pub use shared_secret::{BindingCheck, SecretKeys, SharedSecrets};
