//! What the machine asks of the store, and what comes back. The service maps each request to one call of `store::Store`.

use crate::store::{
    Account, AccountDevice, AccountDeviceId, Acknowledgement, Appended, LegacyDevice, Mailbox, MailboxId,
    NewAccountDevice, NewMessage, Party, Removed, StoredMessage,
};

/// A call of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreRequest {
    /// The account of this name.
    Account(String),
    /// Creates an account.
    InsertAccount(Account),
    /// Replaces the password hash of an account.
    SetPasswordHash(String, String),
    /// Sets the identity key of an account that has none.
    SetIdentityKey(String, [u8; 32]),
    /// The devices of an account.
    AccountDevices(String),
    /// Adds a device to an account.
    InsertAccountDevice(NewAccountDevice),
    /// Gives a device of an account another name.
    SetDeviceLabel(String, AccountDeviceId, String),
    /// Removes a device of an account, at this time.
    RemoveAccountDevice(String, AccountDeviceId, u64),
    /// The legacy device of this id.
    LegacyDevice(String),
    /// Creates a legacy device.
    InsertLegacyDevice(LegacyDevice),
    /// Replaces the details of a legacy device.
    UpdateLegacyDevice(LegacyDevice),
    /// Whether the second party is a contact of the first.
    HasContact(Party, Party),
    /// Adds the second party to the contacts of the first.
    InsertContact(Party, Party),
    /// Removes the second party from the contacts of the first.
    RemoveContact(Party, Party),
    /// The contacts of a party.
    Contacts(Party),
    /// The contacts of a party that have added it too.
    MutualContacts(Party),
    /// The state of a mailbox.
    Mailbox(MailboxId),
    /// The mailbox of a party, created if there is none.
    OpenMailbox(Party),
    /// Appends a message to mailboxes.
    Append(NewMessage),
    /// A page of a mailbox, after a sequence number.
    Messages {
        /// The mailbox.
        mailbox: MailboxId,
        /// The last sequence number that is known.
        after: u64,
    },
    /// Removes messages that the reader of a mailbox has received.
    Acknowledge {
        /// The mailbox.
        mailbox: MailboxId,
        /// Which.
        acknowledgement: Acknowledgement,
        /// The time.
        now_ms: u64,
    },
    /// Removes what has expired.
    Expire {
        /// The time.
        now_ms: u64,
    },
}

/// What a successful call returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreReply {
    /// Nothing.
    Done,
    /// To [`StoreRequest::Account`].
    Account(Option<Account>),
    /// To [`StoreRequest::AccountDevices`].
    AccountDevices(Vec<AccountDevice>),
    /// To [`StoreRequest::InsertAccountDevice`].
    AccountDevice(AccountDevice),
    /// To [`StoreRequest::LegacyDevice`].
    LegacyDevice(Option<LegacyDevice>),
    /// To [`StoreRequest::HasContact`].
    HasContact(bool),
    /// To [`StoreRequest::Contacts`] and [`StoreRequest::MutualContacts`].
    Contacts(Vec<Party>),
    /// To [`StoreRequest::OpenMailbox`] and [`StoreRequest::Mailbox`].
    Mailbox(Mailbox),
    /// To [`StoreRequest::Append`].
    Appended(Vec<Appended>),
    /// To [`StoreRequest::Messages`].
    Messages(Vec<StoredMessage>),
    /// To [`StoreRequest::Acknowledge`], [`StoreRequest::Expire`] and [`StoreRequest::RemoveAccountDevice`].
    Removed(Removed),
}
