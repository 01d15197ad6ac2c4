//! JSON Web Tokens ([RFC 7519](https://www.rfc-editor.org/rfc/rfc7519)) instead of access keys: HS256
//! ([RFC 7518](https://www.rfc-editor.org/rfc/rfc7518#section-3.2)) and EdDSA ([RFC 8037](https://www.rfc-editor.org/rfc/rfc8037)).
//!
//! The algorithm and the key come from the configuration, never from the token. No claim is read before the signature is verified.

use super::realm::Realms;
use super::{Admitted, Refusal, Scopes};
use crate::clock::Now;
use crate::ids::Pii;
use data_encoding::{BASE64, BASE64URL_NOPAD};
use ring::{hmac, signature};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use std::time::Duration;

/// The prefix of a 32-byte Ed25519 key in a SubjectPublicKeyInfo
/// ([RFC 8410 section 4](https://www.rfc-editor.org/rfc/rfc8410#section-4)).
const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// The minimum length of an HS256 secret in bytes ([RFC 7518 section 3.2](https://www.rfc-editor.org/rfc/rfc7518#section-3.2)).
const MIN_SECRET: usize = 32;
/// Maximum length of `sub` in bytes.
const MAX_SUBJECT: usize = 256;

/// The rules for accepted tokens.
#[derive(Debug, Clone)]
pub struct Jwt {
    /// The algorithm and its key.
    pub key: JwtKey,
    /// The required `iss`; default any.
    pub issuer: Option<String>,
    /// The required `aud`; default any.
    pub audience: Option<String>,
    /// The maximum remaining lifetime by `exp`; default 24 h.
    pub max_lifetime: Duration,
    /// The tolerated clock difference to the issuer; default 60 s.
    pub leeway: Duration,
}

/// The key that verifies tokens.
#[derive(Debug, Clone)]
pub enum JwtKey {
    /// An HS256 secret, shared with the issuer.
    Hs256(Hs256Key),
    /// The Ed25519 public key of the issuer.
    EdDsa([u8; 32]),
}

/// An HS256 secret.
#[derive(Debug, Clone)]
pub struct Hs256Key(hmac::Key);

impl JwtKey {
    /// Creates a secret of at least 32 bytes.
    #[must_use]
    pub fn hs256(secret: &[u8]) -> Option<Self> {
        (secret.len() >= MIN_SECRET).then(|| Self::Hs256(Hs256Key(hmac::Key::new(hmac::HMAC_SHA256, secret))))
    }

    /// Parses an Ed25519 public key: PEM as written by `openssl pkey -pubout`, or 32 bytes in base64url as in the JWK field `x`.
    #[must_use]
    pub fn ed_dsa(text: &str) -> Option<Self> {
        let text = text.trim();
        let pem = text
            .strip_prefix("-----BEGIN PUBLIC KEY-----")
            .map(|rest| rest.split("-----END").next().unwrap_or(rest));
        let key = match pem {
            Some(body) => {
                let body: String = body.split_whitespace().collect();
                BASE64.decode(body.as_bytes()).ok()?.strip_prefix(&SPKI)?.to_vec()
            }
            None => BASE64URL_NOPAD.decode(text.as_bytes()).ok()?,
        };
        key.try_into().ok().map(Self::EdDsa)
    }

    /// The accepted values of `alg`.
    fn names(&self) -> &'static [&'static str] {
        match self {
            Self::Hs256(_) => &["HS256"],
            Self::EdDsa(_) => &["EdDSA", "Ed25519"],
        }
    }

    fn verifies(&self, signed: &[u8], mark: &[u8]) -> bool {
        match self {
            Self::Hs256(Hs256Key(key)) => hmac::verify(key, signed, mark).is_ok(),
            Self::EdDsa(key) => {
                signature::UnparsedPublicKey::new(&signature::ED25519, key).verify(signed, mark).is_ok()
            }
        }
    }
}

#[derive(Deserialize)]
struct JoseHeader {
    alg: String,
    /// Critical extensions; none is supported.
    crit: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Claims {
    exp: f64,
    nbf: Option<f64>,
    iss: Option<String>,
    aud: Option<OneOrMany>,
    scope: Option<OneOrMany>,
    realm: Option<String>,
    sub: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn all(&self) -> &[String] {
        match self {
            Self::One(text) => std::slice::from_ref(text),
            Self::Many(texts) => texts,
        }
    }
}

impl Jwt {
    /// Creates the default rules for tokens of this key.
    #[must_use]
    pub fn new(key: JwtKey) -> Self {
        let (day, minute) = (Duration::from_secs(24 * 3600), Duration::from_secs(60));
        Self { key, issuer: None, audience: None, max_lifetime: day, leeway: minute }
    }

    /// Returns whether checking `shown` may require a signature verification.
    pub(in crate::signaling) fn is_costly(&self, shown: &str) -> bool {
        matches!(self.key, JwtKey::EdDsa(_)) && shown.split('.').count() == 3
    }

    pub(super) fn admit(&self, realms: &Realms, now: Now, shown: &str) -> Result<Admitted, Refusal> {
        let (signed, mark) = shown.rsplit_once('.').ok_or(Refusal::Unknown)?;
        let (header, claims) =
            signed.split_once('.').filter(|(_, claims)| !claims.contains('.')).ok_or(Refusal::Unknown)?;
        let header: JoseHeader = read(header).ok_or(Refusal::Unknown)?;
        if !self.key.names().contains(&header.alg.as_str()) || header.crit.is_some() {
            return Err(Refusal::Algorithm);
        }
        let mark = BASE64URL_NOPAD.decode(mark.as_bytes()).map_err(|_| Refusal::Signature)?;
        if !self.key.verifies(signed.as_bytes(), &mark) {
            return Err(Refusal::Signature);
        }
        self.weigh(realms, now, (&read(claims).ok_or(Refusal::Malformed)?, signed))
    }

    fn weigh(
        &self,
        realms: &Realms,
        now: Now,
        (claims, signed): (&Claims, &str),
    ) -> Result<Admitted, Refusal> {
        let (clock, leeway) = (now.unix as f64, self.leeway.as_secs_f64());
        if claims.exp + leeway <= clock {
            return Err(Refusal::Expired);
        }
        if claims.exp > clock + leeway + self.max_lifetime.as_secs_f64() {
            return Err(Refusal::TooLong);
        }
        if claims.nbf.is_some_and(|nbf| nbf > clock + leeway) {
            return Err(Refusal::TooEarly);
        }
        let audiences = claims.aud.as_ref().map_or(&[][..], OneOrMany::all);
        if self.issuer.is_some() && self.issuer != claims.iss
            || self.audience.as_ref().is_some_and(|audience| !audiences.contains(audience))
        {
            return Err(Refusal::Party);
        }
        let realm = claims.realm.as_deref().unwrap_or_default();
        let subject = claims.sub.as_deref().unwrap_or_default();
        if realm.len() > Realms::MAX_NAME || subject.len() > MAX_SUBJECT {
            return Err(Refusal::Malformed);
        }
        tracing::debug!(sub = %Pii(subject), "token");
        let names = claims.scope.as_ref().map_or(&[][..], OneOrMany::all).iter();
        let scopes = names.flat_map(|names| names.split(' ')).fold(Scopes::default(), Scopes::named);
        let issuer = claims.iss.as_deref().unwrap_or_default();
        // Without a subject, the token itself is the account.
        let account = match subject {
            "" => realms.account(&["token", signed]),
            _ => realms.account(&["sub", issuer, realm, subject]),
        };
        Ok(Admitted { scopes, realm: realms.named(realm), until: Some(claims.exp as u64), account })
    }
}

fn read<T: DeserializeOwned>(part: &str) -> Option<T> {
    serde_json::from_slice(&BASE64URL_NOPAD.decode(part.as_bytes()).ok()?).ok()
}

#[cfg(test)]
mod tests;
