//! Gateway tokens: signed by the operator, they allow a client to dial until they expire. Where tokens are required, a client's first frame
//! carries one (command 8).
//!
//! ```text
//! expiry, seconds since the Unix epoch (8) ‖ server (4, 0 for any) ‖ HMAC-SHA256(key, PURPOSE ‖ expiry ‖ server) (32)
//! ```
//!
//! Text form: `gt_` and the same bytes in base64url without padding.

use data_encoding::BASE64URL_NOPAD;
use ring::hmac;
use std::fmt;
use std::str::FromStr;

/// Bytes of a token.
pub(crate) const LEN: usize = 8 + 4 + 32;

const PURPOSE: &[u8] = b"ginnel gateway, ticket v1";
const PREFIX: &str = "gt_";

/// What a valid token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenClaims {
    /// The only server that may be dialled; `None` for any.
    pub server: Option<u32>,
    /// When it expires, in seconds since the Unix epoch.
    pub expires: u64,
}

/// Signs and verifies tokens.
#[derive(Clone)]
pub struct TokenIssuer(hmac::Key);

impl fmt::Debug for TokenIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenIssuer(..)")
    }
}

/// A token, valid or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GatewayToken(pub [u8; LEN]);

/// The text is not a gateway token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a gateway token: one begins with gt_ and has 62 characters")]
pub struct InvalidToken;

impl TokenIssuer {
    /// Signs with `key`.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// Creates a token. Server 0 cannot be the only server: it means any.
    #[must_use]
    pub fn issue(&self, admission: TokenClaims) -> GatewayToken {
        let mut token = [0; LEN];
        let (claim, code) = token.split_at_mut(12);
        claim[..8].copy_from_slice(&admission.expires.to_le_bytes());
        claim[8..].copy_from_slice(&admission.server.unwrap_or(0).to_le_bytes());
        code.copy_from_slice(hmac::sign(&self.0, &[PURPOSE, claim].concat()).as_ref());
        GatewayToken(token)
    }

    /// Verifies a token in constant time; `None` if it is forged, of the wrong length, or expired at `unix`.
    #[must_use]
    pub fn verify(&self, token: &[u8], unix: u64) -> Option<TokenClaims> {
        let (claim, code) = token.split_first_chunk::<12>()?;
        hmac::verify(&self.0, &[PURPOSE, claim].concat(), code).ok()?;
        let (expires, server) = claim.split_first_chunk::<8>()?;
        let server = u32::from_le_bytes(server.try_into().ok()?);
        let admission =
            TokenClaims { server: (server != 0).then_some(server), expires: u64::from_le_bytes(*expires) };
        (admission.expires > unix).then_some(admission)
    }
}

impl fmt::Display for GatewayToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", BASE64URL_NOPAD.encode(&self.0))
    }
}

impl FromStr for GatewayToken {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let encoded = text.strip_prefix(PREFIX).ok_or(InvalidToken)?;
        let bytes = BASE64URL_NOPAD.decode(encoded.as_bytes()).map_err(|_| InvalidToken)?;
        bytes.try_into().map(Self).map_err(|_| InvalidToken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_until_it_ends_and_only_unchanged() {
        let issuer = TokenIssuer::new(&[7; 32]);
        for server in [None, Some(9)] {
            let admission = TokenClaims { server, expires: 1000 };
            let token = issuer.issue(admission);
            assert_eq!(issuer.verify(&token.0, 999), Some(admission));
            assert_eq!(issuer.verify(&token.0, 1000), None);
            assert_eq!(TokenIssuer::new(&[8; 32]).verify(&token.0, 0), None);
            for bit in 0..LEN * 8 {
                let mut forged = token.0;
                forged[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(issuer.verify(&forged, 0), None, "{bit}");
            }
            for len in 0..LEN {
                assert_eq!(issuer.verify(&token.0[..len], 0), None, "{len} bytes");
            }
            assert_eq!(token.to_string().parse(), Ok(token));
        }
    }

    #[test]
    fn other_texts_are_no_tokens() {
        for text in ["", "gt_", "gt_AAAA", "gk_abc", "gt_####"] {
            assert_eq!(text.parse::<GatewayToken>(), Err(InvalidToken), "{text}");
        }
    }
}
