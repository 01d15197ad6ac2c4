//! Access control: access keys and JWTs with their scopes, and the ICE servers that clients get with and without a key.

mod jwt;
mod origins;
mod realm;

use super::config::Config;
use super::wire::{IceServer, MAX_KEY};
use crate::clock::Now;
use crate::turn_server::auth::RestSecret;
pub use jwt::{Jwt, JwtKey};
pub use origins::Origins;
pub use realm::{Realm, Realms};
use ring::hmac;
use std::fmt;
use std::time::Duration;

/// What a key or JWT permits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scopes {
    /// Register where the server requires a key.
    pub register: bool,
    /// Get relay credentials.
    pub relay: bool,
    /// List and watch where that is disabled for others; revoke tags.
    pub admin: bool,
}

impl Scopes {
    /// All scopes.
    pub const ALL: Self = Self { register: true, relay: true, admin: true };
    /// The scopes that clients need and that a page cannot abuse.
    pub const CLIENT: Self = Self { register: true, relay: true, admin: false };

    /// Adds the scope of this name; unknown names are ignored.
    fn named(mut self, name: &str) -> Self {
        match name {
            "register" => self.register = true,
            "relay" => self.relay = true,
            "admin" => self.admin = true,
            _ => {}
        }
        self
    }

    fn with(self, other: Self) -> Self {
        Self {
            register: self.register | other.register,
            relay: self.relay | other.relay,
            admin: self.admin | other.admin,
        }
    }
}

/// The permissions of an admitted client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Admitted {
    /// Its scopes.
    pub scopes: Scopes,
    /// The realm whose clients it can list, watch and call.
    pub realm: Realm,
    /// When the permission ends (Unix seconds), if it does.
    pub until: Option<u64>,
    /// The id of the key or subject, by which the relay counts allocations; 0 without one.
    pub account: u64,
}

/// Why a key or JWT is refused. The claims of a JWT are checked after its signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Refusal {
    /// The text is not an access key, and JWTs are not accepted.
    #[error("this access key is not valid here")]
    Unknown,
    /// The algorithm is not the configured one.
    #[error("this token is not of the algorithm that is taken here")]
    Algorithm,
    /// The signature is wrong.
    #[error("this token's signature is wrong")]
    Signature,
    /// A claim is missing or of a wrong type.
    #[error("this token has no `exp`, or a claim of a wrong type or length")]
    Malformed,
    /// The token has expired.
    #[error("this token has expired")]
    Expired,
    /// The token is not yet valid.
    #[error("this token is not valid yet")]
    TooEarly,
    /// The remaining lifetime exceeds `max_lifetime`.
    #[error("this token's `exp` is too far away")]
    TooLong,
    /// `iss` or `aud` differs from the configured value.
    #[error("this token's `iss` or `aud` is not the one that is taken here")]
    Party,
    /// The key or JWT lacks the required scope.
    #[error("this access key does not have the scope `{0}`")]
    Scope(&'static str),
    /// The admin key is not accepted here: it could leak, or a page has sent it.
    #[error(
        "this is the admin key: it is accepted only in Authorization: Bearer, only for /revoke, and from no page"
    )]
    AdminKey,
    /// Too many requests: to `/ice`, from one network or with one key; elsewhere, signature checks of one network.
    #[error("too many requests, try later")]
    TooMany,
}

/// Returns the permissions of a key or JWT. Keys are compared first, so that a key may have any form. The admin key is not accepted here.
///
/// # Errors
/// Returns why the key or JWT is refused.
pub(crate) fn admit(config: &Config, now: Now, shown: &str) -> Result<Admitted, Refusal> {
    if shown.len() > MAX_KEY {
        return Err(Refusal::Unknown);
    }
    if is_admin_key(config, shown) {
        return Err(Refusal::AdminKey);
    }
    match (of_key(config, shown), &config.jwt) {
        (Some(admitted), _) => Ok(admitted),
        (None, Some(jwt)) => jwt.admit(&config.realms, now, shown),
        (None, None) => Err(Refusal::Unknown),
    }
}

/// Like [`admit`], for a key or JWT in a header; also accepts the admin key if no page has sent the request.
///
/// # Errors
/// Returns why the key or JWT is refused.
pub(super) fn admit_operator(
    config: &Config,
    now: Now,
    shown: &str,
    is_page: bool,
) -> Result<Admitted, Refusal> {
    if !is_page && is_admin_key(config, shown) {
        return Ok(Admitted { scopes: Scopes { admin: true, ..Scopes::default() }, ..Admitted::default() });
    }
    admit(config, now, shown)
}

fn is_admin_key(config: &Config, shown: &str) -> bool {
    config.admin_key.as_ref().is_some_and(|key| key.is(shown))
}

/// An access key with its scopes. It is stored as a MAC and compared in constant time.
#[derive(Clone)]
pub struct AccessKey {
    key: hmac::Key,
    mac: hmac::Tag,
    scopes: Scopes,
    realm: Box<str>,
}

impl AccessKey {
    /// Creates a key of the default realm with the scopes of [`Scopes::CLIENT`].
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self::scoped(text, Scopes::CLIENT, "")
    }

    /// Creates a key with these scopes in the realm of this name.
    #[must_use]
    pub fn scoped(text: &str, scopes: Scopes, realm: &str) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"ginnel access key");
        let mac = hmac::sign(&key, text.as_bytes());
        Self { key, mac, scopes, realm: realm.into() }
    }

    /// Returns whether `shown` is this key.
    #[must_use]
    pub fn is(&self, shown: &str) -> bool {
        hmac::verify(&self.key, shown.as_bytes(), self.mac.as_ref()).is_ok()
    }
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessKey(..)")
    }
}

/// Returns the permissions of a key, or `None` if it is not configured. Every key is compared, so that the time does not depend on which one
/// matches. A key that is configured twice has the scopes of both entries and the realm of the first.
fn of_key(config: &Config, shown: &str) -> Option<Admitted> {
    config.access_keys.iter().filter(|key| key.is(shown)).fold(None, |found: Option<Admitted>, key| {
        let account = || config.realms.account(&["key", shown]);
        let new =
            || Admitted { realm: config.realms.named(&key.realm), account: account(), ..Admitted::default() };
        let found = found.unwrap_or_else(new);
        Some(Admitted { scopes: found.scopes.with(key.scopes), ..found })
    })
}

/// The ICE servers for clients.
#[derive(Debug, Clone)]
pub struct IceServers {
    /// `stun:` URLs, for all clients.
    pub stun_urls: Vec<String>,
    /// `turn:` URLs, for clients with the scope `relay`.
    pub turn_urls: Vec<String>,
    /// The lifetime of relay credentials; default 24 h.
    pub ttl: Duration,
    /// Creates relay credentials; without it clients get no relay.
    pub secret: Option<RestSecret>,
}

impl Default for IceServers {
    fn default() -> Self {
        let ttl = Duration::from_secs(24 * 3600);
        Self { stun_urls: Vec::new(), turn_urls: Vec::new(), ttl, secret: None }
    }
}

impl IceServers {
    /// Returns the entries for clients without the scope `relay`.
    #[must_use]
    pub fn public(&self) -> Vec<IceServer> {
        let urls = self.stun_urls.clone();
        if urls.is_empty() { Vec::new() } else { vec![IceServer { urls, username: None, credential: None }] }
    }

    /// Returns the entries for an admitted client, with relay credentials for `name` on the client's account. They expire with the admission at
    /// the latest.
    #[must_use]
    pub fn admitted(&self, now: Now, name: &str, admitted: Admitted) -> Vec<IceServer> {
        let mut entries = self.public();
        if let Some(secret) = self.secret.as_ref().filter(|_| !self.turn_urls.is_empty()) {
            let end = now.unix.saturating_add(self.ttl.as_secs());
            let end = admitted.until.map_or(end, |until| until.min(end));
            let minted = secret.issue_for_account(admitted.account, name, end);
            entries.push(IceServer {
                urls: self.turn_urls.clone(),
                username: Some(minted.username),
                credential: Some(minted.credential),
            });
        }
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::time::now;

    fn admits(keys: &[AccessKey], shown: &str) -> Option<Admitted> {
        let config = Config { access_keys: keys.to_vec(), ..Config::default() };
        admit(&config, now(), shown).ok()
    }

    #[test]
    fn only_the_right_key_admits_and_no_key_is_logged() {
        let keys = [AccessKey::new("one"), AccessKey::new("two")];
        let [one, two] = ["one", "two"].map(|key| admits(&keys, key).unwrap());
        assert_eq!(
            Admitted { account: 0, ..one },
            Admitted { scopes: Scopes::CLIENT, ..Admitted::default() }
        );
        assert!(one.account != 0 && two.account != 0 && one.account != two.account);
        assert_eq!([admits(&keys, "on"), admits(&keys, ""), admits(&[], "one")], [None; 3]);
        let long = "x".repeat(MAX_KEY + 1);
        assert_eq!(admits(&[AccessKey::new(&long)], &long), None, "too long to be looked at");
        assert_eq!(format!("{keys:?}"), "[AccessKey(..), AccessKey(..)]");
    }

    #[test]
    fn a_key_has_its_scopes_and_realm_and_a_repeated_key_the_scopes_of_both() {
        let (register, relay) =
            (Scopes { register: true, ..Scopes::default() }, Scopes { relay: true, ..Scopes::default() });
        let keys = [
            AccessKey::scoped("a", register, "blue"),
            AccessKey::scoped("b", relay, ""),
            AccessKey::scoped("a", relay, ""),
        ];
        let realm = Realms::default().named("blue");
        let scopes = Scopes::CLIENT;
        let but_for_the_account = |shown| Admitted { account: 0, ..admits(&keys, shown).unwrap() };
        assert_eq!(but_for_the_account("a"), Admitted { scopes, realm, ..Admitted::default() });
        assert_eq!(but_for_the_account("b"), Admitted { scopes: relay, ..Admitted::default() });
    }

    #[test]
    fn the_admin_key_admits_only_operators_even_if_it_is_an_access_key() {
        let admin_key = Some(AccessKey::new("operator"));
        let access_keys = vec![AccessKey::new("one"), AccessKey::scoped("operator", Scopes::ALL, "")];
        let config = Config { access_keys, admin_key, ..Config::default() };
        assert_eq!(admit(&config, now(), "operator"), Err(Refusal::AdminKey));
        let operator =
            |shown, is_page| admit_operator(&config, now(), shown, is_page).map(|admitted| admitted.scopes);
        assert_eq!(operator("operator", false), Ok(Scopes { admin: true, ..Scopes::default() }));
        assert_eq!(operator("operator", true), Err(Refusal::AdminKey));
        assert_eq!(operator("one", false), Ok(Scopes::CLIENT));
    }

    #[test]
    fn only_admitted_clients_get_relay_credentials_which_expire() {
        let servers = IceServers {
            stun_urls: vec!["stun:192.0.2.1:3478".into()],
            turn_urls: vec!["turn:192.0.2.1:3478".into()],
            secret: Some(RestSecret::new(b"secret")),
            ..IceServers::default()
        };
        assert_eq!(servers.public().len(), 1);
        let now = now();
        let admitted = |until| Admitted { until, ..Admitted::default() };
        let user = |until| servers.admitted(now, "name", admitted(until))[1].username.clone();
        let whole = Some(format!("{}:name", now.unix + 86_400));
        assert_eq!((user(None), user(Some(now.unix + 90_000))), (whole.clone(), whole));
        assert_eq!(user(Some(now.unix + 60)), Some(format!("{}:name", now.unix + 60)));
        let on_an_account = servers.admitted(now, "name", Admitted { account: 7, ..admitted(None) });
        assert_eq!(on_an_account[1].username, Some(format!("{}:name+aaaaaaaaaaaao", now.unix + 86_400)));
        assert_eq!(IceServers { secret: None, ..servers }.admitted(now, "name", admitted(None)).len(), 1);
    }
}
