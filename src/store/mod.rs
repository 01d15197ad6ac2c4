//! Durable data of messaging: accounts, devices, contacts and mailboxes.
//!
//! [`Store`] is the interface. [`SqliteStore`] keeps everything in one database file and is the only code that knows SQL. [`MemoryStore`]
//! keeps everything in memory, for tests. `store_tests.rs` runs the same tests against both.
//!
//! # Contract
//!
//! - A write is queued when the method is called: calls in order are writes in order. Dropping the future does not cancel the write.
//! - The future of a write resolves after the commit that contains it is durable. A read sees every write that has resolved.
//! - A call that returns an error has changed nothing. [`Store::acknowledge`], [`Store::expire`] and [`Store::remove_account_device`]
//!   work in several transactions; after an error, what the earlier ones removed stays removed.
//! - Time is an argument, in milliseconds since the Unix epoch.
//!
//! # Mailboxes
//!
//! A mailbox has an epoch, a random number of 53 bits (a JSON number carries it exactly), and numbers its messages from 1 on. A number is never used again under the same epoch. A
//! message is removed when its reader acknowledges it, or when it expires; each of the two appends a receipt to the mailbox of the device
//! that sent it. A full mailbox refuses messages; it drops nothing. One sender cannot fill it ([`StrangerLimits`]) unless the owner has it among
//! its contacts.
//!
//! A store that has [`StoreLimits::stored_bytes`] refuses messages too, and so does one whose disk is full. What removes messages always works:
//! it needs no room, or a reserve is kept for it.
//!
//! A mailbox recognises a repeated message by its sender and message id: while the first one is stored, and otherwise for
//! [`REMEMBERED_FOR_MS`] after it was stored, among the last [`REMEMBERED_IDS`] messages.

mod account;
mod error;
#[cfg(test)]
mod limit_tests;
mod mailbox;
mod memory;
mod party;
mod sqlite;
#[cfg(test)]
mod store_tests;

pub use account::{Account, AccountDevice, AccountDeviceId, DevicePin, LegacyDevice, NewAccountDevice};
pub use error::{Full, StoreError};
pub use mailbox::{
    Acknowledgement, Appended, Mailbox, MailboxId, MessageCopy, MessageKind, NewMessage, PageSize, Removed,
    StoreLimits, StoredMessage, StrangerLimits,
};
pub use memory::MemoryStore;
pub use party::Party;
pub use sqlite::{CommitCounts, OpenError, SqliteConfig, SqliteStore};

use std::fmt;
use std::pin::Pin;

/// Longest name of a user, id of a device, or label of one, in bytes.
pub const MAX_NAME: usize = 128;
/// Longest password hash, and longest version with abilities of a legacy device, in bytes.
pub const MAX_DETAILS: usize = 4096;
/// Longest message id, in bytes.
pub const MAX_MESSAGE_ID: usize = 128;
/// Longest body of a message, in bytes (S4-A14).
pub const MAX_BODY: usize = 64 * 1024;
/// How long a mailbox recognises a repeated message, in milliseconds: 7 days.
pub const REMEMBERED_FOR_MS: u64 = 7 * 24 * 3600 * 1000;
/// Among how many of its last messages a mailbox recognises one that it no longer stores.
pub const REMEMBERED_IDS: u64 = 16_384;
/// After how many messages a mailbox forgets the ids of those before the last [`REMEMBERED_IDS`].
const FORGET_EVERY: u64 = 4096;

/// The result of a call, later.
pub type StoreFuture<T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>>;

/// Keeps accounts, devices, contacts and mailboxes. The module has the contract.
///
/// Each write fails with [`StoreError::LimitExceeded`] if something in it is longer than the constants of this module permit.
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Creates an account. [`StoreError::Exists`] if the name is taken.
    fn insert_account(&self, account: Account) -> StoreFuture<()>;

    /// Returns the account of this name.
    fn account(&self, name: &str) -> StoreFuture<Option<Account>>;

    /// Replaces the password hash of an account. [`StoreError::NotFound`] without the account.
    fn set_password_hash(&self, account: &str, password_hash: String) -> StoreFuture<()>;

    /// Sets the identity key of an account. [`StoreError::Exists`] if it has one, [`StoreError::NotFound`] without the account.
    fn set_identity_key(&self, account: &str, identity_key: [u8; 32]) -> StoreFuture<()>;

    /// Adds a device to an account and creates its mailbox. [`StoreError::NotFound`] without the account, [`StoreError::Exists`] if the
    /// account has a device with this signing key, [`StoreError::LimitExceeded`] if it has [`StoreLimits::devices_per_account`].
    fn insert_account_device(&self, device: NewAccountDevice) -> StoreFuture<AccountDevice>;

    /// Returns the devices of an account in the order of their creation.
    fn account_devices(&self, account: &str) -> StoreFuture<Vec<AccountDevice>>;

    /// Gives a device of an account another name. [`StoreError::NotFound`] if the account has no such device.
    fn set_device_label(&self, account: &str, device: AccountDeviceId, label: String) -> StoreFuture<()>;

    /// Removes a device of an account with its mailbox. What is in it expires: the sending devices get receipts.
    /// [`StoreError::NotFound`] if the account has no such device.
    fn remove_account_device(
        &self,
        account: &str,
        device: AccountDeviceId,
        now_ms: u64,
    ) -> StoreFuture<Removed>;

    /// Creates a legacy device. [`StoreError::Exists`] if the id is taken.
    fn insert_legacy_device(&self, device: LegacyDevice) -> StoreFuture<()>;

    /// Returns the legacy device of this id.
    fn legacy_device(&self, id: &str) -> StoreFuture<Option<LegacyDevice>>;

    /// Replaces pin, version and abilities of a legacy device. [`StoreError::NotFound`] without the device.
    fn update_legacy_device(&self, device: LegacyDevice) -> StoreFuture<()>;

    /// Adds a contact. [`StoreError::Exists`] if it was added before, [`StoreError::LimitExceeded`] if the owner has
    /// [`StoreLimits::contacts_per_party`].
    fn insert_contact(&self, owner: &Party, contact: &Party) -> StoreFuture<()>;

    /// Removes a contact. [`StoreError::NotFound`] if it was not added.
    fn remove_contact(&self, owner: &Party, contact: &Party) -> StoreFuture<()>;

    /// Returns the contacts of a party, in the order of their text form.
    fn contacts(&self, owner: &Party) -> StoreFuture<Vec<Party>>;

    /// Returns the contacts of a party that have it among their own contacts, in the order of their text form.
    fn mutual_contacts(&self, owner: &Party) -> StoreFuture<Vec<Party>>;

    /// Returns whether `contact` is among the contacts of `owner`.
    fn has_contact(&self, owner: &Party, contact: &Party) -> StoreFuture<bool>;

    /// Returns the mailbox of a party, and creates it at the first call. Account devices have another one each
    /// ([`AccountDevice::mailbox`]).
    fn open_mailbox(&self, party: &Party) -> StoreFuture<Mailbox>;

    /// Returns the state of a mailbox. [`StoreError::NotFound`] without the mailbox.
    fn mailbox(&self, id: MailboxId) -> StoreFuture<Mailbox>;

    /// Appends one message to several mailboxes: to all of them, or to none.
    ///
    /// A copy that its mailbox has already is [`Appended::Duplicate`], which is no error. [`Full`] and
    /// [`StoreError::NotFound`] are about the first mailbox that refuses the message.
    fn append(&self, message: NewMessage) -> StoreFuture<Vec<Appended>>;

    /// Returns the messages after the sequence number `after`, in order: at most `page.messages`, and at most `page.bytes` of bodies unless
    /// the first one is larger. Empty for an unknown mailbox.
    fn messages(&self, mailbox: MailboxId, after: u64, page: PageSize) -> StoreFuture<Vec<StoredMessage>>;

    /// Removes messages that the reader of this mailbox has received, and appends receipts to the mailboxes of the sending devices.
    /// Numbers of messages that are not there are ignored.
    fn acknowledge(
        &self,
        mailbox: MailboxId,
        acknowledgement: Acknowledgement,
        now_ms: u64,
    ) -> StoreFuture<Removed>;

    /// Removes all messages that have expired, appends receipts to the mailboxes of the sending devices, and forgets old message ids.
    fn expire(&self, now_ms: u64) -> StoreFuture<Removed>;
}
