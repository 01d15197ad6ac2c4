//! Authentication of requests: the long-term credential mechanism
//! ([RFC 8489 section 9.2](https://www.rfc-editor.org/rfc/rfc8489#section-9.2)) with static users, a credentials file, an embedder's handler,
//! time-limited REST credentials and user look-ups, and third-party tokens ([RFC 7635](https://www.rfc-editor.org/rfc/rfc7635)).
//!
//! A wrong password, an unknown user and a wrong realm get the same response after the same work, so that none can be distinguished from the
//! others.

mod lookup;
mod nonce;
mod realm;
mod rest;
mod revocation_list;
mod token;
mod user_table;

use super::FiveTuple;
use super::handlers::AuthHandler;
use crate::clock::Now;
use crate::stun::{Attributes, Integrity, Key, Message, Method, PasswordAlgorithm, attr};
use lookup::LookupCache;
pub(crate) use lookup::{LookupAction, PendingLookups};
pub use lookup::{LookupCacheConfig, LookupResult, UserQuery};
#[cfg(test)]
pub(crate) use lookup::{MAX_PENDING_PER_NETWORK, MAX_PENDING_UNKNOWN};
use nonce::{Nonces, OfferedFeatures};
use realm::Realm;
pub use realm::RealmCredentials;
pub use rest::RestSecret;
pub(crate) use rest::{RestCredentials, RestHash};
pub use revocation_list::RevocationList;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
pub use token::TokenKey;
pub use user_table::UserKeys;
pub(crate) use user_table::{CredentialsError, hex_key, parse_credentials};
use user_table::{MAX_USERNAME, UserId};

/// Longest name of a realm in bytes, together with the third-party server's name: a longer one would make the answer to a bare
/// request of 20 bytes more than three times as long as the request, IP and UDP headers counted.
pub(crate) const MAX_REALM: usize = 32;

/// PASSWORD-ALGORITHMS where every user can be checked with both, and where one cannot.
const BOTH: [PasswordAlgorithm; 2] = [PasswordAlgorithm::Sha256, PasswordAlgorithm::Md5];
const MD5: [PasswordAlgorithm; 1] = [PasswordAlgorithm::Md5];

/// What happens to an allocation when the credentials that created it expire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Expiry {
    /// Nothing: expired credentials create no new allocation, but may still refresh. The default, because a browser keeps the
    /// credentials that it allocated with, however long the call lasts.
    #[default]
    AtAllocate,
    /// Its requests are refused, so it ends with its lifetime.
    AtRefresh,
    /// It ends immediately.
    Hard,
}

/// The credentials of one realm. A relay without any refuses all requests.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// User name → `MD5(user:realm:password)`.
    pub users: HashMap<String, [u8; 16]>,
    /// The secret of time-limited credentials.
    pub rest: Option<RestSecret>,
}

/// Configures an [`Authenticator`].
#[derive(Debug, Default)]
pub struct AuthenticatorConfig {
    /// The realms, the default one first.
    pub realms: Vec<RealmCredentials>,
    /// Keys of third-party tokens; the server name of the first one is offered.
    pub tokens: Vec<TokenKey>,
    /// How long results of user look-ups are cached; `None` turns look-ups off.
    pub lookup: Option<LookupCacheConfig>,
    /// What happens to an allocation when its credentials expire.
    pub expiry: Expiry,
    /// Whether clients of RFC 8489 send USERHASH; by default if all users of the realm are configured.
    pub anonymity: Option<bool>,
    /// Names whose time-limited credentials are revoked.
    pub revoked: Arc<RevocationList>,
    /// Supplies keys of users that the realms do not have; default none. With a handler, clients are not offered SHA-256 keys, and
    /// cannot send USERHASH.
    pub handler: Option<Arc<dyn AuthHandler>>,
}

impl AuthenticatorConfig {
    /// Creates a configuration of one realm without users.
    #[must_use]
    pub fn new(realm: &str) -> Self {
        let realms = vec![RealmCredentials { name: realm.to_owned(), ..RealmCredentials::default() }];
        Self { realms, ..Self::default() }
    }

    /// Adds a user to the first realm.
    #[must_use]
    pub fn with_user(mut self, user: &str, password: &str) -> Self {
        if let Some(realm) = self.realms.first_mut() {
            let keys = UserKeys::of_password(user, &realm.name, password);
            realm.users.insert(user.to_owned(), keys);
        }
        self
    }
}

/// Checks requests.
#[derive(Debug)]
pub struct Authenticator {
    realms: Vec<Realm>,
    tokens: Vec<TokenKey>,
    lookup: Option<LookupCache>,
    expiry: Expiry,
    anonymity: Option<bool>,
    revoked: Arc<RevocationList>,
    handler: Option<Arc<dyn AuthHandler>>,
    nonces: Nonces,
    /// Replaces the key of an unknown user, so that both refusals take the same work.
    dummy_key: [u8; 32],
}

/// Why a request is not authenticated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthError {
    /// 400: integrity without user name, realm or nonce, or password algorithms that were not offered.
    Malformed,
    /// 401 with a challenge: no or wrong credentials.
    Unauthorized,
    /// 438 with a challenge: the nonce is too old or was made for another address.
    StaleNonce,
    /// No response yet: the user must be looked up.
    Lookup(Arc<UserQuery>),
}

/// The attributes of a 401 or 438 response.
#[derive(Debug)]
pub struct Challenge<'a> {
    /// REALM.
    pub realm: &'a str,
    /// NONCE.
    pub nonce: String,
    /// PASSWORD-ALGORITHMS.
    pub algorithms: &'static [PasswordAlgorithm],
    /// THIRD-PARTY-AUTHORIZATION.
    pub third_party: Option<&'a str>,
}

/// The user that owns an allocation.
#[derive(Debug, Clone)]
pub struct AllocationOwner {
    /// The user's name.
    pub user: Arc<str>,
    /// When the credentials expire (Unix seconds), if they do.
    pub expires_unix: Option<u64>,
    /// The token's key: only Allocate and Refresh requests carry the token
    /// ([RFC 7635 section 10](https://www.rfc-editor.org/rfc/rfc7635#section-10)).
    mac_key: Option<Arc<[u8]>>,
}

/// A request whose integrity was verified: only now its attributes can be read.
#[derive(Debug)]
pub struct Authenticated<'a> {
    /// The user's name.
    pub user: Arc<str>,
    /// When the credentials expire (Unix seconds), if they do.
    pub expires_unix: Option<u64>,
    /// The longest lifetime that this request may give an allocation: the time until the token expires, or the credentials with
    /// [`Expiry::Hard`].
    pub lifetime_cap: Option<Duration>,
    /// The key that signs the response.
    pub key: Key,
    /// The request's attributes.
    pub attributes: Attributes<'a>,
    mac_key: Option<Arc<[u8]>>,
}

impl Authenticated<'_> {
    /// Returns the owner of an allocation that this request creates or refreshes.
    #[must_use]
    pub fn owner(&self) -> AllocationOwner {
        AllocationOwner {
            user: Arc::clone(&self.user),
            expires_unix: self.expires_unix,
            mac_key: self.mac_key.clone(),
        }
    }
}

/// The credentials of a request, and how its integrity is verified.
struct PresentedCredentials<'m, 'a> {
    request: &'m Message<'a>,
    client: &'m FiveTuple,
    identity: UserId<'a>,
    /// The algorithm that makes the key of a password.
    algorithm: PasswordAlgorithm,
    /// The integrity attribute of the request that is verified.
    integrity: Integrity,
    /// The integrity attribute of the response.
    answered_with: Integrity,
}

/// Credentials whose integrity was verified.
struct VerifiedCredentials<'a> {
    user: Arc<str>,
    expires_unix: Option<u64>,
    key: Key,
    attributes: Attributes<'a>,
    mac_key: Option<Arc<[u8]>>,
}

impl<'a> PresentedCredentials<'_, 'a> {
    /// Verifies the integrity under a key's bytes.
    fn verify(&self, key: &[u8]) -> Option<(Key, Attributes<'a>)> {
        let presented = Key::new(self.integrity, key);
        let attributes = self.request.verify(&presented)?;
        let same = self.answered_with == self.integrity;
        Some((if same { presented } else { Key::new(self.answered_with, key) }, attributes))
    }

    fn name(&self) -> &'a str {
        match self.identity {
            UserId::Name(name) => name,
            UserId::Hash(_) => "",
        }
    }
}

impl Authenticator {
    /// Creates an authenticator of one realm. `nonce_key` makes nonces.
    #[must_use]
    pub fn new(realm: &str, credentials: Credentials, nonce_key: &[u8; 32]) -> Self {
        let keys = |md5| UserKeys { md5: Some(md5), sha256: None };
        let users = credentials.users.into_iter().map(|(user, md5)| (user, keys(md5))).collect();
        let rest = credentials.rest.into_iter().collect();
        let realm = RealmCredentials { name: realm.to_owned(), users, rest, ..RealmCredentials::default() };
        Self::with(AuthenticatorConfig { realms: vec![realm], ..AuthenticatorConfig::default() }, nonce_key)
    }

    /// Creates an authenticator. `nonce_key` makes nonces; servers that share it accept each other's.
    #[must_use]
    pub fn with(setup: AuthenticatorConfig, nonce_key: &[u8; 32]) -> Self {
        let mut realms: Vec<_> = setup.realms.into_iter().map(Realm::new).collect();
        if realms.is_empty() {
            realms.push(Realm::new(RealmCredentials::default()));
        }
        Self {
            realms,
            tokens: setup.tokens,
            lookup: setup.lookup.map(LookupCache::new),
            expiry: setup.expiry,
            anonymity: setup.anonymity,
            revoked: setup.revoked,
            handler: setup.handler,
            nonces: Nonces::new(nonce_key),
            dummy_key: *nonce_key,
        }
    }

    /// Returns whether there is a realm of this name.
    pub(crate) fn knows_realm(&self, name: &str) -> bool {
        self.realms.iter().any(|realm| realm.name == name)
    }

    /// Replaces the users of the credentials files in all realms; users of unknown realms are ignored.
    pub(crate) fn replace_file_users(&self, users: &[(String, String, UserKeys)]) {
        for realm in &self.realms {
            let of_realm = users.iter().filter(|(_, name, _)| *name == realm.name);
            realm.set_file(of_realm.map(|(user, _, keys)| (user.clone(), *keys)).collect());
        }
    }

    /// Stores the result of a user look-up.
    pub fn store_lookup(&self, now: Now, query: Arc<UserQuery>, result: LookupResult) {
        if let Some(cache) = &self.lookup {
            cache.put(now.mono, query, result);
        }
    }

    /// Returns whether an earlier look-up found the user.
    pub(crate) fn is_known(&self, query: &UserQuery) -> bool {
        self.lookup.as_ref().is_some_and(|cache| cache.is_known(query))
    }

    /// Makes the challenge for a client.
    #[must_use]
    pub fn challenge(&self, now: Now, client: &FiveTuple) -> Challenge<'_> {
        let realm = self.offered_realm(client);
        let offer = self.offer(realm);
        Challenge {
            realm: &realm.name,
            nonce: self.nonces.make(now, client, offer),
            algorithms: offer.algorithms,
            third_party: self.tokens.first().map(TokenKey::server_name),
        }
    }

    /// Follows [RFC 8489 section 9.2.4](https://www.rfc-editor.org/rfc/rfc8489#section-9.2.4); `owner` is that of the client's
    /// allocation, if it has one.
    ///
    /// # Errors
    /// [`AuthError`] names the response.
    pub fn check<'a>(
        &self,
        now: Now,
        client: &FiveTuple,
        owner: Option<&AllocationOwner>,
        request: &Message<'a>,
    ) -> Result<Authenticated<'a>, AuthError> {
        // Without an integrity attribute: 401.
        let strongest = request.strongest_integrity().ok_or(AuthError::Unauthorized)?;
        // Without user name, realm or nonce: 400.
        let (Some(identity), Some(realm), Some(nonce)) =
            (identity(request), request.identity(attr::REALM), request.identity(attr::NONCE))
        else {
            return Err(AuthError::Malformed);
        };
        let offered = self.offered_realm(client);
        let offer = self.offer(offered);
        // A nonce that is no longer valid: 438. Checked before the credentials, not after them as in the RFC, so that a flood with stale
        // nonces costs one HMAC a request. A data connection may use its control connection's nonce, as turnutils_uclient does.
        let is_data_connection = request.method() == Method::CONNECTION_BIND
            && self.nonces.is_valid_for_data_connection(now, client, offer, nonce);
        if !is_data_connection && !self.nonces.is_valid(now, client, offer, nonce) {
            return Err(AuthError::StaleNonce);
        }
        // Password algorithms other than those offered: 400.
        let negotiated = negotiated(request, offer)?;
        // A client that has chosen an algorithm uses SHA-256 from then on (section 9.2.5).
        let integrity = negotiated.map_or(strongest, |_| Integrity::Sha256);
        let has_token =
            request.identity(attr::ACCESS_TOKEN).is_some() || owner.is_some_and(|t| t.mac_key.is_some());
        let answered_with = match negotiated {
            None if has_token => integrity,
            None => Integrity::Sha1,
            Some(_) => Integrity::Sha256,
        };
        let algorithm = negotiated.unwrap_or(PasswordAlgorithm::Md5);
        let presented =
            PresentedCredentials { request, client, identity, algorithm, integrity, answered_with };
        let known = self.realms.iter().find(|known| known.name.as_bytes() == realm);
        let verified_credentials = self.verify(now, &presented, known.ok_or(offered), owner)?;
        Ok(self.authenticated(now, verified_credentials))
    }

    /// Tries the sources of credentials in order. A request for an unknown realm, `Err`, takes the same work as one for a known
    /// realm.
    fn verify<'a>(
        &self,
        now: Now,
        presented: &PresentedCredentials<'_, 'a>,
        realm: Result<&Realm, &Realm>,
        owner: Option<&AllocationOwner>,
    ) -> Result<VerifiedCredentials<'a>, AuthError> {
        if let Some(token) =
            presented.request.identity(attr::ACCESS_TOKEN).filter(|_| !self.tokens.is_empty())
        {
            let verified_credentials = self.verify_token(now, presented, token).filter(|_| realm.is_ok());
            return verified_credentials.ok_or(AuthError::Unauthorized);
        }
        if let Some(verified_credentials) =
            verify_owner_token(now, presented, owner).filter(|_| realm.is_ok())
        {
            return Ok(verified_credentials);
        }
        let (is_known_realm, realm) = (realm.is_ok(), realm.unwrap_or_else(|offered| offered));
        let user = realm.find(presented.identity).or_else(|| self.ask_handler(presented, realm));
        let key = user.as_ref().and_then(|(_, keys)| keys.key(presented.algorithm));
        let verified =
            presented.verify(key.unwrap_or(&self.dummy_key)).filter(|_| key.is_some() && is_known_realm);
        if let (Some((key, attributes)), Some((user, _))) = (verified, &user) {
            return Ok(VerifiedCredentials {
                user: Arc::clone(user),
                expires_unix: None,
                key,
                attributes,
                mac_key: None,
            });
        }
        if let Some(verified_credentials) =
            self.verify_rest(now, presented, realm, owner).filter(|_| is_known_realm)
        {
            return Ok(verified_credentials);
        }
        self.verify_lookup(now, presented, realm, owner, user.is_none() && is_known_realm)
    }

    fn verify_token<'a>(
        &self,
        now: Now,
        presented: &PresentedCredentials<'_, 'a>,
        token: &[u8],
    ) -> Option<VerifiedCredentials<'a>> {
        let user = presented.name();
        let grant = self.tokens.iter().find(|key| key.kid() == user).and_then(|key| key.open(now, token));
        let key = grant.as_ref().map_or(&self.dummy_key[..], |grant| &grant.mac_key);
        let verified = presented.verify(key);
        let ((key, attributes), grant) = verified.zip(grant)?;
        let (expires_unix, mac_key) = (Some(grant.expires_unix), Some(grant.mac_key.into()));
        Some(VerifiedCredentials { user: user.into(), expires_unix, key, attributes, mac_key })
    }

    /// Tries every secret with both hashes, even for names without an expiry, so that the work is always the same.
    fn verify_rest<'a>(
        &self,
        now: Now,
        presented: &PresentedCredentials<'_, 'a>,
        realm: &Realm,
        owner: Option<&AllocationOwner>,
    ) -> Option<VerifiedCredentials<'a>> {
        let user = presented.name();
        let expires_unix = rest::expiry(user).filter(|_| user.len() <= MAX_USERNAME);
        let is_revoked = rest::names(user).any(|name| self.revoked.holds(now.unix, name));
        let is_current =
            !is_revoked && expires_unix.is_some_and(|at| self.accepts_expiry(now, at, presented, owner));
        let mut proven = None;
        for secret in &realm.rest {
            for hash in [RestHash::Sha1, RestHash::Sha256] {
                let keys = UserKeys::of_password(user, &realm.name, &secret.password(hash, user));
                let verified = keys.key(presented.algorithm).and_then(|key| presented.verify(key));
                proven = proven.or(verified);
            }
        }
        let (key, attributes) = proven.filter(|_| is_current)?;
        Some(VerifiedCredentials { user: user.into(), expires_unix, key, attributes, mac_key: None })
    }

    /// Looks the user up, even a configured one: otherwise the response time would reveal that it is configured.
    fn verify_lookup<'a>(
        &self,
        now: Now,
        presented: &PresentedCredentials<'_, 'a>,
        realm: &Realm,
        owner: Option<&AllocationOwner>,
        may_pass: bool,
    ) -> Result<VerifiedCredentials<'a>, AuthError> {
        let (Some(cache), UserId::Name(user)) = (&self.lookup, presented.identity) else {
            return Err(AuthError::Unauthorized);
        };
        let query = UserQuery { user: user.to_owned(), realm: realm.name.clone() };
        let result = cache.get(now.mono, &query).ok_or_else(|| AuthError::Lookup(Arc::new(query)))?;
        let (keys, expires_unix) = match result {
            LookupResult::Known { keys, expires_unix } => (keys, expires_unix),
            LookupResult::Unknown => (UserKeys::default(), None),
        };
        let key = keys.key(presented.algorithm);
        let is_current = expires_unix.is_none_or(|at| self.accepts_expiry(now, at, presented, owner));
        let verified = presented.verify(key.unwrap_or(&self.dummy_key));
        let verified = verified.filter(|_| key.is_some() && is_current && may_pass);
        let (key, attributes) = verified.ok_or(AuthError::Unauthorized)?;
        Ok(VerifiedCredentials { user: user.into(), expires_unix, key, attributes, mac_key: None })
    }

    /// Returns whether credentials that expire at `expires_unix` are valid for this request.
    fn accepts_expiry(
        &self,
        now: Now,
        expires_unix: u64,
        presented: &PresentedCredentials<'_, '_>,
        owner: Option<&AllocationOwner>,
    ) -> bool {
        let is_owner = || owner.is_some_and(|owner| *owner.user == *presented.name());
        let keeps_allocation = match presented.request.method() {
            Method::ALLOCATE => false,
            // These have another 5-tuple than the allocation; its user is compared where it is found.
            Method::CONNECTION_BIND => true,
            Method::REFRESH if presented.request.unverified().get(attr::MOBILITY_TICKET).is_some() => true,
            _ => is_owner(),
        };
        now.unix < expires_unix || (self.expiry == Expiry::AtAllocate && keeps_allocation)
    }

    fn authenticated<'a>(
        &self,
        now: Now,
        verified_credentials: VerifiedCredentials<'a>,
    ) -> Authenticated<'a> {
        let VerifiedCredentials { user, expires_unix, key, attributes, mac_key } = verified_credentials;
        let is_capped = mac_key.is_some() || self.expiry == Expiry::Hard;
        let left = expires_unix.map(|at| Duration::from_secs(at.saturating_sub(now.unix)));
        let lifetime_cap = left.filter(|_| is_capped);
        Authenticated { user, expires_unix, lifetime_cap, key, attributes, mac_key }
    }

    /// Calls the embedder's handler for a user that the realm does not have.
    fn ask_handler(
        &self,
        presented: &PresentedCredentials<'_, '_>,
        realm: &Realm,
    ) -> Option<(Arc<str>, UserKeys)> {
        let UserId::Name(user) = presented.identity else { return None };
        let keys = self.handler.as_ref()?.user_keys(user, &realm.name, presented.client)?;
        Some((user.into(), keys))
    }

    fn offered_realm(&self, client: &FiveTuple) -> &Realm {
        let here = client.server.ip();
        self.realms.iter().find(|realm| realm.addresses.contains(&here)).unwrap_or(&self.realms[0])
    }

    fn offer(&self, realm: &Realm) -> OfferedFeatures {
        let algorithms: &'static [_] =
            if self.handler.is_none() && self.realms.iter().all(Realm::all_have_sha256) {
                &BOTH
            } else {
                &MD5
            };
        // Only configured names can be found by their hash, and a client that sends it sends no name.
        let only_users = realm.rest.is_empty()
            && self.lookup.is_none()
            && self.handler.is_none()
            && self.tokens.is_empty();
        OfferedFeatures {
            algorithms,
            anonymity: self.anonymity.unwrap_or_else(|| only_users && realm.has_users()),
        }
    }
}

/// Returns the key under which `user` is counted: the account that its credentials were issued for, or else its name.
pub(super) fn account_of(user: &Arc<str>) -> Arc<str> {
    rest::account(user).map_or_else(|| Arc::clone(user), Arc::from)
}

/// Returns whether `user` is a user name of time-limited credentials for `name`.
pub(super) fn is_issued_for(user: &str, name: &str) -> bool {
    rest::names(user).any(|of| of == name)
}

/// Reads USERNAME or USERHASH.
fn identity<'a>(request: &Message<'a>) -> Option<UserId<'a>> {
    let hash = request.identity(attr::USERHASH).map(UserId::Hash);
    // A name that is not UTF-8 matches no user.
    let name = request.identity(attr::USERNAME).map(|name| std::str::from_utf8(name).unwrap_or_default());
    name.map(UserId::Name).or(hash)
}

/// Returns the password algorithm that the client has chosen, if it supports the attributes. Both attributes or neither, the list as
/// it was offered, the choice one of the list (third check of section 9.2.4).
fn negotiated(request: &Message<'_>, offer: OfferedFeatures) -> Result<Option<PasswordAlgorithm>, AuthError> {
    match (request.identity(attr::PASSWORD_ALGORITHMS), request.identity(attr::PASSWORD_ALGORITHM)) {
        (None, None) => Ok(None),
        (Some(list), Some(choice)) => {
            let offered: Vec<u8> = offer.algorithms.iter().flat_map(|algorithm| algorithm.value()).collect();
            let choice = PasswordAlgorithm::read(choice).filter(|choice| offer.algorithms.contains(choice));
            choice.filter(|_| list == offered).map(Some).ok_or(AuthError::Malformed)
        }
        _ => Err(AuthError::Malformed),
    }
}

/// Verifies a request without a token by the token that created the allocation, until it expires.
fn verify_owner_token<'a>(
    now: Now,
    presented: &PresentedCredentials<'_, 'a>,
    owner: Option<&AllocationOwner>,
) -> Option<VerifiedCredentials<'a>> {
    let AllocationOwner { user, expires_unix, mac_key } = owner?;
    let mac_key = mac_key.as_ref().filter(|_| **user == *presented.name())?;
    let (key, attributes) = presented.verify(mac_key)?;
    let verified_credentials = VerifiedCredentials {
        user: Arc::clone(user),
        expires_unix: *expires_unix,
        key,
        attributes,
        mac_key: Some(Arc::clone(mac_key)),
    };
    expires_unix.is_none_or(|at| now.unix < at).then_some(verified_credentials)
}

#[cfg(test)]
mod tests;
