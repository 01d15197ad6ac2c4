//! Third-party tokens: the self-contained tokens of [RFC 7635](https://www.rfc-editor.org/rfc/rfc7635), which the authorization server
//! encrypts for the relay.

use crate::clock::Now;
use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use std::fmt;

/// Length of an AES-GCM nonce.
const NONCE_LEN: usize = 12;
/// Longest token that is decrypted; a real one has fewer than 100 bytes.
const MAX_TOKEN: usize = 512;
/// Seconds that the clocks of the two servers may differ ([RFC 7635 section 7](https://www.rfc-editor.org/rfc/rfc7635#section-7)).
const DELTA: u64 = 5;

/// A key shared with an authorization server.
pub struct TokenKey {
    kid: String,
    server_name: String,
    key: LessSafeKey,
}

/// The content of a valid token.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Grant {
    /// The key of the request's integrity attribute.
    pub(super) mac_key: Vec<u8>,
    /// When the token expires, in Unix seconds, with the allowed clock difference.
    pub(super) expires_unix: u64,
}

impl TokenKey {
    /// Creates a key from its id (the USERNAME of requests), the relay's name at the authorization server, and 16 bytes for AES-128-GCM
    /// or 32 for AES-256-GCM. `None` for another length.
    #[must_use]
    pub fn new(kid: &str, server_name: &str, key: &[u8]) -> Option<Self> {
        let algorithm = match key.len() {
            16 => &AES_128_GCM,
            32 => &AES_256_GCM,
            _ => return None,
        };
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key).ok()?);
        Some(Self { kid: kid.to_owned(), server_name: server_name.to_owned(), key })
    }

    pub(super) fn kid(&self) -> &str {
        &self.kid
    }

    pub(super) fn server_name(&self) -> &str {
        &self.server_name
    }

    /// Decrypts a token ([RFC 7635 section 6.2](https://www.rfc-editor.org/rfc/rfc7635#section-6.2)); every length is checked
    /// against the bytes that remain.
    pub(super) fn open(&self, now: Now, token: &[u8]) -> Option<Grant> {
        let (len, rest) = token.split_first_chunk::<2>().filter(|_| token.len() <= MAX_TOKEN)?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        if usize::from(u16::from_be_bytes(*len)) != NONCE_LEN {
            return None;
        }
        let mut block = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let block = self.key.open_in_place(nonce, Aad::from(self.server_name.as_bytes()), &mut block).ok()?;
        let (len, rest) = block.split_first_chunk::<2>()?;
        let (mac_key, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
        let (timestamp, lifetime) = rest.split_first_chunk::<8>()?;
        // 48 bits of seconds and 16 of a fraction.
        let made = u64::from_be_bytes(*timestamp) >> 16;
        let lifetime = u64::from(u32::from_be_bytes(lifetime.try_into().ok()?)) + DELTA;
        let is_current = lifetime > now.unix.abs_diff(made) && !mac_key.is_empty();
        is_current.then(|| Grant { mac_key: mac_key.to_vec(), expires_unix: made + lifetime })
    }

    /// Encrypts a token as an authorization server does.
    #[cfg(test)]
    pub(in crate::turn_server) fn seal(&self, mac_key: &[u8], made_unix: u64, lifetime: u32) -> Vec<u8> {
        let mut block = u16::try_from(mac_key.len()).unwrap().to_be_bytes().to_vec();
        block.extend_from_slice(mac_key);
        block.extend_from_slice(&(made_unix << 16).to_be_bytes());
        block.extend_from_slice(&lifetime.to_be_bytes());
        let nonce = [9; NONCE_LEN];
        let aad = Aad::from(self.server_name.as_bytes());
        self.key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut block).unwrap();
        [&[0, 12], &nonce[..], &block].concat()
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::time::now;
    use proptest::prelude::*;

    fn key() -> TokenKey {
        TokenKey::new("north", "turn.example.org", &[7; 32]).unwrap()
    }

    #[test]
    fn a_genuine_token_opens_until_it_is_over() {
        for length in [16, 32] {
            let start = now();
            let key = TokenKey::new("north", "turn.example.org", &[7; 32][..length]).unwrap();
            let token = key.seal(&[1; 20], start.unix, 60);
            for (later, open) in [(0, true), (64, true), (65, false), (1000, false)] {
                let at = start.after(std::time::Duration::from_secs(later));
                assert_eq!(key.open(at, &token).is_some(), open, "{later} s");
            }
            let grant = key.open(start, &token).unwrap();
            assert_eq!(grant, Grant { mac_key: vec![1; 20], expires_unix: start.unix + 65 });
        }
        assert!(TokenKey::new("north", "turn.example.org", &[7; 24]).is_none());
    }

    /// Made by coturn 4.6.1: `turnutils_oauth -e -i turn.example.org -j north -k KEY -n A256GCM -p MACKEY -q 111411200000000 -r 3600`
    /// with the keys 00…1f and 00…0f, and the MAC key 64…83.
    #[test]
    fn the_tokens_of_another_implementation_open() {
        for (length, token) in [
            (
                32,
                "AAxGj1Y2pP1PoN+oCc5FvjqMMgrWA3MxNrUe+vObnfHztsNOkEupC9sJpcOE7uOGRBjloAEfE4Fm87RDq67hhgrtqcj2inXVHrIqQg==",
            ),
            (
                16,
                "AAzzcVI0NPgF7vOWlJ1CvuLL3x3/s5Ggd0y5F3TpPzNHMue5ffyJ/qJX1heJtralGobeXAcfWnOUdv3khd4CBI5xc17Pya+ZoX3vVg==",
            ),
        ] {
            let key: Vec<u8> = (0..length).collect();
            let key = TokenKey::new("north", "turn.example.org", &key).unwrap();
            let token = data_encoding::BASE64.decode(token.as_bytes()).unwrap();
            let at = Now { unix: 1_700_000_100, ..now() };
            let grant = Grant { mac_key: (100..132).collect(), expires_unix: 1_700_003_605 };
            assert_eq!(key.open(at, &token), Some(grant));
            assert_eq!(key.open(Now { unix: 1_700_003_605, ..at }, &token), None);
        }
    }

    #[test]
    fn a_token_for_another_server_or_key_or_of_a_wrong_length_does_not_open() {
        let now = now();
        let token = key().seal(&[1; 20], now.unix, 60);
        assert!(TokenKey::new("north", "other.example.org", &[7; 32]).unwrap().open(now, &token).is_none());
        assert!(TokenKey::new("north", "turn.example.org", &[8; 32]).unwrap().open(now, &token).is_none());
        for length in 0..token.len() {
            assert!(key().open(now, &token[..length]).is_none(), "{length} bytes");
        }
        for lengths in [[0, 0], [0, 13], [2, 0xDF], [0xFF, 0xFF]] {
            let garbled = [&lengths[..], &[0x41; 733]].concat();
            assert!(key().open(now, &garbled).is_none(), "the 735 bytes that once broke a stack");
            assert!(key().open(now, &[&lengths, &token[2..]].concat()).is_none());
        }
        assert!(key().open(now, &key().seal(&[], now.unix, 60)).is_none(), "an empty key is no key");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_token_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..800)) {
            prop_assert!(key().open(now(), &bytes).is_none());
        }
    }
}
