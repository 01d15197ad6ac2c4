//! The address of a node: a hash of its signing key (S3-A1).

use data_encoding::{BASE32_NOPAD, Encoding, Specification};
use ring::digest::{SHA256, digest};
use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

/// What the text form begins with.
const PREFIX: &str = "mesh1";
const CHECKSUM_LEN: usize = 5;
const CHECKSUM_CONTEXT: &[u8] = b"ginnel mesh address v1\0";

/// Base32 in lower case; upper case is read too.
static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut specification = Specification::new();
    specification.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    specification.translate.from.push_str("ABCDEFGHIJKLMNOPQRSTUVWXYZ");
    specification.translate.to.push_str("abcdefghijklmnopqrstuvwxyz");
    specification.encoding().unwrap_or(BASE32_NOPAD)
});

/// The address of a node: the first 20 bytes of the SHA-256 of its signing key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct NodeId([u8; Self::LEN]);

/// A text that is no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NodeIdError {
    #[error("an address begins with mesh1 and has 40 letters and digits after it")]
    Format,
    #[error("the address has a typing error: its checksum is wrong")]
    Checksum,
}

impl NodeId {
    pub(super) const LEN: usize = 20;

    pub(super) const fn new(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    pub(super) fn of(signing_key: &[u8; 32]) -> Self {
        let mut bytes = [0; Self::LEN];
        bytes.copy_from_slice(&digest(&SHA256, signing_key).as_ref()[..Self::LEN]);
        Self(bytes)
    }

    pub(super) const fn bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// Returns the first 8 bytes, which digests and paths use.
    pub(super) fn prefix(self) -> u64 {
        self.0.first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
    }

    /// Returns the XOR distance, the metric of routing.
    pub(super) fn distance(self, other: Self) -> [u8; Self::LEN] {
        std::array::from_fn(|at| self.0[at] ^ other.0[at])
    }

    /// Returns how many leading bits both have in common.
    pub(super) fn shared_bits(self, other: Self) -> u32 {
        let mut shared = 0;
        for byte in self.distance(other) {
            shared += byte.leading_zeros();
            if byte != 0 {
                break;
            }
        }
        shared
    }

    fn checksum(self) -> [u8; CHECKSUM_LEN] {
        let mut sum = [0; CHECKSUM_LEN];
        sum.copy_from_slice(&digest(&SHA256, &[CHECKSUM_CONTEXT, &self.0].concat()).as_ref()[..CHECKSUM_LEN]);
        sum
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", BASE32.encode(&[&self.0[..], &self.checksum()].concat()))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}…", BASE32.encode(&self.0[..5]))
    }
}

impl FromStr for NodeId {
    type Err = NodeIdError;

    fn from_str(text: &str) -> Result<Self, NodeIdError> {
        let text = text.trim().to_ascii_lowercase();
        let encoded = text.strip_prefix(PREFIX).ok_or(NodeIdError::Format)?;
        let bytes = BASE32.decode(encoded.as_bytes()).map_err(|_| NodeIdError::Format)?;
        let (id, sum) = bytes.split_first_chunk().ok_or(NodeIdError::Format)?;
        let id = Self(*id);
        match sum.len() == CHECKSUM_LEN {
            true if sum == id.checksum() => Ok(id),
            true => Err(NodeIdError::Checksum),
            false => Err(NodeIdError::Format),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_it_is_written_and_every_typing_error_is_found() {
        let id = NodeId::of(&[7; 32]);
        let text = id.to_string();
        assert_eq!(text.len(), PREFIX.len() + 40);
        assert_eq!(text.parse(), Ok(id));
        assert_eq!(format!(" {}\n", text.to_uppercase()).parse(), Ok(id));
        for at in PREFIX.len()..text.len() {
            let mut wrong = text.clone().into_bytes();
            wrong[at] = if wrong[at] == b'a' { b'b' } else { b'a' };
            let wrong = String::from_utf8(wrong).unwrap();
            assert_eq!(wrong.parse::<NodeId>(), Err(NodeIdError::Checksum), "{wrong}");
        }
        for wrong in ["", "mesh1", &text[1..], &text[..44], &format!("{text}aa"), "mesh1ä"] {
            assert_eq!(wrong.parse::<NodeId>(), Err(NodeIdError::Format), "{wrong}");
        }
    }

    #[test]
    fn addresses_share_their_leading_bits() {
        let id = |first: u8, last: u8| {
            let mut bytes = [0; 20];
            (bytes[0], bytes[19]) = (first, last);
            NodeId::new(bytes)
        };
        assert_eq!(id(0, 0).shared_bits(id(0x80, 0)), 0);
        assert_eq!(id(0, 0).shared_bits(id(0x01, 9)), 7);
        assert_eq!(id(0, 0).shared_bits(id(0, 1)), 159);
        assert_eq!(id(5, 5).shared_bits(id(5, 5)), 160);
    }
}
