//! Accounts and devices. Pure.

use super::error::{StoreError, require_short};
use super::mailbox::MailboxId;
use super::{MAX_DETAILS, MAX_NAME};
use crate::limits::NetworkPrefix;
use std::fmt;

/// A user. It has a password hash, an identity key, or both.
#[derive(Clone, PartialEq, Eq)]
pub struct Account {
    /// The unique name.
    pub name: String,
    /// Argon2id in PHC form, over the text that the client sends as its password.
    pub password_hash: Option<String>,
    /// The Ed25519 key that signs the keys of the account's devices.
    pub identity_key: Option<[u8; 32]>,
    /// When it was created.
    pub created_at_ms: u64,
}

impl Account {
    /// Refuses what is longer than a store accepts.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let hash = self.password_hash.as_ref().map_or(0, String::len);
        require_short(self.name.len() <= MAX_NAME && hash <= MAX_DETAILS)
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut account = f.debug_struct("Account");
        account
            .field("name", &crate::ids::Pii(&self.name))
            .field("has_password", &self.password_hash.is_some());
        account.field("has_identity_key", &self.identity_key.is_some()).finish_non_exhaustive()
    }
}

/// The number of a device of an account; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountDeviceId(pub i64);

/// A device that an account adds.
#[derive(Clone, PartialEq, Eq)]
pub struct NewAccountDevice {
    /// The name of the account.
    pub account: String,
    /// The name that the user gave it.
    pub label: String,
    /// The Ed25519 key that signs what the device sends.
    pub signing_key: [u8; 32],
    /// The X25519 key to which messages are encrypted.
    pub encryption_key: [u8; 32],
    /// The identity key's signature over both keys.
    pub signature: [u8; 64],
    /// When it was added.
    pub created_at_ms: u64,
}

impl NewAccountDevice {
    /// Refuses what is longer than a store accepts.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        require_short(self.label.len() <= MAX_NAME)
    }
}

impl fmt::Debug for NewAccountDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewAccountDevice")
            .field("account", &crate::ids::Pii(&self.account))
            .finish_non_exhaustive()
    }
}

/// A device of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountDevice {
    /// Its number.
    pub id: AccountDeviceId,
    /// Its mailbox.
    pub mailbox: MailboxId,
    /// What the account gave.
    pub details: NewAccountDevice,
}

/// A device of the legacy protocol (S4-13).
#[derive(Clone, PartialEq, Eq)]
pub struct LegacyDevice {
    /// The unique id.
    pub id: String,
    /// What a later connection under this id must show (S4-A7).
    pub pin: DevicePin,
    /// The version that it reported last.
    pub version: String,
    /// The abilities that it reported last.
    pub abilities: Vec<String>,
}

impl LegacyDevice {
    /// Refuses what is longer than a store accepts.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let abilities: usize = self.abilities.iter().map(|ability| ability.len() + 1).sum();
        require_short(self.id.len() <= MAX_NAME && self.version.len() + abilities <= MAX_DETAILS)
    }
}

impl fmt::Debug for LegacyDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LegacyDevice").field("id", &crate::ids::Pii(&self.id)).finish_non_exhaustive()
    }
}

/// What identified a legacy device at its first use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DevicePin {
    /// The key that it offered.
    Key([u8; 32]),
    /// The network that it connected from.
    Network(NetworkPrefix),
}
