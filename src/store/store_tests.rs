//! The tests that every store passes.

use super::limit_tests::*;
use super::*;
use std::sync::Arc;
use tempfile::TempDir;

/// A store and what it needs while it is used.
pub(super) struct TestStore {
    store: Arc<dyn Store>,
    _folder: Option<TempDir>,
}

impl std::ops::Deref for TestStore {
    type Target = dyn Store;

    fn deref(&self) -> &Self::Target {
        &*self.store
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Memory,
    Sqlite,
}

impl Kind {
    fn open(self) -> TestStore {
        self.open_with(StoreLimits::default())
    }

    pub(super) fn open_with(self, limits: StoreLimits) -> TestStore {
        match self {
            Self::Memory => TestStore { store: Arc::new(MemoryStore::new(limits, [7; 32])), _folder: None },
            Self::Sqlite => {
                let folder = tempfile::tempdir().unwrap();
                let config = SqliteConfig { limits, ..SqliteConfig::default() };
                let store = SqliteStore::open(&folder.path().join("messages.db"), config).unwrap();
                TestStore { store: Arc::new(store), _folder: Some(folder) }
            }
        }
    }
}

/// Declares each test once for each store.
macro_rules! for_every_store {
    ($($name:ident,)+) => {
        mod memory {
            $(#[test]
            fn $name() {
                super::$name(super::Kind::Memory);
            })+
        }
        mod sqlite {
            $(#[test]
            fn $name() {
                super::$name(super::Kind::Sqlite);
            })+
        }
    };
}

for_every_store! {
    an_account_is_created_once_and_changed,
    accounts_and_legacy_devices_are_limited_together,
    a_device_of_an_account_has_a_mailbox_until_it_is_removed,
    an_account_has_few_devices_with_different_keys,
    a_legacy_device_is_pinned_once_and_changed,
    contacts_are_added_once_counted_and_removed,
    contacts_are_mutual_when_both_have_added_the_other,
    a_party_has_one_mailbox_and_users_and_devices_have_different_ones,
    messages_are_read_in_order_in_pages,
    a_large_message_is_a_page_of_its_own,
    a_message_goes_to_all_mailboxes_or_to_none,
    a_repeated_message_is_a_duplicate_while_it_is_stored_and_for_a_week,
    a_repeated_message_reaches_the_mailboxes_that_miss_it,
    the_last_messages_are_recognised_and_earlier_ones_forgotten,
    the_same_id_of_two_senders_is_two_messages,
    a_full_mailbox_refuses_and_recognises_duplicates,
    a_mailbox_is_full_by_bytes_too,
    one_sender_has_a_quarter_of_a_mailbox_unless_it_is_a_contact,
    a_part_of_a_mailbox_is_kept_for_contacts,
    a_full_store_refuses_messages_until_some_are_removed,
    the_limit_of_a_store_holds_for_calls_that_share_a_commit,
    what_is_too_long_is_refused,
    an_acknowledgement_removes_up_to_a_number_or_some_numbers,
    an_acknowledged_message_is_reported_to_the_sending_device,
    an_expired_message_is_removed_and_reported,
    what_a_removed_device_has_not_acknowledged_is_reported_as_expired,
    receipts_enter_a_full_mailbox_up_to_twice_its_size,
    calls_take_effect_in_their_order_without_being_awaited,
}

/// Waits for a call.
pub(super) fn wait<T>(future: StoreFuture<T>) -> Result<T, StoreError> {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Waits for a call that succeeds.
#[track_caller]
pub(super) fn done<T>(future: StoreFuture<T>) -> T {
    wait(future).unwrap()
}

macro_rules! assert_fails {
    ($call:expr, $error:pat) => {
        let result = wait($call);
        assert!(matches!(result, Err($error)), "{result:?}");
    };
}

pub(super) use assert_fails;

pub(super) const NOW: u64 = 1_700_000_000_000;
const MONTH: u64 = 30 * 24 * 3600 * 1000;
const ALL: PageSize = PageSize { messages: 1_000_000, bytes: 1 << 30 };

pub(super) fn user(name: &str) -> Party {
    Party::User(name.to_owned())
}

pub(super) fn account(name: &str) -> Account {
    Account { name: name.to_owned(), password_hash: None, identity_key: None, created_at_ms: NOW }
}

fn device(account: &str, key: u8) -> NewAccountDevice {
    NewAccountDevice {
        account: account.to_owned(),
        label: format!("device {key}"),
        signing_key: [key; 32],
        encryption_key: [key + 1; 32],
        signature: [key + 2; 64],
        created_at_ms: NOW + u64::from(key),
    }
}

/// A message of user `sender` with the id and body `text`.
pub(super) fn message(sender: &str, text: &str, mailboxes: &[MailboxId]) -> NewMessage {
    let copy = |mailbox: &MailboxId| MessageCopy {
        mailbox: *mailbox,
        is_encrypted: false,
        body: text.to_owned().into(),
    };
    NewMessage {
        sender: user(sender),
        sender_device: None,
        message_id: text.to_owned(),
        stored_at_ms: NOW,
        expires_at_ms: NOW + MONTH,
        copies: mailboxes.iter().map(copy).collect(),
    }
}

pub(super) fn open(store: &TestStore, name: &str) -> MailboxId {
    done(store.open_mailbox(&user(name))).id
}

/// The ids of the messages in a mailbox.
pub(super) fn ids(store: &TestStore, mailbox: MailboxId) -> Vec<String> {
    done(store.messages(mailbox, 0, ALL)).into_iter().map(|message| message.message_id).collect()
}

fn an_account_is_created_once_and_changed(kind: Kind) {
    let store = kind.open();
    assert_eq!(done(store.account("alice")), None);
    done(store.insert_account(account("alice")));
    assert_fails!(store.insert_account(account("alice")), StoreError::Exists);
    done(store.insert_account(account("Alice")));
    done(store.set_password_hash("alice", "$argon2id$…".to_owned()));
    done(store.set_identity_key("alice", [9; 32]));
    assert_fails!(store.set_identity_key("alice", [8; 32]), StoreError::Exists);
    let expected = Account {
        password_hash: Some("$argon2id$…".to_owned()),
        identity_key: Some([9; 32]),
        ..account("alice")
    };
    assert_eq!(done(store.account("alice")), Some(expected));
    assert_eq!(done(store.account("Alice")), Some(account("Alice")), "names differ in case");
    assert_fails!(store.set_password_hash("bob", "x".to_owned()), StoreError::NotFound);
    assert_fails!(store.set_identity_key("bob", [1; 32]), StoreError::NotFound);
}

fn a_device_of_an_account_has_a_mailbox_until_it_is_removed(kind: Kind) {
    let store = kind.open();
    assert_fails!(store.insert_account_device(device("alice", 1)), StoreError::NotFound);
    done(store.insert_account(account("alice")));
    done(store.insert_account(account("bob")));
    let first = done(store.insert_account_device(device("alice", 1)));
    let second = done(store.insert_account_device(device("alice", 2)));
    let other = done(store.insert_account_device(device("bob", 1)));
    assert_eq!(first.details, device("alice", 1));
    let legacy = open(&store, "alice");
    let mailboxes = [first.mailbox, second.mailbox, other.mailbox, legacy];
    assert!((1..4).all(|n| !mailboxes[..n].contains(&mailboxes[n])), "{mailboxes:?}");
    assert_eq!(done(store.account_devices("alice")), [first.clone(), second.clone()]);
    done(store.set_device_label("alice", first.id, "phone".to_owned()));
    assert_fails!(store.set_device_label("bob", first.id, "x".to_owned()), StoreError::NotFound);
    assert_fails!(
        store.set_device_label("alice", first.id, "x".repeat(MAX_NAME + 1)),
        StoreError::LimitExceeded
    );
    let labels: Vec<_> =
        done(store.account_devices("alice")).into_iter().map(|device| device.details.label).collect();
    assert_eq!(labels, ["phone", "device 2"]);
    done(store.append(message("bob", "hello", &[first.mailbox, second.mailbox])));
    assert_fails!(store.remove_account_device("bob", first.id, NOW), StoreError::NotFound);
    assert_eq!(done(store.remove_account_device("alice", first.id, NOW)).messages, 1);
    assert_fails!(store.remove_account_device("alice", first.id, NOW), StoreError::NotFound);
    assert_eq!(done(store.account_devices("alice")), std::slice::from_ref(&second));
    assert_fails!(store.mailbox(first.mailbox), StoreError::NotFound);
    assert_eq!(ids(&store, first.mailbox), [""; 0]);
    assert_eq!(ids(&store, second.mailbox), ["hello"]);
    let again = done(store.insert_account_device(device("alice", 1)));
    assert!(again.id > other.id && again.mailbox > legacy, "numbers are not used again");
    assert_eq!(ids(&store, again.mailbox), [""; 0]);
}

fn an_account_has_few_devices_with_different_keys(kind: Kind) {
    let store = kind.open_with(StoreLimits { devices_per_account: 2, ..StoreLimits::default() });
    done(store.insert_account(account("alice")));
    done(store.insert_account_device(device("alice", 1)));
    assert_fails!(store.insert_account_device(device("alice", 1)), StoreError::Exists);
    done(store.insert_account_device(device("alice", 2)));
    assert_fails!(store.insert_account_device(device("alice", 3)), StoreError::LimitExceeded);
    assert_eq!(done(store.account_devices("alice")).len(), 2);
}

fn accounts_and_legacy_devices_are_limited_together(kind: Kind) {
    let store = kind.open_with(StoreLimits { parties: 3, ..StoreLimits::default() });
    let device = |id: &str| LegacyDevice {
        id: id.to_owned(),
        pin: DevicePin::Key([3; 32]),
        version: String::new(),
        abilities: Vec::new(),
    };
    done(store.insert_account(account("alice")));
    assert_fails!(store.insert_account(account("alice")), StoreError::Exists);
    done(store.insert_legacy_device(device("lamp")));
    done(store.insert_account(account("bob")));
    assert_fails!(store.insert_account(account("carol")), StoreError::LimitExceeded);
    assert_fails!(store.insert_legacy_device(device("door")), StoreError::LimitExceeded);
    assert_eq!(done(store.account("carol")), None);
}

fn a_legacy_device_is_pinned_once_and_changed(kind: Kind) {
    let store = kind.open();
    let network = DevicePin::Network("192.0.2.0/24".parse().unwrap());
    let abilities = vec!["lamp".to_owned(), "a \"quoted\" one".to_owned()];
    let first = LegacyDevice { id: "d1".to_owned(), pin: network, version: "1".to_owned(), abilities };
    assert_fails!(store.update_legacy_device(first.clone()), StoreError::NotFound);
    done(store.insert_legacy_device(first.clone()));
    let second = LegacyDevice {
        pin: DevicePin::Key([3; 32]),
        version: "2".to_owned(),
        abilities: Vec::new(),
        ..first.clone()
    };
    assert_fails!(store.insert_legacy_device(second.clone()), StoreError::Exists);
    assert_eq!(done(store.legacy_device("d1")), Some(first));
    done(store.update_legacy_device(second.clone()));
    assert_eq!(done(store.legacy_device("d1")), Some(second));
    assert_eq!(done(store.legacy_device("d2")), None);
}

fn contacts_are_added_once_counted_and_removed(kind: Kind) {
    let store = kind.open_with(StoreLimits { contacts_per_party: 2, ..StoreLimits::default() });
    let (alice, bob) = (user("alice"), user("bob"));
    let lamp = Party::Device("bob".to_owned());
    assert_eq!(done(store.contacts(&alice)), []);
    done(store.insert_contact(&alice, &bob));
    done(store.insert_contact(&alice, &lamp));
    assert_fails!(store.insert_contact(&alice, &bob), StoreError::Exists);
    assert_fails!(store.insert_contact(&alice, &user("carol")), StoreError::LimitExceeded);
    assert_eq!(done(store.contacts(&alice)), [lamp.clone(), bob.clone()]);
    assert_eq!(done(store.contacts(&Party::Device("alice".to_owned()))), []);
    done(store.remove_contact(&alice, &bob));
    assert_fails!(store.remove_contact(&alice, &bob), StoreError::NotFound);
    assert!(done(store.has_contact(&alice, &lamp)) && !done(store.has_contact(&alice, &bob)));
    done(store.insert_contact(&alice, &user("carol")));
}

fn contacts_are_mutual_when_both_have_added_the_other(kind: Kind) {
    let store = kind.open();
    let (alice, lamp) = (user("alice"), Party::Device("lamp".to_owned()));
    for (owner, contact) in [
        (&alice, &user("bob")),
        (&alice, &lamp),
        (&alice, &user("carol")),
        (&user("carol"), &alice),
        (&user("dave"), &alice),
        (&lamp, &alice),
        (&user("bob"), &Party::Device("alice".to_owned())),
    ] {
        done(store.insert_contact(owner, contact));
    }
    assert_eq!(done(store.mutual_contacts(&alice)), [lamp.clone(), user("carol")]);
    assert_eq!(done(store.mutual_contacts(&lamp)), std::slice::from_ref(&alice));
    assert_eq!(done(store.mutual_contacts(&user("bob"))), []);
    done(store.remove_contact(&user("carol"), &alice));
    assert_eq!(done(store.mutual_contacts(&alice)), [lamp]);
}

fn a_party_has_one_mailbox_and_users_and_devices_have_different_ones(kind: Kind) {
    let store = kind.open();
    let first = done(store.open_mailbox(&user("alice")));
    assert_eq!((first.last_sequence, first.messages, first.bytes), (0, 0, 0));
    assert_eq!(done(store.open_mailbox(&user("alice"))), first);
    let device = done(store.open_mailbox(&Party::Device("alice".to_owned())));
    assert!(device.id != first.id && device.epoch != first.epoch);
    assert!(first.epoch < 1 << 53);
    done(store.append(message("bob", "four", &[first.id])));
    let expected = Mailbox { last_sequence: 1, messages: 1, bytes: 4, ..first };
    assert_eq!(done(store.mailbox(first.id)), expected);
    assert_eq!(done(store.open_mailbox(&user("alice"))), expected);
    assert_fails!(store.mailbox(MailboxId(99)), StoreError::NotFound);
}

fn messages_are_read_in_order_in_pages(kind: Kind) {
    let store = kind.open();
    let (alice, bob) = (open(&store, "alice"), open(&store, "bob"));
    for number in 1..=7 {
        done(store.append(message("carol", &format!("m{number}"), &[alice])));
        done(store.append(message("carol", &format!("m{number}"), &[bob])));
    }
    let mut after = 0;
    let mut pages = Vec::new();
    loop {
        let page = done(store.messages(alice, after, PageSize { messages: 3, bytes: 1000 }));
        let Some(last) = page.last() else { break };
        after = last.sequence;
        pages.push(page.len());
        assert!(page.iter().all(|message| message.message_id == format!("m{}", message.sequence)));
    }
    assert_eq!(pages, [3, 3, 1]);
    let page = done(store.messages(alice, 2, PageSize { messages: 100, bytes: 5 }));
    assert_eq!(page.iter().map(|message| message.sequence).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(done(store.messages(alice, u64::MAX, ALL)), []);
    let expected = StoredMessage {
        sequence: 7,
        kind: MessageKind::Message,
        sender: user("carol"),
        sender_device: None,
        message_id: "m7".to_owned(),
        is_encrypted: false,
        body: "m7".into(),
        stored_at_ms: NOW,
        expires_at_ms: NOW + MONTH,
    };
    assert_eq!(done(store.messages(bob, 6, ALL)), [expected]);
}

fn a_large_message_is_a_page_of_its_own(kind: Kind) {
    let store = kind.open();
    let alice = open(&store, "alice");
    for text in ["x".repeat(50_000), "small".to_owned()] {
        let mut large = message("bob", &text[..5], &[alice]);
        large.copies[0].body = text.into();
        done(store.append(large));
    }
    let page = done(store.messages(alice, 0, PageSize { messages: 10, bytes: 100 }));
    assert_eq!((page.len(), page[0].body.len()), (1, 50_000));
    let page = done(store.messages(alice, 1, PageSize { messages: 10, bytes: 100 }));
    assert_eq!(page.len(), 1);
}

fn a_message_goes_to_all_mailboxes_or_to_none(kind: Kind) {
    let store = kind.open_with(StoreLimits { messages_per_mailbox: 1, ..StoreLimits::default() });
    let (alice, bob, carol) = (open(&store, "alice"), open(&store, "bob"), open(&store, "carol"));
    let mut first = message("dave", "one", &[alice, bob]);
    first.copies[1].is_encrypted = true;
    first.copies[1].body = vec![0, 255].into();
    assert_eq!(done(store.append(first)), [Appended::Stored(1); 2]);
    let stored = &done(store.messages(bob, 0, ALL))[0];
    assert!(stored.is_encrypted && stored.body[..] == [0, 255]);
    let refused = wait(store.append(message("dave", "two", &[carol, bob])));
    assert!(matches!(refused, Err(StoreError::Full(Full::Mailbox(full))) if full == bob), "{refused:?}");
    assert_fails!(store.append(message("dave", "two", &[carol, MailboxId(99)])), StoreError::NotFound);
    let state = done(store.mailbox(carol));
    assert_eq!((state.last_sequence, state.messages, state.bytes), (0, 0, 0));
    assert_eq!(done(store.append(message("dave", "two", &[carol, carol]))).len(), 2);
    assert_eq!(ids(&store, carol), ["two"], "a mailbox named twice gets one");
    assert_eq!(done(store.append(message("dave", "three", &[]))), []);
}

fn a_repeated_message_is_a_duplicate_while_it_is_stored_and_for_a_week(kind: Kind) {
    let store = kind.open();
    let alice = open(&store, "alice");
    for text in ["read", "kept"] {
        assert!(matches!(done(store.append(message("bob", text, &[alice])))[..], [Appended::Stored(_)]));
    }
    done(store.acknowledge(alice, Acknowledgement::Sequences(vec![1]), NOW));
    let repeat = |text| done(store.append(message("bob", text, &[alice])))[0];
    done(store.expire(NOW + REMEMBERED_FOR_MS - 1));
    assert_eq!((repeat("read"), repeat("kept")), (Appended::Duplicate, Appended::Duplicate));
    done(store.expire(NOW + REMEMBERED_FOR_MS));
    done(store.expire(NOW + 2 * REMEMBERED_FOR_MS));
    assert_eq!((repeat("kept"), repeat("read")), (Appended::Duplicate, Appended::Stored(3)));
    done(store.expire(NOW + MONTH));
    done(store.expire(NOW + MONTH + REMEMBERED_FOR_MS));
    assert_eq!(repeat("kept"), Appended::Stored(4));
}

fn a_repeated_message_reaches_the_mailboxes_that_miss_it(kind: Kind) {
    let store = kind.open();
    let (alice, bob) = (open(&store, "alice"), open(&store, "bob"));
    done(store.append(message("carol", "one", &[alice])));
    let results = done(store.append(message("carol", "one", &[alice, bob])));
    assert_eq!(results, [Appended::Duplicate, Appended::Stored(1)]);
    assert_eq!(done(store.mailbox(alice)).messages, 1);
    assert_eq!(done(store.mailbox(alice)).last_sequence, 1);
}

fn the_last_messages_are_recognised_and_earlier_ones_forgotten(kind: Kind) {
    let store = kind.open();
    let alice = open(&store, "alice");
    let total = REMEMBERED_IDS + 2 * FORGET_EVERY;
    let mut waiting = Vec::new();
    for number in 1..=total {
        waiting.push(store.append(message("bob", &number.to_string(), &[alice])));
        if number % 1000 == 0 || number == total {
            waiting.drain(..).for_each(|call| drop(done(call)));
            // The first message is left.
            done(store.acknowledge(alice, Acknowledgement::Sequences((2..=number).collect()), NOW));
        }
    }
    let repeat = |number: u64| done(store.append(message("bob", &number.to_string(), &[alice])))[0];
    assert_eq!(repeat(1), Appended::Duplicate, "still stored");
    assert_eq!(repeat(total), Appended::Duplicate);
    assert_eq!(repeat(total + 1 - REMEMBERED_IDS), Appended::Duplicate);
    assert_eq!(repeat(2), Appended::Stored(total + 1));
}

fn the_same_id_of_two_senders_is_two_messages(kind: Kind) {
    let store = kind.open();
    let alice = open(&store, "alice");
    done(store.append(message("bob", "id", &[alice])));
    let mut other = message("bob", "id", &[alice]);
    other.sender = Party::Device("bob".to_owned());
    assert_eq!(done(store.append(other)), [Appended::Stored(2)]);
    assert_eq!(done(store.append(message("carol", "id", &[alice]))), [Appended::Stored(3)]);
}

fn a_full_mailbox_refuses_and_recognises_duplicates(kind: Kind) {
    let store = kind.open_with(StoreLimits { messages_per_mailbox: 2, ..StoreLimits::default() });
    let alice = open(&store, "alice");
    done(store.append(message("bob", "one", &[alice])));
    done(store.append(message("bob", "two", &[alice])));
    assert_fails!(store.append(message("bob", "three", &[alice])), StoreError::Full(Full::Mailbox(_)));
    assert_eq!(done(store.append(message("bob", "one", &[alice]))), [Appended::Duplicate]);
    assert_eq!(ids(&store, alice), ["one", "two"]);
    done(store.acknowledge(alice, Acknowledgement::UpTo(1), NOW));
    assert_eq!(done(store.append(message("bob", "three", &[alice]))), [Appended::Stored(3)]);
    assert_eq!(ids(&store, alice), ["two", "three"]);
}

fn a_mailbox_is_full_by_bytes_too(kind: Kind) {
    let store = kind.open_with(StoreLimits { bytes_per_mailbox: 10, ..StoreLimits::default() });
    let alice = open(&store, "alice");
    done(store.append(message("bob", "seven77", &[alice])));
    assert_fails!(store.append(message("bob", "four", &[alice])), StoreError::Full(Full::Mailbox(_)));
    done(store.append(message("bob", "two", &[alice])));
    assert_eq!(done(store.mailbox(alice)).bytes, 10);
    done(store.acknowledge(alice, Acknowledgement::UpTo(1), NOW));
    assert_eq!(done(store.mailbox(alice)).bytes, 3);
}

fn what_is_too_long_is_refused(kind: Kind) {
    let store = kind.open();
    let alice = open(&store, "alice");
    let long = |length: usize| "x".repeat(length);
    let mut largest = message(&long(MAX_NAME), &long(MAX_MESSAGE_ID), &[alice]);
    largest.copies[0].body = vec![1; MAX_BODY].into();
    done(store.append(largest.clone()));
    let mut body = message("bob", "id", &[alice]);
    body.copies[0].body = vec![1; MAX_BODY + 1].into();
    assert_fails!(store.append(body), StoreError::LimitExceeded);
    let id = message("bob", &long(MAX_MESSAGE_ID + 1), &[alice]);
    assert_fails!(store.append(id), StoreError::LimitExceeded);
    let sender = message(&long(MAX_NAME + 1), "id", &[alice]);
    assert_fails!(store.append(sender), StoreError::LimitExceeded);
    let name = long(MAX_NAME + 1);
    assert_fails!(store.insert_account(account(&name)), StoreError::LimitExceeded);
    assert_fails!(store.open_mailbox(&user(&name)), StoreError::LimitExceeded);
    assert_fails!(store.insert_contact(&user("bob"), &user(&name)), StoreError::LimitExceeded);
    done(store.insert_account(account("bob")));
    let label = NewAccountDevice { label: name, ..device("bob", 1) };
    assert_fails!(store.insert_account_device(label), StoreError::LimitExceeded);
    let (pin, version) = (DevicePin::Key([1; 32]), "1".to_owned());
    let abilities = vec!["x".to_owned(); MAX_DETAILS];
    let verbose = LegacyDevice { id: "lamp".to_owned(), pin, version, abilities };
    assert_fails!(store.insert_legacy_device(verbose), StoreError::LimitExceeded);
    assert_eq!(done(store.messages(alice, 0, ALL))[0].body, largest.copies[0].body);
}

fn an_acknowledgement_removes_up_to_a_number_or_some_numbers(kind: Kind) {
    let store = kind.open();
    let (alice, bob) = (open(&store, "alice"), open(&store, "bob"));
    for number in 1..=6 {
        done(store.append(message("carol", &number.to_string(), &[alice, bob])));
    }
    let removed = done(store.acknowledge(alice, Acknowledgement::UpTo(2), NOW));
    assert_eq!(removed, Removed { messages: 2, ..Removed::default() });
    let some = Acknowledgement::Sequences(vec![5, 3, 5, 1, 99]);
    assert_eq!(done(store.acknowledge(alice, some, NOW)).messages, 2);
    assert_eq!(ids(&store, alice), ["4", "6"]);
    assert_eq!(done(store.acknowledge(alice, Acknowledgement::UpTo(u64::MAX), NOW)).messages, 2);
    assert_eq!(done(store.acknowledge(alice, Acknowledgement::UpTo(u64::MAX), NOW)).messages, 0);
    let state = done(store.mailbox(alice));
    assert_eq!((state.last_sequence, state.messages, state.bytes), (6, 0, 0));
    assert_eq!(ids(&store, bob).len(), 6);
    assert_fails!(store.acknowledge(MailboxId(99), Acknowledgement::UpTo(1), NOW), StoreError::NotFound);
}

/// Creates two accounts with one device each.
pub(super) fn two_devices(store: &TestStore) -> [AccountDevice; 2] {
    ["alice", "bob"].map(|name| {
        done(store.insert_account(account(name)));
        done(store.insert_account_device(device(name, 1)))
    })
}

fn an_acknowledged_message_is_reported_to_the_sending_device(kind: Kind) {
    let store = kind.open();
    let [alice, bob] = two_devices(&store);
    let legacy = open(&store, "carol");
    let mut sent = message("alice", "id", &[bob.mailbox, legacy]);
    sent.sender_device = Some(alice.id);
    done(store.append(sent));
    let stored = &done(store.messages(bob.mailbox, 0, ALL))[0];
    assert_eq!((stored.sender_device, &stored.sender), (Some(alice.id), &user("alice")));
    let expected = Removed { messages: 1, notified: vec![alice.mailbox], dropped_receipts: 0 };
    assert_eq!(done(store.acknowledge(bob.mailbox, Acknowledgement::UpTo(1), NOW + 5)), expected);
    assert_eq!(done(store.acknowledge(legacy, Acknowledgement::Sequences(vec![1, 1]), NOW + 6)), expected);
    let receipt = StoredMessage {
        sequence: 1,
        kind: MessageKind::Delivered,
        sender: user("bob"),
        sender_device: Some(bob.id),
        message_id: "id".to_owned(),
        is_encrypted: false,
        body: Vec::new().into(),
        stored_at_ms: NOW + 5,
        expires_at_ms: NOW + 5 + MONTH,
    };
    let legacy_receipt = StoredMessage {
        sequence: 2,
        sender: user("carol"),
        sender_device: None,
        stored_at_ms: NOW + 6,
        expires_at_ms: NOW + 6 + MONTH,
        ..receipt.clone()
    };
    assert_eq!(done(store.messages(alice.mailbox, 0, ALL)), [receipt, legacy_receipt]);
    let removed = done(store.acknowledge(alice.mailbox, Acknowledgement::UpTo(2), NOW));
    assert_eq!(removed, Removed { messages: 2, ..Removed::default() }, "no receipt for a receipt");
    let mut unanswered = message("alice", "other", &[bob.mailbox]);
    unanswered.sender_device = Some(alice.id);
    done(store.append(unanswered));
    done(store.remove_account_device("alice", alice.id, NOW));
    let removed = done(store.acknowledge(bob.mailbox, Acknowledgement::UpTo(9), NOW));
    assert_eq!(removed, Removed { messages: 1, ..Removed::default() }, "the device is gone");
}

fn an_expired_message_is_removed_and_reported(kind: Kind) {
    let store = kind.open();
    let [alice, bob] = two_devices(&store);
    for (text, lifetime) in [("short", 10), ("long", 20)] {
        let mut sent = message("alice", text, &[bob.mailbox]);
        (sent.sender_device, sent.expires_at_ms) = (Some(alice.id), NOW + lifetime);
        done(store.append(sent));
    }
    assert_eq!(done(store.expire(NOW + 9)), Removed::default());
    let expected = Removed { messages: 1, notified: vec![alice.mailbox], dropped_receipts: 0 };
    assert_eq!(done(store.expire(NOW + 10)), expected);
    assert_eq!(ids(&store, bob.mailbox), ["long"]);
    assert_eq!(done(store.mailbox(bob.mailbox)).bytes, 4);
    let receipt = &done(store.messages(alice.mailbox, 0, ALL))[0];
    assert_eq!((receipt.kind, &*receipt.message_id), (MessageKind::Expired, "short"));
    assert_eq!((&receipt.sender, receipt.sender_device), (&user("bob"), Some(bob.id)));
    assert_eq!(receipt.expires_at_ms, NOW + 20, "a receipt lasts as long as its message");
    assert_eq!(done(store.expire(NOW + 1000)).messages, 2, "the other message, and the receipt");
    let receipt = &done(store.messages(alice.mailbox, 0, ALL))[0];
    assert_eq!((receipt.sequence, &*receipt.message_id), (2, "long"));
}

fn what_a_removed_device_has_not_acknowledged_is_reported_as_expired(kind: Kind) {
    let store = kind.open();
    let [alice, bob] = two_devices(&store);
    for id in 0..600 {
        let mut sent = message("alice", &id.to_string(), &[bob.mailbox]);
        sent.sender_device = Some(alice.id);
        done(store.append(sent));
    }
    let removed = done(store.remove_account_device("bob", bob.id, NOW));
    assert_eq!(removed, Removed { messages: 600, notified: vec![alice.mailbox], dropped_receipts: 0 });
    assert_fails!(store.mailbox(bob.mailbox), StoreError::NotFound);
    assert_fails!(store.append(message("alice", "late", &[bob.mailbox])), StoreError::NotFound);
    assert_eq!(done(store.messages(bob.mailbox, 0, ALL)), []);
    let receipts = done(store.messages(alice.mailbox, 599, ALL));
    assert_eq!((receipts.len(), receipts[0].kind), (1, MessageKind::Expired));
    // A note to itself leaves nothing behind.
    let mut note = message("alice", "note", &[alice.mailbox]);
    note.sender_device = Some(alice.id);
    done(store.append(note));
    done(store.remove_account_device("alice", alice.id, NOW));
    assert_eq!(done(store.messages(alice.mailbox, 0, ALL)), []);
}

fn receipts_enter_a_full_mailbox_up_to_twice_its_size(kind: Kind) {
    let store = kind.open_with(StoreLimits { messages_per_mailbox: 3, ..StoreLimits::default() });
    let [alice, bob] = two_devices(&store);
    for text in ["a", "b", "c"] {
        done(store.append(message("carol", text, &[alice.mailbox])));
    }
    let mut removed = Removed::default();
    for round in 0..2 {
        for text in ["x", "y", "z"] {
            let mut sent = message("alice", &format!("{text}{round}"), &[bob.mailbox]);
            sent.sender_device = Some(alice.id);
            done(store.append(sent));
        }
        removed = done(store.acknowledge(bob.mailbox, Acknowledgement::UpTo(u64::MAX), NOW));
    }
    assert_eq!(removed, Removed { messages: 3, notified: Vec::new(), dropped_receipts: 3 });
    assert_eq!(ids(&store, alice.mailbox), ["a", "b", "c", "x0", "y0", "z0"]);
}

fn calls_take_effect_in_their_order_without_being_awaited(kind: Kind) {
    let store = kind.open();
    let alice = open(&store, "alice");
    let texts: Vec<String> = (0..100).map(|number| number.to_string()).collect();
    let calls: Vec<_> = texts.iter().map(|text| store.append(message("bob", text, &[alice]))).collect();
    let last = done(store.append(message("bob", "last", &[alice])));
    assert_eq!(last, [Appended::Stored(101)]);
    drop(calls);
    assert_eq!(ids(&store, alice)[..100], texts);
}
