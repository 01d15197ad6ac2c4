//! The wire of the WebSocket `/messages`, which server and client share: one JSON object per text frame. Pure.
//!
//! | file | content |
//! | --- | --- |
//! | `requests.rs` | requests of a client |
//! | `answers.rs` | answers and events of the server |
//! | `signing.rs` | what the keys of accounts and devices sign |
//!
//! A request has an `id`, which its answer repeats, and a `type`. Events of the server have no `id`. Keys, signatures and encrypted bodies are
//! unpadded base64url. Parties are in the text form `user:NAME` or `dev:ID`; times are Unix time in milliseconds. Unknown fields are ignored.

mod answers;
mod requests;
pub(crate) mod signing;
#[cfg(test)]
mod wire_tests;

pub use answers::ErrorCode;
pub(crate) use answers::*;
use data_encoding::BASE64URL_NOPAD;
pub(crate) use requests::*;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The version in [`Event::Hello`].
pub(crate) const VERSION: u32 = 1;
/// Longest frame of a client.
pub(crate) const MAX_FRAME: usize = 256 * 1024;

/// Bytes of a fixed length; unpadded base64url in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FixedBytes<const N: usize>(pub(crate) [u8; N]);

/// An Ed25519 or X25519 key, or a challenge.
pub(crate) type Key = FixedBytes<32>;
/// An Ed25519 signature.
pub(crate) type Signature = FixedBytes<64>;

impl<const N: usize> Serialize for FixedBytes<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64URL_NOPAD.encode(&self.0))
    }
}

impl<'de, const N: usize> Deserialize<'de> for FixedBytes<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Body::deserialize(deserializer)?;
        match bytes.0.try_into() {
            Ok(bytes) => Ok(Self(bytes)),
            Err(_) => Err(D::Error::custom(format_args!("not {N} bytes"))),
        }
    }
}

/// An encrypted body; unpadded base64url in JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Body(pub(crate) Vec<u8>);

impl Serialize for Body {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64URL_NOPAD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64URL_NOPAD
            .decode(text.as_bytes())
            .map(Self)
            .map_err(|_| D::Error::custom("not base64url without padding"))
    }
}

/// Writes what always can be written.
fn to_json(value: &impl Serialize) -> String {
    // Only maps with keys that are no texts fail, and there are none.
    serde_json::to_string(value).unwrap_or_default()
}
