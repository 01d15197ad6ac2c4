//! The state machine against a server that replaces or denies keys, and forges, redirects or repeats messages.

use super::encryption::{Content, public_key};
use super::error::{ErrorCode, RequestError};
use super::event::{Event, Protection};
use super::keys::Fingerprint;
use super::known_peers::Distrust;
use super::machine::{Operation, Receive};
use super::machine_tests::{Client, EPOCH, Peer, bob, copies, stored};
use super::state::{Change, State};
use crate::messaging_wire::signing::SigningKey;
use crate::messaging_wire::{
    self, Devices, Empty, ErrorBody, FixedBytes, Message, Request, error_frame, ok_frame,
};

#[test]
fn a_server_that_swaps_keys_of_a_sender_is_refused() {
    let (mut client, bob) = (Client::online(), bob());
    // First use: bob's identity is pinned.
    client.row(bob.message(&client, 1, "one"));
    client.answer_devices(&bob, &bob.devices());
    client.events.clear();
    // The server writes as bob, with an identity of its own.
    let fake = Peer { name: "bob", ..Peer::new("bob", 90) };
    client.row(fake.message(&client, 2, "forged"));
    client.answer_devices(&bob, &fake.devices());
    let [pinned, shown] = [&bob, &fake].map(|peer| Fingerprint::of(&peer.identity.public()));
    assert_eq!(client.refusal(), Distrust::IdentityChanged { pinned, shown });
    // The server adds a device of its own to bob's.
    let mut added = bob.devices();
    added.devices.push(fake.device());
    client.row(fake.message(&client, 3, "forged"));
    client.answer_devices(&bob, &added);
    assert_eq!(client.refusal(), Distrust::Certificate);
    // The server denies that bob has keys.
    client.row(fake.message(&client, 4, "forged"));
    client.answer_devices(&bob, &Devices { legacy: true, ..Devices::default() });
    assert_eq!(client.refusal(), Distrust::KeysWithheld);
    // Bob himself is still heard.
    client.row(bob.message(&client, 5, "five"));
    client.answer_devices(&bob, &bob.devices());
    assert_eq!(client.texts(), [("five", Protection::EndToEnd)]);
}

#[test]
fn forged_mail_is_refused_and_the_user_is_told() {
    let (mut client, bob, carol) = (Client::online(), bob(), Peer::new("carol", 70));
    client.row(bob.message(&client, 1, "one"));
    client.answer_devices(&bob, &bob.devices());
    client.events.clear();
    let mut sequence = 1;
    let mut refusal =
        |client: &mut Client, content: &Content, signer: &SigningKey, change: fn(&mut Message)| {
            sequence += 1;
            let mut message = bob.envelope(content, sequence, signer);
            change(&mut message);
            client.row(message);
            if !client.requests.is_empty() {
                client.answer_devices(&bob, &bob.devices());
            }
            client.refusal()
        };
    let content = bob.content(&client, "x", "forged");
    // Signed by nobody who is named in it.
    assert_eq!(refusal(&mut client, &content, &carol.signing, |_| {}), Distrust::Signature);
    // Signed by carol's device, in bob's name.
    let by_carol = Content { from_key: FixedBytes(carol.signing.public()), ..content.clone() };
    assert_eq!(refusal(&mut client, &by_carol, &carol.signing, |_| {}), Distrust::Signature);
    // Bob's own words: to carol, from another conversation, under another id.
    let to_carol = Content { to: "user:carol".into(), ..content.clone() };
    assert_eq!(refusal(&mut client, &to_carol, &bob.signing, |_| {}), Distrust::Misdirected);
    let from_carol = Content { from: "user:carol".into(), ..content.clone() };
    assert_eq!(refusal(&mut client, &from_carol, &bob.signing, |_| {}), Distrust::Misdirected);
    let other_id = refusal(&mut client, &content, &bob.signing, |message| message.message_id = "y".into());
    assert_eq!(other_id, Distrust::Misdirected);
    // Encrypted for another device, or damaged.
    let for_carol = Content { to_key: FixedBytes(public_key(&carol.encryption_secret)), ..content.clone() };
    assert_eq!(refusal(&mut client, &for_carol, &bob.signing, |_| {}), Distrust::Unreadable);
    let damaged = refusal(&mut client, &content, &bob.signing, |message| {
        message.body.as_mut().unwrap().0[100] ^= 1;
    });
    assert_eq!(damaged, Distrust::Unreadable);
    let empty = refusal(&mut client, &content, &bob.signing, |message| message.body = None);
    assert_eq!(empty, Distrust::Unreadable);
    // Refused rows are acknowledged as others are, or they would block the mailbox.
    client.acknowledge(u64::MAX);
    assert!(matches!(client.request().1, Request::Ack(ack) if ack.up_to == 9));
}

#[test]
fn replayed_mail_is_refused_also_after_a_restart_and_in_another_mailbox() {
    let (mut client, bob) = (Client::online(), bob());
    let message = bob.message(&client, 1, "one");
    client.row(message.clone());
    client.answer_devices(&bob, &bob.devices());
    client.row(message.clone());
    assert_eq!(client.texts().len(), 1, "the same row");
    client.events.clear();
    client.row(Message { sequence: 2, ..message.clone() });
    assert_eq!(client.refusal(), Distrust::Replayed);
    client.acknowledge(2);
    let mut restarted = Client::new(Receive::Everything, client.saved.clone());
    restarted.machine.handle_connected(restarted.now);
    restarted.frame(&messaging_wire::Event::Hello { version: 1, challenge: FixedBytes([3; 32]) }.to_frame());
    restarted.log_in(EPOCH + 1, 1);
    assert!(restarted.events.contains(&Event::MailboxReset));
    restarted.requests.clear();
    restarted.row(Message { sequence: 1, ..message });
    restarted.answer_devices(&bob, &bob.devices());
    assert_eq!(restarted.refusal(), Distrust::Replayed);
}

#[test]
fn plaintext_is_marked_and_more_so_from_a_party_with_keys() {
    let (mut client, bob) = (Client::online(), bob());
    let plain = |sequence| Message {
        encrypted: false,
        body: None,
        text: Some("plain".into()),
        ..bob.message(&Client::new(Receive::Nothing, State::default()), sequence, "")
    };
    client.row(plain(1));
    client.row(bob.message(&client, 2, "two"));
    client.answer_devices(&bob, &bob.devices());
    client.row(plain(3));
    let expected =
        [("plain", Protection::None), ("two", Protection::EndToEnd), ("plain", Protection::NoneDespiteKeys)];
    assert_eq!(client.texts(), expected);
}

#[test]
fn nothing_is_sent_to_keys_that_are_not_trusted() {
    let (mut client, bob) = (Client::online(), bob());
    client.send(&bob, false);
    client.answer_devices(&bob, &bob.devices());
    let (id, ..) = copies(&mut client);
    client.frame(&ok_frame(id, &stored()));
    client.sent().unwrap();
    client.disconnect();
    client.connect(0);
    client.answer(&Empty {});
    let fake = Peer { name: "bob", ..Peer::new("bob", 90) };
    let mut with_fake = bob.devices();
    with_fake.devices.push(fake.device());
    let legacy = Devices { legacy: true, ..Devices::default() };
    let without_devices = Devices { devices: Vec::new(), legacy: true, ..bob.devices() };
    for devices in [fake.devices(), with_fake, legacy, without_devices] {
        client.send(&bob, false);
        client.answer_devices(&bob, &devices);
        let refused = client.sent();
        assert!(matches!(refused, Err(RequestError::Distrusted { .. })), "{refused:?}");
        assert_eq!(client.requests, []);
        // The next one asks again.
        client.machine.trust(Operation(9), "nobody".parse().unwrap(), Fingerprint::of(&[0; 32]));
        client.machine.known_devices.clear();
        client.drain();
        client.done.clear();
    }
}

#[test]
fn changed_devices_are_checked_before_the_message_goes_to_them() {
    let (mut client, bob) = (Client::online(), bob());
    client.send(&bob, false);
    client.answer_devices(&bob, &bob.devices());
    let (id, first_id, _) = copies(&mut client);
    let mut devices = bob.devices();
    devices.devices.push(bob.with_device(60).device());
    let changed = |devices| ErrorBody {
        devices: Some(devices),
        ..ErrorBody::new(ErrorCode::DevicesChanged, "changed")
    };
    client.frame(&error_frame(id, &changed(devices.clone())));
    let (id, second_id, content) = copies(&mut client);
    assert!(matches!(content, messaging_wire::Content::Encrypted(copies) if copies.len() == 2));
    assert_eq!(first_id, second_id);
    // Now the server adds a device of its own.
    devices.devices.push(Peer::new("bob", 90).device());
    client.frame(&error_frame(id, &changed(devices)));
    assert_eq!(client.requests, []);
    let refused = client.sent();
    assert_eq!(refused, Err(RequestError::Distrusted { party: bob.party(), source: Distrust::Certificate }));
}

#[test]
fn a_trusted_fingerprint_replaces_the_pinned_one() {
    let (mut client, bob) = (Client::online(), bob());
    let new_bob = Peer { name: "bob", ..Peer::new("bob", 90) };
    client.send(&bob, false);
    client.answer_devices(&bob, &bob.devices());
    let (id, ..) = copies(&mut client);
    client.frame(&ok_frame(id, &stored()));
    client.sent().unwrap();
    client.machine.trust(Operation(3), bob.party(), Fingerprint::of(&new_bob.identity.public()));
    client.drain();
    client.done.clear();
    client.send(&bob, false);
    client.answer_devices(&bob, &new_bob.devices());
    let (id, ..) = copies(&mut client);
    client.frame(&ok_frame(id, &stored()));
    assert!(client.sent().is_ok());
    let party = bob.party();
    let saved = Change::Pinned { party, fingerprint: Fingerprint::of(&bob.identity.public()) };
    assert!(client.saved.apply(&saved).is_err());
}
