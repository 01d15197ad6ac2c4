//! Who may relay: long-term credentials ([RFC 8489 section 9.2](https://www.rfc-editor.org/rfc/rfc8489#section-9.2)) from a static
//! list or from time-limited REST credentials, and nonces that need no table.

use crate::clock::Now;
use crate::stun::{Attributes, Key, Message, long_term_digest};
use data_encoding::{BASE64, BASE64URL_NOPAD};
use ring::hmac;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// Seconds that a nonce stays good.
const NONCE_LIFETIME: u64 = 3600;
/// Longest user name that is looked at (RFC 8489 section 14.3: fewer than 509 bytes).
const MAX_USERNAME: usize = 508;

/// The shared secret of time-limited credentials: user name `expiry:name`, password `base64(HMAC-SHA1(secret, user name))`,
/// the form that TURN REST clients and other servers use.
#[derive(Debug, Clone)]
pub struct RestSecret(hmac::Key);

/// Time-limited credentials as a client presents them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Minted {
    /// `expiry:name`, the expiry in Unix seconds.
    pub username: String,
    /// The password that goes with it.
    pub credential: String,
}

impl RestSecret {
    /// Takes the secret's bytes.
    #[must_use]
    pub fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret))
    }

    /// Makes credentials for `name` that are good until `expires_unix`.
    #[must_use]
    pub fn mint(&self, name: &str, expires_unix: u64) -> Minted {
        let username = format!("{expires_unix}:{name}");
        let credential = self.password(&username);
        Minted { username, credential }
    }

    fn password(&self, username: &str) -> String {
        BASE64.encode(hmac::sign(&self.0, username.as_bytes()).as_ref())
    }
}

/// Where credentials come from. A relay without any admits nobody.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// User name → `MD5(user:realm:password)`.
    pub users: HashMap<String, [u8; 16]>,
    /// The secret of time-limited credentials.
    pub rest: Option<RestSecret>,
}

/// Checks requests for one realm.
#[derive(Debug)]
pub struct Authority {
    realm: String,
    credentials: Credentials,
    nonce_key: hmac::Key,
    /// Stands in for the key of a user that does not exist, so that both refusals take the same work.
    nobody: Key,
}

/// Why a request is refused before it is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// 400: integrity without user name, realm or nonce.
    Malformed,
    /// 401 with realm and nonce: no or wrong credentials.
    Unauthorized,
    /// 438 with realm and a fresh nonce: the nonce is too old or was given to another address.
    StaleNonce,
}

/// A request whose credentials were right: only now its attributes can be read.
#[derive(Debug)]
pub struct Authenticated<'a> {
    /// The user's name, as presented.
    pub user: Arc<str>,
    /// When the credentials end (Unix seconds), if they do.
    pub expires_unix: Option<u64>,
    /// The key that signs the response.
    pub key: Key,
    /// The request's attributes.
    pub attributes: Attributes<'a>,
}

impl Authority {
    /// Takes the realm, the sources of credentials and the key that nonces are made with.
    #[must_use]
    pub fn new(realm: &str, credentials: Credentials, nonce_key: &[u8; 32]) -> Self {
        Self {
            realm: realm.to_owned(),
            credentials,
            nonce_key: hmac::Key::new(hmac::HMAC_SHA256, nonce_key),
            nobody: Key::from_bytes(&nonce_key[..16]),
        }
    }

    /// Returns the realm.
    #[must_use]
    pub fn realm(&self) -> &str {
        &self.realm
    }

    /// Makes a nonce for `client`: the time and an HMAC over time and address, so that nothing is stored and a nonce
    /// harvested from one address is of no use from another.
    #[must_use]
    pub fn nonce(&self, now: Now, client: SocketAddr) -> String {
        let made = now.unix.to_be_bytes();
        let mut nonce = made.to_vec();
        nonce.extend_from_slice(&self.nonce_tag(made, client).as_ref()[..16]);
        BASE64URL_NOPAD.encode(&nonce)
    }

    fn nonce_tag(&self, made: [u8; 8], client: SocketAddr) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.nonce_key);
        context.update(&made);
        match client.ip() {
            std::net::IpAddr::V4(ip) => context.update(&ip.octets()),
            std::net::IpAddr::V6(ip) => context.update(&ip.octets()),
        }
        context.update(&client.port().to_be_bytes());
        context.sign()
    }

    fn nonce_is_good(&self, now: Now, client: SocketAddr, nonce: &str) -> bool {
        use subtle::ConstantTimeEq;
        let mut bytes = [0; 24];
        if BASE64URL_NOPAD.decode_len(nonce.len()) != Ok(bytes.len())
            || BASE64URL_NOPAD.decode_mut(nonce.as_bytes(), &mut bytes) != Ok(bytes.len())
        {
            return false;
        }
        let mut made = [0; 8];
        made.copy_from_slice(&bytes[..8]);
        let genuine = self.nonce_tag(made, client).as_ref()[..16].ct_eq(&bytes[8..]);
        bool::from(genuine) && now.unix.saturating_sub(u64::from_be_bytes(made)) <= NONCE_LIFETIME
    }

    /// Checks the credentials of a request in the order of RFC 8489 section 9.2.4.
    ///
    /// # Errors
    /// [`Refusal`] says which error the client gets.
    pub fn check<'a>(
        &self,
        now: Now,
        client: SocketAddr,
        request: &Message<'a>,
    ) -> Result<Authenticated<'a>, Refusal> {
        if !request.has_integrity() {
            return Err(Refusal::Unauthorized);
        }
        let (Some(user), Some(realm), Some(nonce)) = (request.username(), request.realm(), request.nonce())
        else {
            return Err(Refusal::Malformed);
        };
        if !self.nonce_is_good(now, client, nonce) {
            return Err(Refusal::StaleNonce);
        }
        let known = (realm == self.realm).then(|| self.key_of(now, user)).flatten();
        let (key, expires_unix) = known.clone().unwrap_or_else(|| (self.nobody.clone(), None));
        match request.verify(&key) {
            Some(attributes) if known.is_some() => {
                Ok(Authenticated { user: user.into(), expires_unix, key, attributes })
            }
            _ => Err(Refusal::Unauthorized),
        }
    }

    fn key_of(&self, now: Now, user: &str) -> Option<(Key, Option<u64>)> {
        if user.len() > MAX_USERNAME {
            return None;
        }
        if let Some(digest) = self.credentials.users.get(user) {
            return Some((Key::from_bytes(digest), None));
        }
        let rest = self.credentials.rest.as_ref()?;
        let expires: u64 = user.split(':').next()?.parse().ok()?;
        if expires <= now.unix {
            return None;
        }
        let digest = long_term_digest(user, &self.realm, &rest.password(user));
        Some((Key::from_bytes(&digest), Some(expires)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::time::now;
    use crate::stun::{Builder, Class, Method, TransactionId, attr};
    use std::time::Duration;

    const CLIENT: &str = "192.0.2.5:4000";

    fn authority() -> Authority {
        let users = HashMap::from([("alice".to_owned(), long_term_digest("alice", "r", "pw"))]);
        Authority::new("r", Credentials { users, rest: Some(RestSecret::new(b"north")) }, &[3; 32])
    }

    fn request(user: &str, realm: &str, nonce: &str, password: &str) -> Vec<u8> {
        Builder::new(Class::Request, Method::ALLOCATE, TransactionId::new([1; 12]))
            .attribute(attr::USERNAME, user.as_bytes())
            .attribute(attr::REALM, realm.as_bytes())
            .attribute(attr::NONCE, nonce.as_bytes())
            .integrity(&Key::from_bytes(&long_term_digest(user, "r", password)))
            .finish()
    }

    fn check(at: Now, client: &str, bytes: &[u8]) -> Result<Arc<str>, Refusal> {
        let message = Message::parse(bytes).unwrap();
        authority().check(at, client.parse().unwrap(), &message).map(|ok| ok.user)
    }

    #[test]
    fn right_credentials_pass_and_each_wrong_part_has_its_refusal() {
        let start = now();
        let nonce = authority().nonce(start, CLIENT.parse().unwrap());
        assert_eq!(check(start, CLIENT, &request("alice", "r", &nonce, "pw")).as_deref(), Ok("alice"));
        for (user, realm, nonce, password, refusal) in [
            ("alice", "r", nonce.as_str(), "no", Refusal::Unauthorized),
            ("bob", "r", &nonce, "pw", Refusal::Unauthorized),
            ("alice", "other", &nonce, "pw", Refusal::Unauthorized),
            ("alice", "r", "garbage", "pw", Refusal::StaleNonce),
        ] {
            assert_eq!(check(start, CLIENT, &request(user, realm, nonce, password)), Err(refusal));
        }
        let bare = Builder::new(Class::Request, Method::ALLOCATE, TransactionId::new([1; 12]));
        assert_eq!(check(start, CLIENT, &bare.clone().finish()), Err(Refusal::Unauthorized));
        let nameless = bare.integrity(&Key::short_term("x")).finish();
        assert_eq!(check(start, CLIENT, &nameless), Err(Refusal::Malformed));
    }

    #[test]
    fn a_nonce_serves_one_address_for_an_hour() {
        let start = now();
        let nonce = authority().nonce(start, CLIENT.parse().unwrap());
        let bytes = request("alice", "r", &nonce, "pw");
        assert!(check(start.after(Duration::from_secs(3600)), CLIENT, &bytes).is_ok());
        assert_eq!(check(start.after(Duration::from_secs(3601)), CLIENT, &bytes), Err(Refusal::StaleNonce));
        assert_eq!(check(start, "192.0.2.5:4001", &bytes), Err(Refusal::StaleNonce));
    }

    #[test]
    fn minted_credentials_work_until_they_expire() {
        let start = now();
        let minted = RestSecret::new(b"north").mint("tag", start.unix + 60);
        for (later, good) in [(0, true), (59, true), (60, false)] {
            let at = start.after(Duration::from_secs(later));
            let nonce = authority().nonce(at, CLIENT.parse().unwrap());
            let bytes = request(&minted.username, "r", &nonce, &minted.credential);
            assert_eq!(check(at, CLIENT, &bytes).is_ok(), good, "after {later} s");
        }
        let nonce = authority().nonce(start, CLIENT.parse().unwrap());
        let forged = request(&format!("{}:tag", start.unix + 999), "r", &nonce, &minted.credential);
        assert_eq!(check(start, CLIENT, &forged), Err(Refusal::Unauthorized));
    }
}
