//! One realm: its users, its secrets, and the addresses that offer it.

use super::rest::RestSecret;
use super::user_table::{UserId, UserKeys, UserTable};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

/// Configures a realm. Credentials of one realm are not valid in another.
#[derive(Debug, Clone, Default)]
pub struct RealmCredentials {
    /// Its name, at most `MAX_REALM` bytes.
    pub name: String,
    /// The server addresses whose clients are offered this realm; others are offered the first realm.
    pub addresses: Vec<IpAddr>,
    /// Users and their keys.
    pub users: HashMap<String, UserKeys>,
    /// Secrets of time-limited credentials; any of them verifies.
    pub rest: Vec<RestSecret>,
}

#[derive(Debug)]
pub(super) struct Realm {
    pub(super) name: String,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) rest: Vec<RestSecret>,
    users: UserTable,
    /// Replaced as a whole when the credentials file changes.
    file: RwLock<Arc<UserTable>>,
}

impl Realm {
    pub(super) fn new(setup: RealmCredentials) -> Self {
        Self {
            users: UserTable::new(&setup.name, setup.users),
            file: RwLock::default(),
            name: setup.name,
            addresses: setup.addresses,
            rest: setup.rest,
        }
    }

    /// Finds a configured user, else one of the credentials file.
    pub(super) fn find(&self, identity: UserId<'_>) -> Option<(Arc<str>, UserKeys)> {
        let from_file = self.file().find(identity);
        self.users.find(identity).or(from_file)
    }

    pub(super) fn set_file(&self, users: Vec<(String, UserKeys)>) {
        let table = Arc::new(UserTable::new(&self.name, users));
        *self.file.write().unwrap_or_else(PoisonError::into_inner) = table;
    }

    pub(super) fn has_users(&self) -> bool {
        !self.users.is_empty() || !self.file().is_empty()
    }

    pub(super) fn all_have_sha256(&self) -> bool {
        self.users.all_have_sha256() && self.file().all_have_sha256()
    }

    fn file(&self) -> Arc<UserTable> {
        Arc::clone(&self.file.read().unwrap_or_else(PoisonError::into_inner))
    }
}
