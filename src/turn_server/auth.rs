//! Who may relay: the long-term mechanism ([RFC 8489 section 9.2](https://www.rfc-editor.org/rfc/rfc8489#section-9.2)) over a chain of
//! sources (static users, a credentials file, time-limited REST credentials, a hook that others answer) and third-party
//! tokens ([RFC 7635](https://www.rfc-editor.org/rfc/rfc7635)).
//!
//! Refusals are uniform: a wrong password, an unknown user and a wrong realm get the same code and the same bytes but for the
//! nonce, after the same work.

mod lookup;
mod nonce;
mod realm;
mod rest;
mod revocation_list;
mod token;
mod user_table;

use super::FiveTuple;
use crate::clock::Now;
use crate::stun::{Attributes, Integrity, Key, Message, Method, PasswordAlgorithm, attr};
use lookup::LookupCache;
pub use lookup::{LookupAction, LookupCacheConfig, LookupResult, PendingLookups, UserQuery};
#[cfg(test)]
pub(crate) use lookup::{MAX_PENDING_PER_NETWORK, MAX_PENDING_UNKNOWN};
use nonce::{Nonces, OfferedFeatures};
use realm::Realm;
pub use realm::RealmCredentials;
pub use rest::{RestCredentials, RestHash, RestSecret};
pub use revocation_list::RevocationList;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
pub use token::TokenKey;
pub use user_table::{CredentialsError, UserKeys, hex_key, parse_credentials};
use user_table::{MAX_USERNAME, UserId};

/// Longest name of a realm in bytes, together with the third-party server's name: a longer one would make the answer to a bare
/// request of 20 bytes more than three times as long as the request, IP and UDP headers counted.
pub const MAX_REALM: usize = 32;

/// PASSWORD-ALGORITHMS where every user can be checked with both, and where one cannot.
const BOTH: [PasswordAlgorithm; 2] = [PasswordAlgorithm::Sha256, PasswordAlgorithm::Md5];
const MD5: [PasswordAlgorithm; 1] = [PasswordAlgorithm::Md5];

/// What the expiry of credentials means for an allocation that they made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Expiry {
    /// Nothing: expired credentials make no new allocation, but keep the one they have made. The default: a browser goes on with the
    /// credentials that it has allocated with, however long the call lasts.
    #[default]
    AtAllocate,
    /// Its requests are refused, so that it ends with its lifetime.
    AtRefresh,
    /// It ends at once.
    Hard,
}

/// Where credentials come from, of one realm without more. A relay without any admits nobody.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// User name → `MD5(user:realm:password)`.
    pub users: HashMap<String, [u8; 16]>,
    /// The secret of time-limited credentials.
    pub rest: Option<RestSecret>,
}

/// Everything an [`Authenticator`] can be told.
#[derive(Debug, Default)]
pub struct AuthenticatorConfig {
    /// The realms, the default one first.
    pub realms: Vec<RealmCredentials>,
    /// Keys of third-party tokens; the first one's server name is offered.
    pub tokens: Vec<TokenKey>,
    /// How long answers about users that others know are kept; without it nobody is asked.
    pub lookup: Option<LookupCacheConfig>,
    /// What the expiry of credentials means.
    pub expiry: Expiry,
    /// Whether clients of RFC 8489 are to send USERHASH; default where all users of the realm are kept here.
    pub anonymity: Option<bool>,
    /// Names whose time-limited credentials count no more.
    pub revoked: Arc<RevocationList>,
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
    nonces: Nonces,
    /// Stands in for the key of a user that does not exist, so that both refusals take the same work.
    dummy_key: [u8; 32],
}

/// Why a request is refused before it is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthError {
    /// 400: integrity without user name, realm or nonce; password algorithms that are not those offered.
    Malformed,
    /// 401 with a challenge: no or wrong credentials.
    Unauthorized,
    /// 438 with a challenge: the nonce is too old or was given to another address.
    StaleNonce,
    /// No answer yet: somebody else has to be asked.
    Lookup(Arc<UserQuery>),
}

/// What an answer of 401 or 438 carries.
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

/// Whose an allocation is, as long as it lives.
#[derive(Debug, Clone)]
pub struct AllocationOwner {
    /// The user's name.
    pub user: Arc<str>,
    /// When the credentials end (Unix seconds), if they do.
    pub expires_unix: Option<u64>,
    /// The token's key: only Allocate and Refresh carry the token itself
    /// ([RFC 7635 section 10](https://www.rfc-editor.org/rfc/rfc7635#section-10)).
    mac_key: Option<Arc<[u8]>>,
}

/// A request whose credentials were right: only now its attributes can be read.
#[derive(Debug)]
pub struct Authenticated<'a> {
    /// The user's name, as presented.
    pub user: Arc<str>,
    /// When the credentials end (Unix seconds), if they do.
    pub expires_unix: Option<u64>,
    /// The longest lifetime that this request may give an allocation: what is left of a token, or of any credentials where
    /// their end is the allocation's.
    pub lifetime_cap: Option<Duration>,
    /// The key that signs the response.
    pub key: Key,
    /// The request's attributes.
    pub attributes: Attributes<'a>,
    mac_key: Option<Arc<[u8]>>,
}

impl Authenticated<'_> {
    /// Returns what the allocation is to remember of its owner.
    #[must_use]
    pub fn owner(&self) -> AllocationOwner {
        AllocationOwner {
            user: Arc::clone(&self.user),
            expires_unix: self.expires_unix,
            mac_key: self.mac_key.clone(),
        }
    }
}

/// What a request claims, and how its integrity is to be proven.
struct PresentedCredentials<'m, 'a> {
    request: &'m Message<'a>,
    identity: UserId<'a>,
    /// The algorithm that makes the key of a password.
    algorithm: PasswordAlgorithm,
    /// The attribute that counts.
    integrity: Integrity,
    /// The attribute that the response gets.
    answered_with: Integrity,
}

/// Credentials that were right.
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
    /// Takes one realm, its sources of credentials and the key that nonces are made with.
    #[must_use]
    pub fn new(realm: &str, credentials: Credentials, nonce_key: &[u8; 32]) -> Self {
        let keys = |md5| UserKeys { md5: Some(md5), sha256: None };
        let users = credentials.users.into_iter().map(|(user, md5)| (user, keys(md5))).collect();
        let rest = credentials.rest.into_iter().collect();
        let realm = RealmCredentials { name: realm.to_owned(), users, rest, ..RealmCredentials::default() };
        Self::with(AuthenticatorConfig { realms: vec![realm], ..AuthenticatorConfig::default() }, nonce_key)
    }

    /// Takes everything there is, and the key that nonces are made with; nodes that share it accept each other's.
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
            nonces: Nonces::new(nonce_key),
            dummy_key: *nonce_key,
        }
    }

    /// Returns what the expiry of credentials means for the allocations they made.
    #[must_use]
    pub fn expiry(&self) -> Expiry {
        self.expiry
    }

    /// Returns whether there is a realm of this name.
    #[must_use]
    pub fn knows_realm(&self, name: &str) -> bool {
        self.realms.iter().any(|realm| realm.name == name)
    }

    /// Replaces the users that came from a credentials file, in all realms; lines of other realms are left out.
    pub fn replace_file_users(&self, users: &[(String, String, UserKeys)]) {
        for realm in &self.realms {
            let of_realm = users.iter().filter(|(_, name, _)| *name == realm.name);
            realm.set_file(of_realm.map(|(user, _, keys)| (user.clone(), *keys)).collect());
        }
    }

    /// Takes an answer about a user that others know.
    pub fn learn(&self, now: Now, question: Arc<UserQuery>, verdict: LookupResult) {
        if let Some(cache) = &self.lookup {
            cache.put(now.mono, question, verdict);
        }
    }

    /// Returns whether others have said before that they know a user.
    #[must_use]
    pub fn is_known(&self, question: &UserQuery) -> bool {
        self.lookup.as_ref().is_some_and(|cache| cache.is_known(question))
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

    /// Checks the credentials of a request by the list of [RFC 8489 section
    /// 9.2.4](https://www.rfc-editor.org/rfc/rfc8489#section-9.2.4); `owner` is that of the client's allocation, if it has one.
    ///
    /// # Errors
    /// [`AuthError`] says what the client gets.
    pub fn check<'a>(
        &self,
        now: Now,
        client: &FiveTuple,
        owner: Option<&AllocationOwner>,
        request: &Message<'a>,
    ) -> Result<Authenticated<'a>, AuthError> {
        let strongest = request.strongest_integrity().ok_or(AuthError::Unauthorized)?;
        let (Some(identity), Some(realm), Some(nonce)) =
            (identity(request), request.identity(attr::REALM), request.identity(attr::NONCE))
        else {
            return Err(AuthError::Malformed);
        };
        let offered = self.offered_realm(client);
        let offer = self.offer(offered);
        // Before the credentials, not after them as in the RFC: a flood with stale nonces costs one HMAC a request.
        // A data connection may use its control connection's nonce: turnutils_uclient, which has one nonce for both, would lose
        // each to the other.
        let beside = request.method() == Method::CONNECTION_BIND
            && self.nonces.is_valid_for_data_connection(now, client, offer, nonce);
        if !beside && !self.nonces.is_valid(now, client, offer, nonce) {
            return Err(AuthError::StaleNonce);
        }
        let negotiated = negotiated(request, offer)?;
        // Who was offered algorithms and took one uses SHA-256 from then on (section 9.2.5).
        let integrity = negotiated.map_or(strongest, |_| Integrity::Sha256);
        let has_token =
            request.identity(attr::ACCESS_TOKEN).is_some() || owner.is_some_and(|t| t.mac_key.is_some());
        let answered_with = match negotiated {
            None if has_token => integrity,
            None => Integrity::Sha1,
            Some(_) => Integrity::Sha256,
        };
        let algorithm = negotiated.unwrap_or(PasswordAlgorithm::Md5);
        let presented = PresentedCredentials { request, identity, algorithm, integrity, answered_with };
        let known = self.realms.iter().find(|known| known.name.as_bytes() == realm);
        let proof = self.verify(now, &presented, known.ok_or(offered), owner)?;
        Ok(self.authenticated(now, proof))
    }

    /// Tries the sources in their order. All of them work on `Err(realm)`, that of a request for a realm that does not
    /// exist, as hard as on `Ok(realm)`.
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
            let proof = self.verify_token(now, presented, token).filter(|_| realm.is_ok());
            return proof.ok_or(AuthError::Unauthorized);
        }
        if let Some(proof) = verify_owner_token(now, presented, owner).filter(|_| realm.is_ok()) {
            return Ok(proof);
        }
        let (is_known_realm, realm) = (realm.is_ok(), realm.unwrap_or_else(|offered| offered));
        let user = realm.find(presented.identity);
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
        if let Some(proof) = self.verify_rest(now, presented, realm, owner).filter(|_| is_known_realm) {
            return Ok(proof);
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

    /// Tries every secret with both of its hashes, also for names that have no expiry in front: the work is always the same.
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

    /// Asks what others know, also about users that are known here: else the time would tell that they are.
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
        let question = UserQuery { user: user.to_owned(), realm: realm.name.clone() };
        let verdict = cache.get(now.mono, &question).ok_or_else(|| AuthError::Lookup(Arc::new(question)))?;
        let (keys, expires_unix) = match verdict {
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

    /// Returns whether credentials that end at `expires_unix` count for this request.
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
            // These come by another five-tuple than the allocation's, whose user is compared where it is found.
            Method::CONNECTION_BIND => true,
            Method::REFRESH if presented.request.unverified().get(attr::MOBILITY_TICKET).is_some() => true,
            _ => is_owner(),
        };
        now.unix < expires_unix || (self.expiry == Expiry::AtAllocate && keeps_allocation)
    }

    fn authenticated<'a>(&self, now: Now, proof: VerifiedCredentials<'a>) -> Authenticated<'a> {
        let VerifiedCredentials { user, expires_unix, key, attributes, mac_key } = proof;
        let is_capped = mac_key.is_some() || self.expiry == Expiry::Hard;
        let left = expires_unix.map(|at| Duration::from_secs(at.saturating_sub(now.unix)));
        let lifetime_cap = left.filter(|_| is_capped);
        Authenticated { user, expires_unix, lifetime_cap, key, attributes, mac_key }
    }

    fn offered_realm(&self, client: &FiveTuple) -> &Realm {
        let here = client.server.ip();
        self.realms.iter().find(|realm| realm.addresses.contains(&here)).unwrap_or(&self.realms[0])
    }

    fn offer(&self, realm: &Realm) -> OfferedFeatures {
        let algorithms: &'static [_] =
            if self.realms.iter().all(Realm::all_have_sha256) { &BOTH } else { &MD5 };
        // Only names that are kept here can be found by their hash, and a client that is told to send it sends nothing else.
        let only_users = realm.rest.is_empty() && self.lookup.is_none() && self.tokens.is_empty();
        OfferedFeatures {
            algorithms,
            anonymity: self.anonymity.unwrap_or_else(|| only_users && realm.has_users()),
        }
    }
}

/// Returns what is counted together with `user`: the account that its name was minted on, whatever the name is, else the name itself.
pub(super) fn account_of(user: &Arc<str>) -> Arc<str> {
    rest::account(user).map_or_else(|| Arc::clone(user), Arc::from)
}

/// Says whether `user` is one that time-limited credentials for `name` have.
pub(super) fn is_issued_for(user: &str, name: &str) -> bool {
    rest::names(user).any(|of| of == name)
}

/// Reads who the request says it is from.
fn identity<'a>(request: &Message<'a>) -> Option<UserId<'a>> {
    let hash = request.identity(attr::USERHASH).map(UserId::Hash);
    // A name that is no UTF-8 is nobody's.
    let name = request.identity(attr::USERNAME).map(|name| std::str::from_utf8(name).unwrap_or_default());
    name.map(UserId::Name).or(hash)
}

/// Returns the password algorithm that the client has chosen; none if it knows nothing of them. Both attributes or neither, the
/// list as it was offered, the choice one of the list (third check of section 9.2.4).
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

/// Proves a request without a token by the token that made the allocation, as long as that is good.
fn verify_owner_token<'a>(
    now: Now,
    presented: &PresentedCredentials<'_, 'a>,
    owner: Option<&AllocationOwner>,
) -> Option<VerifiedCredentials<'a>> {
    let AllocationOwner { user, expires_unix, mac_key } = owner?;
    let mac_key = mac_key.as_ref().filter(|_| **user == *presented.name())?;
    let (key, attributes) = presented.verify(mac_key)?;
    let proof = VerifiedCredentials {
        user: Arc::clone(user),
        expires_unix: *expires_unix,
        key,
        attributes,
        mac_key: Some(Arc::clone(mac_key)),
    };
    expires_unix.is_none_or(|at| now.unix < at).then_some(proof)
}

#[cfg(test)]
mod tests;
