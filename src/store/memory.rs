//! A store in memory, for tests: nothing lasts, and every future is ready at once.

use super::account::{Account, AccountDevice, AccountDeviceId, LegacyDevice, NewAccountDevice};
use super::error::{Full, StoreError, require_short};
use super::mailbox::{
    Acknowledgement, Appended, Mailbox, MailboxId, MessageCopy, MessageKind, NewMessage, PageSize, Removed,
    StoreLimits, StoredMessage,
};
use super::party::Party;
use super::{FORGET_EVERY, MAX_DETAILS, MAX_NAME, REMEMBERED_FOR_MS, REMEMBERED_IDS, Store, StoreFuture};
use bytes::Bytes;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha20Rng;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::ready;
use std::sync::{Mutex, PoisonError};

/// Keeps everything in memory.
#[derive(Debug)]
pub struct MemoryStore(Mutex<Tables>);

#[derive(Debug)]
struct Tables {
    limits: StoreLimits,
    random: ChaCha20Rng,
    accounts: HashMap<String, Account>,
    account_devices: BTreeMap<AccountDeviceId, AccountDevice>,
    legacy_devices: HashMap<String, LegacyDevice>,
    contacts: HashMap<Party, BTreeSet<Party>>,
    mailbox_ids: HashMap<Party, MailboxId>,
    mailboxes: BTreeMap<MailboxId, Contents>,
    last_device: i64,
    last_mailbox: i64,
}

#[derive(Debug)]
struct Contents {
    owner: Party,
    owner_device: Option<AccountDeviceId>,
    epoch: u64,
    last_sequence: u64,
    bytes: u64,
    messages: BTreeMap<u64, StoredMessage>,
    /// Sequence number of each message that is recognised, and until when.
    ids: HashMap<(Party, String), (u64, u64)>,
}

impl MemoryStore {
    /// Makes an empty store whose epochs follow from `seed`.
    #[must_use]
    pub fn new(limits: StoreLimits, seed: [u8; 32]) -> Self {
        Self(Mutex::new(Tables {
            limits,
            random: ChaCha20Rng::from_seed(seed),
            accounts: HashMap::new(),
            account_devices: BTreeMap::new(),
            legacy_devices: HashMap::new(),
            contacts: HashMap::new(),
            mailbox_ids: HashMap::new(),
            mailboxes: BTreeMap::new(),
            last_device: 0,
            last_mailbox: 0,
        }))
    }

    fn call<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&mut Tables) -> Result<T, StoreError>,
    ) -> StoreFuture<T> {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Box::pin(ready(operation(&mut tables)))
    }
}

impl Store for MemoryStore {
    fn insert_account(&self, account: Account) -> StoreFuture<()> {
        self.call(|tables| {
            account.check()?;
            if tables.accounts.contains_key(&account.name) {
                return Err(StoreError::Exists);
            }
            tables.check_parties()?;
            tables.accounts.insert(account.name.clone(), account);
            Ok(())
        })
    }

    fn account(&self, name: &str) -> StoreFuture<Option<Account>> {
        self.call(|tables| Ok(tables.accounts.get(name).cloned()))
    }

    fn set_password_hash(&self, account: &str, password_hash: String) -> StoreFuture<()> {
        self.call(|tables| {
            require_short(password_hash.len() <= MAX_DETAILS)?;
            tables.account(account)?.password_hash = Some(password_hash);
            Ok(())
        })
    }

    fn set_identity_key(&self, account: &str, identity_key: [u8; 32]) -> StoreFuture<()> {
        self.call(|tables| {
            let known = &mut tables.account(account)?.identity_key;
            match known.replace(identity_key) {
                None => Ok(()),
                earlier => {
                    *known = earlier;
                    Err(StoreError::Exists)
                }
            }
        })
    }

    fn insert_account_device(&self, device: NewAccountDevice) -> StoreFuture<AccountDevice> {
        self.call(|tables| {
            device.check()?;
            tables.insert_account_device(device)
        })
    }

    fn account_devices(&self, account: &str) -> StoreFuture<Vec<AccountDevice>> {
        self.call(|tables| Ok(tables.devices_of(account).cloned().collect()))
    }

    fn set_device_label(&self, account: &str, device: AccountDeviceId, label: String) -> StoreFuture<()> {
        self.call(|tables| {
            require_short(label.len() <= MAX_NAME)?;
            let known = tables.account_devices.get_mut(&device);
            let known = known.filter(|known| known.details.account == account).ok_or(StoreError::NotFound)?;
            known.details.label = label;
            Ok(())
        })
    }

    fn remove_account_device(
        &self,
        account: &str,
        device: AccountDeviceId,
        now_ms: u64,
    ) -> StoreFuture<Removed> {
        self.call(|tables| {
            if !tables.devices_of(account).any(|known| known.id == device) {
                return Err(StoreError::NotFound);
            }
            let Some(AccountDevice { mailbox, .. }) = tables.account_devices.remove(&device) else {
                return Err(StoreError::NotFound);
            };
            let stored = tables.mailboxes.get(&mailbox).map(|contents| &contents.messages);
            let due = stored.into_iter().flatten().map(|(sequence, _)| (mailbox, *sequence)).collect();
            let removed = tables.remove_messages(due, MessageKind::Expired, now_ms);
            tables.mailboxes.remove(&mailbox);
            Ok(removed)
        })
    }

    fn insert_legacy_device(&self, device: LegacyDevice) -> StoreFuture<()> {
        self.call(|tables| {
            device.check()?;
            if tables.legacy_devices.contains_key(&device.id) {
                return Err(StoreError::Exists);
            }
            tables.check_parties()?;
            tables.legacy_devices.insert(device.id.clone(), device);
            Ok(())
        })
    }

    fn legacy_device(&self, id: &str) -> StoreFuture<Option<LegacyDevice>> {
        self.call(|tables| Ok(tables.legacy_devices.get(id).cloned()))
    }

    fn update_legacy_device(&self, device: LegacyDevice) -> StoreFuture<()> {
        self.call(|tables| {
            device.check()?;
            let known = tables.legacy_devices.get_mut(&device.id).ok_or(StoreError::NotFound)?;
            *known = device;
            Ok(())
        })
    }

    fn insert_contact(&self, owner: &Party, contact: &Party) -> StoreFuture<()> {
        self.call(|tables| {
            owner.check()?;
            contact.check()?;
            let contacts = tables.contacts.entry(owner.clone()).or_default();
            if contacts.contains(contact) {
                return Err(StoreError::Exists);
            }
            if contacts.len() as u64 >= tables.limits.contacts_per_party {
                return Err(StoreError::LimitExceeded);
            }
            contacts.insert(contact.clone());
            Ok(())
        })
    }

    fn remove_contact(&self, owner: &Party, contact: &Party) -> StoreFuture<()> {
        self.call(|tables| {
            let is_removed = tables.contacts.get_mut(owner).is_some_and(|contacts| contacts.remove(contact));
            is_removed.then_some(()).ok_or(StoreError::NotFound)
        })
    }

    fn contacts(&self, owner: &Party) -> StoreFuture<Vec<Party>> {
        self.call(|tables| Ok(tables.contacts.get(owner).into_iter().flatten().cloned().collect()))
    }

    fn mutual_contacts(&self, owner: &Party) -> StoreFuture<Vec<Party>> {
        self.call(|tables| {
            let is_mutual = |contact: &&Party| {
                tables.contacts.get(*contact).is_some_and(|contacts| contacts.contains(owner))
            };
            let contacts = tables.contacts.get(owner).into_iter().flatten();
            Ok(contacts.filter(is_mutual).cloned().collect())
        })
    }

    fn has_contact(&self, owner: &Party, contact: &Party) -> StoreFuture<bool> {
        self.call(|tables| Ok(tables.contacts.get(owner).is_some_and(|contacts| contacts.contains(contact))))
    }

    fn open_mailbox(&self, party: &Party) -> StoreFuture<Mailbox> {
        self.call(|tables| {
            party.check()?;
            let id = match tables.mailbox_ids.get(party) {
                Some(id) => *id,
                None => {
                    let id = tables.insert_mailbox(party.clone(), None);
                    tables.mailbox_ids.insert(party.clone(), id);
                    id
                }
            };
            tables.mailbox(id)
        })
    }

    fn mailbox(&self, id: MailboxId) -> StoreFuture<Mailbox> {
        self.call(|tables| tables.mailbox(id))
    }

    fn append(&self, message: NewMessage) -> StoreFuture<Vec<Appended>> {
        self.call(|tables| tables.append(message))
    }

    fn messages(&self, mailbox: MailboxId, after: u64, page: PageSize) -> StoreFuture<Vec<StoredMessage>> {
        self.call(|tables| {
            let stored = tables.mailboxes.get(&mailbox).into_iter();
            let stored = stored.flat_map(|contents| contents.messages.range(after.saturating_add(1)..));
            let mut bytes = 0;
            let within = stored.enumerate().take_while(|(index, (_, message))| {
                bytes += message.body.len();
                *index == 0 || bytes <= page.bytes
            });
            Ok(within.take(page.messages).map(|(_, (_, message))| message.clone()).collect())
        })
    }

    fn acknowledge(
        &self,
        mailbox: MailboxId,
        acknowledgement: Acknowledgement,
        now_ms: u64,
    ) -> StoreFuture<Removed> {
        self.call(|tables| {
            let contents = tables.mailboxes.get(&mailbox).ok_or(StoreError::NotFound)?;
            let sequences: BTreeSet<u64> = match acknowledgement {
                Acknowledgement::UpTo(last) => {
                    contents.messages.range(..=last).map(|(sequence, _)| *sequence).collect()
                }
                Acknowledgement::Sequences(sequences) => sequences.into_iter().collect(),
            };
            let due = sequences.into_iter().map(|sequence| (mailbox, sequence)).collect();
            Ok(tables.remove_messages(due, MessageKind::Delivered, now_ms))
        })
    }

    fn expire(&self, now_ms: u64) -> StoreFuture<Removed> {
        self.call(|tables| {
            let mut due = Vec::new();
            for (id, contents) in &tables.mailboxes {
                let expired = contents.messages.values().filter(|message| message.expires_at_ms <= now_ms);
                due.extend(expired.map(|message| (*id, message.sequence)));
            }
            let removed = tables.remove_messages(due, MessageKind::Expired, now_ms);
            for contents in tables.mailboxes.values_mut() {
                let Contents { ids, messages, .. } = contents;
                ids.retain(|_, (sequence, until)| *until > now_ms || messages.contains_key(sequence));
            }
            Ok(removed)
        })
    }
}

impl Tables {
    fn check_parties(&self) -> Result<(), StoreError> {
        let parties = self.accounts.len() + self.legacy_devices.len();
        require_short((parties as u64) < self.limits.parties)
    }

    fn account(&mut self, name: &str) -> Result<&mut Account, StoreError> {
        self.accounts.get_mut(name).ok_or(StoreError::NotFound)
    }

    fn devices_of(&self, account: &str) -> impl Iterator<Item = &AccountDevice> {
        self.account_devices.values().filter(move |device| device.details.account == account)
    }

    fn insert_account_device(&mut self, details: NewAccountDevice) -> Result<AccountDevice, StoreError> {
        self.account(&details.account)?;
        if self.devices_of(&details.account).any(|known| known.details.signing_key == details.signing_key) {
            return Err(StoreError::Exists);
        }
        if self.devices_of(&details.account).count() as u64 >= self.limits.devices_per_account {
            return Err(StoreError::LimitExceeded);
        }
        self.last_device += 1;
        let id = AccountDeviceId(self.last_device);
        let mailbox = self.insert_mailbox(Party::User(details.account.clone()), Some(id));
        let device = AccountDevice { id, mailbox, details };
        self.account_devices.insert(id, device.clone());
        Ok(device)
    }

    fn insert_mailbox(&mut self, owner: Party, owner_device: Option<AccountDeviceId>) -> MailboxId {
        self.last_mailbox += 1;
        let id = MailboxId(self.last_mailbox);
        let contents = Contents {
            owner,
            owner_device,
            epoch: self.random.next_u64() >> 11,
            last_sequence: 0,
            bytes: 0,
            messages: BTreeMap::new(),
            ids: HashMap::new(),
        };
        self.mailboxes.insert(id, contents);
        id
    }

    fn mailbox(&self, id: MailboxId) -> Result<Mailbox, StoreError> {
        let contents = self.mailboxes.get(&id).ok_or(StoreError::NotFound)?;
        Ok(Mailbox {
            id,
            epoch: contents.epoch,
            last_sequence: contents.last_sequence,
            messages: contents.messages.len() as u64,
            bytes: contents.bytes,
        })
    }

    fn append(&mut self, message: NewMessage) -> Result<Vec<Appended>, StoreError> {
        message.check()?;
        let key = (message.sender.clone(), message.message_id.clone());
        let mut added: BTreeMap<MailboxId, u64> = BTreeMap::new();
        for copy in &message.copies {
            let contents = self.mailboxes.get(&copy.mailbox).ok_or(StoreError::NotFound)?;
            if contents.ids.contains_key(&key) || added.contains_key(&copy.mailbox) {
                continue;
            }
            self.check_room(contents, &message.sender, copy)?;
            added.insert(copy.mailbox, contents.last_sequence + 1);
        }
        let mut results = Vec::new();
        for copy in &message.copies {
            let contents = self.mailboxes.get_mut(&copy.mailbox).ok_or(StoreError::NotFound)?;
            let Some(sequence) = added.remove(&copy.mailbox) else {
                results.push(Appended::Duplicate);
                continue;
            };
            contents.ids.insert(key.clone(), (sequence, message.stored_at_ms + REMEMBERED_FOR_MS));
            contents.push(StoredMessage {
                sequence,
                kind: MessageKind::Message,
                sender: message.sender.clone(),
                sender_device: message.sender_device,
                message_id: message.message_id.clone(),
                is_encrypted: copy.is_encrypted,
                body: copy.body.clone(),
                stored_at_ms: message.stored_at_ms,
                expires_at_ms: message.expires_at_ms,
            });
            results.push(Appended::Stored(sequence));
        }
        Ok(results)
    }

    /// Refuses a message for which there is no room.
    fn check_room(&self, contents: &Contents, sender: &Party, copy: &MessageCopy) -> Result<(), StoreError> {
        let (limits, strangers, length) = (&self.limits, &self.limits.strangers, copy.body.len() as u64);
        let (messages, bytes) = (contents.messages.len() as u64, contents.bytes + length);
        let full = |is_full: bool, what: Full| if is_full { Err(StoreError::Full(what)) } else { Ok(()) };
        let stored: u64 = self.mailboxes.values().map(|contents| contents.bytes).sum();
        full(stored + length > limits.stored_bytes, Full::Store)?;
        let mailbox = Full::Mailbox(copy.mailbox);
        full(messages >= limits.messages_per_mailbox || bytes > limits.bytes_per_mailbox, mailbox)?;
        let is_contact = self.contacts.get(&contents.owner).is_some_and(|contacts| contacts.contains(sender));
        if is_contact || contents.owner == *sender {
            return Ok(());
        }
        let own = contents.messages.values();
        let own = own.filter(|stored| stored.kind == MessageKind::Message && stored.sender == *sender);
        let (own_messages, own_bytes) =
            own.fold((0, length), |(count, sum), stored| (count + 1, sum + stored.body.len() as u64));
        let is_over = own_messages >= strangers.messages_per_sender || own_bytes > strangers.bytes_per_sender;
        full(is_over, Full::SenderShare(copy.mailbox))?;
        full(messages >= strangers.messages_per_mailbox || bytes > strangers.bytes_per_mailbox, mailbox)
    }

    /// Removes messages and appends receipts of this kind.
    fn remove_messages(&mut self, due: Vec<(MailboxId, u64)>, kind: MessageKind, now_ms: u64) -> Removed {
        let mut removed = Removed::default();
        let mut notified = BTreeSet::new();
        for (mailbox, sequence) in due {
            let Some(contents) = self.mailboxes.get_mut(&mailbox) else { continue };
            let Some(message) = contents.messages.remove(&sequence) else { continue };
            contents.bytes -= message.body.len() as u64;
            removed.messages += 1;
            let (sender, sender_device) = (contents.owner.clone(), contents.owner_device);
            let is_message = message.kind == MessageKind::Message;
            let device = message.sender_device.filter(|_| is_message);
            let Some(device) = device.and_then(|id| self.account_devices.get(&id)) else { continue };
            let Some(receiver) = self.mailboxes.get_mut(&device.mailbox) else { continue };
            if receiver.messages.len() as u64 >= 2 * self.limits.messages_per_mailbox {
                removed.dropped_receipts += 1;
                continue;
            }
            notified.insert(device.mailbox);
            receiver.push(StoredMessage {
                sequence: receiver.last_sequence + 1,
                kind,
                sender,
                sender_device,
                message_id: message.message_id,
                is_encrypted: false,
                body: Bytes::new(),
                stored_at_ms: now_ms,
                expires_at_ms: now_ms + message.expires_at_ms.saturating_sub(message.stored_at_ms),
            });
        }
        removed.notified = notified.into_iter().collect();
        removed
    }
}

impl Contents {
    /// Stores what has the next sequence number.
    fn push(&mut self, message: StoredMessage) {
        self.last_sequence = message.sequence;
        self.bytes += message.body.len() as u64;
        self.messages.insert(message.sequence, message);
        if self.last_sequence.is_multiple_of(FORGET_EVERY) {
            let Self { ids, messages, last_sequence, .. } = self;
            ids.retain(|_, (sequence, _)| {
                *sequence + REMEMBERED_IDS > *last_sequence || messages.contains_key(sequence)
            });
        }
    }
}
