//! Tests of the limits of mailboxes and of the store, which every store passes.

use super::store_tests::*;
use super::*;

pub(super) fn one_sender_has_a_quarter_of_a_mailbox_unless_it_is_a_contact(kind: Kind) {
    let strangers = StrangerLimits::of(8, 400);
    let store = kind.open_with(StoreLimits {
        messages_per_mailbox: 8,
        bytes_per_mailbox: 400,
        strangers: StrangerLimits { bytes_per_sender: 100, ..strangers },
        ..StoreLimits::default()
    });
    let [alice, bob] = two_devices(&store);
    for text in ["one", "two"] {
        done(store.append(message("mallory", text, &[alice.mailbox, bob.mailbox])));
    }
    let third = || store.append(message("mallory", "three", &[alice.mailbox]));
    let refused = wait(third());
    let share = |id| matches!(id, Err(StoreError::Full(Full::SenderShare(id))) if id == alice.mailbox);
    assert!(share(refused));
    assert_eq!(done(store.append(message("mallory", "two", &[alice.mailbox]))), [Appended::Duplicate]);
    let mut lamp = message("mallory", "three", &[alice.mailbox]);
    lamp.sender = Party::Device("mallory".to_owned());
    done(store.append(lamp));
    let long = message("carol", &"x".repeat(101), &[alice.mailbox]);
    assert!(share(wait(store.append(long))), "by bytes too");
    done(store.acknowledge(alice.mailbox, Acknowledgement::Sequences(vec![1]), NOW));
    done(third());
    assert!(share(wait(store.append(message("mallory", "four", &[alice.mailbox])))));
    assert_fails!(store.append(message("mallory", "x", &[bob.mailbox])), StoreError::Full(_));
    done(store.insert_contact(&user("alice"), &user("mallory")));
    for text in ["four", "five", "six", "seven"] {
        done(store.append(message("mallory", text, &[alice.mailbox])));
    }
    done(store.append(message("alice", "a note of the owner", &[alice.mailbox])));
    assert_fails!(
        store.append(message("mallory", "nine", &[alice.mailbox])),
        StoreError::Full(Full::Mailbox(_))
    );
    assert_fails!(store.append(message("mallory", "x", &[bob.mailbox])), StoreError::Full(_));
}

pub(super) fn a_part_of_a_mailbox_is_kept_for_contacts(kind: Kind) {
    let store = kind.open_with(StoreLimits {
        messages_per_mailbox: 4,
        strangers: StrangerLimits::of(4, 1000),
        ..StoreLimits::default()
    });
    let alice = open(&store, "alice");
    for sender in ["a", "b", "c"] {
        done(store.append(message(sender, "hello", &[alice])));
    }
    let refused = wait(store.append(message("d", "hello", &[alice])));
    assert!(matches!(refused, Err(StoreError::Full(Full::Mailbox(id))) if id == alice), "{refused:?}");
    done(store.insert_contact(&user("alice"), &user("friend")));
    done(store.append(message("friend", "hello", &[alice])));
    done(store.acknowledge(alice, Acknowledgement::UpTo(2), NOW));
    done(store.append(message("d", "hello", &[alice])));
}

pub(super) fn a_full_store_refuses_messages_until_some_are_removed(kind: Kind) {
    let store = kind.open_with(StoreLimits { stored_bytes: 1 << 20, ..StoreLimits::default() });
    let (alice, bob) = (open(&store, "alice"), open(&store, "bob"));
    let large = |number: usize, mailbox| {
        let mut large = message("carol", &number.to_string(), &[mailbox]);
        large.copies[0].body = vec![1; 50_000].into();
        store.append(large)
    };
    let stored = (0..100).take_while(|number| wait(large(*number, alice)).is_ok()).count();
    assert!((12..=20).contains(&stored), "{stored}");
    assert_fails!(large(100, bob), StoreError::Full(Full::Store));
    done(store.insert_account(account("dave")));
    done(store.acknowledge(alice, Acknowledgement::UpTo(3), NOW));
    done(large(100, bob));
    assert_eq!(ids(&store, bob), ["100"]);
}

pub(super) fn the_limit_of_a_store_holds_for_calls_that_share_a_commit(kind: Kind) {
    let store = kind.open_with(StoreLimits { stored_bytes: 1 << 20, ..StoreLimits::default() });
    let alice = open(&store, "alice");
    let large = |number: usize| {
        let mut large = message("carol", &number.to_string(), &[alice]);
        large.copies[0].body = vec![1; 50_000].into();
        store.append(large)
    };
    let queued: Vec<_> = (0..100).map(large).collect();
    let stored = queued.into_iter().map(wait).filter(Result::is_ok).count();
    assert!((12..=20).contains(&stored), "{stored}");
    let removed = store.acknowledge(alice, Acknowledgement::UpTo(3), NOW);
    let next = large(100);
    done(removed);
    done(next);
}
