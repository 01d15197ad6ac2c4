//! Credential sources from the configuration, and the authenticator built from them.

use super::auth_hook::HookConfig;
use super::credentials_file::{CredentialFiles, CredentialsFileError};
use super::{ServerError, TurnConfig};
use crate::state::State;
use crate::turn_server::auth::{
    Authenticator, AuthenticatorConfig, Expiry, LookupCacheConfig, RealmCredentials, RestSecret,
    RevocationList, TokenKey, UserKeys,
};
use ring::hmac;
use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// A static user.
#[derive(Clone, PartialEq, Eq)]
pub enum StaticUser {
    /// A password.
    Password(String),
    /// Its keys for one realm.
    Keys(UserKeys),
}

impl StaticUser {
    fn keys(&self, user: &str, realm: &str) -> UserKeys {
        match self {
            Self::Password(password) => UserKeys::of_password(user, realm, password),
            Self::Keys(keys) => *keys,
        }
    }
}

impl fmt::Debug for StaticUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StaticUser(..)")
    }
}

/// A realm besides the default one.
#[derive(Debug, Clone, Default)]
pub struct RealmConfig {
    /// Its name.
    pub name: String,
    /// The server's addresses that offer it.
    pub addresses: Vec<IpAddr>,
    /// Its users.
    pub users: HashMap<String, StaticUser>,
    /// A credentials file of only this realm.
    pub credentials_file: Option<PathBuf>,
    /// Secrets of time-limited credentials.
    pub rest_secrets: Vec<Vec<u8>>,
}

/// A key of third-party tokens (RFC 7635).
#[derive(Clone, Default)]
pub struct OauthConfig {
    /// The key id, which clients send as USERNAME.
    pub kid: String,
    /// The relay's name at the authorization server.
    pub server_name: String,
    /// 16 or 32 bytes.
    pub key: Vec<u8>,
}

impl fmt::Debug for OauthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OauthConfig").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// Credential sources other than the default realm's static users.
#[derive(Debug, Clone, Default)]
pub struct AuthConfig {
    /// What happens to allocations when their credentials expire; default [`Expiry::AtAllocate`].
    pub expiry: Expiry,
    /// Secret shared by the nodes of one fleet, so that they accept each other's nonces and mobility tickets; default the state folder's secret.
    pub fleet_key: Option<[u8; 32]>,
    /// Whether RFC 8489 clients must send USERHASH; default: where this server has all users of the realm.
    pub username_anonymity: Option<bool>,
    /// File with users of all realms, one a line; reloaded when it changes; default none.
    pub credentials_file: Option<PathBuf>,
    /// Secrets of time-limited credentials of the default realm; the first mints, all verify.
    pub rest_secrets: Vec<Vec<u8>>,
    /// Realms besides the default one.
    pub realms: Vec<RealmConfig>,
    /// Look-up service for unknown users; default none.
    pub hook: Option<HookConfig>,
    /// Keys of third-party tokens.
    pub oauth: Vec<OauthConfig>,
}

impl AuthConfig {
    /// Derives the secret for one purpose from the fleet's secret, or else from this node's.
    #[must_use]
    pub fn derive(&self, state: &State, purpose: &str) -> [u8; 32] {
        let Some(fleet) = &self.fleet_key else { return state.derive(purpose) };
        let mut derived = [0; 32];
        let key = hmac::Key::new(hmac::HMAC_SHA256, fleet);
        derived.copy_from_slice(hmac::sign(&key, purpose.as_bytes()).as_ref());
        derived
    }

    /// Returns the secrets of the default realm's time-limited credentials; the first one mints.
    #[must_use]
    pub fn secrets(&self, turn: &TurnConfig, state: &State) -> (RestSecret, Vec<RestSecret>) {
        let configured = turn.rest_secret.iter().chain(&self.rest_secrets);
        let mut secrets = configured.map(|secret| RestSecret::new(secret));
        let own = || RestSecret::new(&self.derive(state, "turn credentials"));
        (secrets.next().unwrap_or_else(own), secrets.collect())
    }
}

/// Builds the authenticator, and the watcher of the credentials files.
pub(super) fn authority(
    turn: &TurnConfig,
    auth: &AuthConfig,
    state: &State,
    revoked: Arc<RevocationList>,
) -> Result<(Arc<Authenticator>, CredentialFiles), ServerError> {
    let users = |realm: &str, users: &HashMap<String, StaticUser>| {
        users.iter().map(|(user, known)| (user.clone(), known.keys(user, realm))).collect()
    };
    let (first, others) = auth.secrets(turn, state);
    let default = RealmCredentials {
        name: turn.realm.clone(),
        addresses: Vec::new(),
        users: users(&turn.realm, &turn.users),
        rest: [vec![first], others].concat(),
    };
    let more = auth.realms.iter().map(|realm| RealmCredentials {
        name: realm.name.clone(),
        addresses: realm.addresses.clone(),
        users: users(&realm.name, &realm.users),
        rest: realm.rest_secrets.iter().map(|secret| RestSecret::new(secret)).collect(),
    });
    let tokens = auth.oauth.iter().filter_map(|key| TokenKey::new(&key.kid, &key.server_name, &key.key));
    let setup = AuthenticatorConfig {
        realms: std::iter::once(default).chain(more).collect(),
        tokens: tokens.collect(),
        lookup: auth.hook.as_ref().map(HookConfig::limits),
        expiry: auth.expiry,
        anonymity: auth.username_anonymity,
        revoked,
        handler: None,
    };
    let authority = Arc::new(Authenticator::with(setup, &auth.derive(state, "nonces")));
    let shared = auth.credentials_file.iter().map(|path| (path.clone(), None));
    let own = auth
        .realms
        .iter()
        .filter_map(|realm| Some((realm.credentials_file.clone()?, Some(realm.name.clone()))));
    let files = CredentialFiles::open(shared.chain(own), &authority)?;
    Ok((authority, files))
}

impl From<CredentialsFileError> for ServerError {
    fn from(error: CredentialsFileError) -> Self {
        Self::CredentialsFile(error)
    }
}

impl HookConfig {
    fn limits(&self) -> LookupCacheConfig {
        LookupCacheConfig { known: self.cache, unknown: self.negative_cache, entries: self.max_cached }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_of_a_fleet_derive_the_same_secrets_and_others_their_own() {
        let temporary = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| State::open(&temporary.path().join(name)).unwrap());
        let alone = AuthConfig::default();
        let fleet = AuthConfig { fleet_key: Some([1; 32]), ..AuthConfig::default() };
        assert_eq!(fleet.derive(&one, "nonces"), fleet.derive(&two, "nonces"));
        assert_ne!(fleet.derive(&one, "nonces"), fleet.derive(&one, "mobility tickets"));
        assert_ne!(alone.derive(&one, "nonces"), alone.derive(&two, "nonces"));
        let turn = TurnConfig::default();
        let minted = |auth: &AuthConfig, state| auth.secrets(&turn, state).0.issue("a", 1);
        assert_eq!(minted(&fleet, &one), minted(&fleet, &two));
        assert_ne!(minted(&alone, &one), minted(&alone, &two));
    }
}
