//! Binding: responds with the client's reflexive address ([RFC 8489 section 3](https://www.rfc-editor.org/rfc/rfc8489#section-3)),
//! and NAT behaviour discovery ([RFC 5780](https://www.rfc-editor.org/rfc/rfc5780)).
//!
//! Both are stateless and need no credentials, so a response is short and goes only to the IP address of the request. [`respond`]
//! serves one address and every transport; [`Discovery`] serves datagrams on a server's two ports and, if it has them, two addresses.

mod binding;
mod discovery;
pub(crate) mod shared_secret;

pub use binding::respond;
pub use discovery::{BindingResponse, Discovery, ServerAddress};
pub(crate) use shared_secret::{BindingCheck, SecretKeys, SharedSecrets};
