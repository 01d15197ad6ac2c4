//! The state machine with several devices of one account: copies of what one of them sends, and messages of a device that was removed.

use super::encryption::{self, Certificate, Content, CopyOf};
use super::error::{ErrorCode, RequestError};
use super::event::{Event, Protection};
use super::known_peers::Distrust;
use super::machine_tests::{Client, Peer, bob, copies, stored};
use crate::messaging_wire::{self, Devices, ErrorBody, FixedBytes, error_frame, ok_frame};

/// Another device of alice, whose account the client uses.
fn laptop(client: &Client) -> Peer {
    let mut laptop = Peer::new("alice", 80);
    laptop.identity = crate::messaging_wire::signing::SigningKey::from_seed(&[80; 32]).unwrap();
    assert_eq!(client.machine.account.user, "alice");
    laptop
}

/// Answers the question for bob's devices and the message to them; returns the id of the message.
fn send_to_bob(client: &mut Client) -> String {
    let bob = bob();
    client.machine.has_other_devices = true;
    client.send(&bob, false);
    client.answer_devices(&bob, &bob.devices());
    let (id, message_id, _) = copies(client);
    client.frame(&ok_frame(id, &stored()));
    message_id
}

#[test]
fn what_is_sent_is_copied_to_the_other_devices_before_the_user_is_told() {
    let mut client = Client::online();
    let laptop = laptop(&client);
    let message_id = send_to_bob(&mut client);
    assert!(client.done.is_empty());
    client.answer_devices(&laptop, &laptop.devices());
    let (id, copy_id, content) = copies(&mut client);
    assert_eq!(copy_id, format!("copy-{message_id}"));
    let messaging_wire::Content::Encrypted(copies) = content else { panic!("{content:?}") };
    let content = encryption::open(&copies[0].body.0, &laptop.encryption_secret).unwrap();
    let copy_of = CopyOf { to: "user:bob".into(), message_id: message_id.clone() };
    assert_eq!((content.copy_of, &*content.text), (Some(copy_of), "hello"));
    client.frame(&ok_frame(id, &stored()));
    let sent = client.sent().unwrap();
    assert_eq!((sent.message_id, sent.devices), (message_id, 1));
}

#[test]
fn a_copy_that_is_refused_is_no_failure_of_the_message() {
    let mut client = Client::online();
    let laptop = laptop(&client);
    let message_id = send_to_bob(&mut client);
    client.answer_devices(&laptop, &laptop.devices());
    let (id, ..) = copies(&mut client);
    client.frame(&error_frame(id, &ErrorBody::new(ErrorCode::MailboxFull, "full")));
    assert_eq!(client.sent().unwrap().message_id, message_id);
    // Nor is it one that there is no other device any more.
    let mut client = Client::online();
    let message_id = send_to_bob(&mut client);
    client.answer_devices(&laptop, &Devices { devices: Vec::new(), ..laptop.devices() });
    assert_eq!(client.sent().unwrap().message_id, message_id);
}

#[test]
fn a_copy_is_shown_as_sent_and_only_of_the_own_account() {
    let (mut client, bob) = (Client::online(), bob());
    let laptop = laptop(&client);
    let copy_of = Some(CopyOf { to: "user:bob".into(), message_id: "m".into() });
    let copy = Content { copy_of: copy_of.clone(), ..laptop.content(&client, "copy-m", "hello") };
    client.row(laptop.envelope(&copy, 1, &laptop.signing));
    client.answer_devices(&laptop, &laptop.devices());
    let Some(Event::SentElsewhere { to, message_id, text, .. }) = client.events.last() else {
        panic!("{:?}", client.events)
    };
    assert_eq!((to.as_wire(), &**message_id, &**text), ("user:bob", "m", "hello"));
    let forged = Content { copy_of, ..bob.content(&client, "copy-n", "from bob") };
    client.row(bob.envelope(&forged, 2, &bob.signing));
    client.answer_devices(&bob, &bob.devices());
    assert_eq!(client.texts(), [("from bob", Protection::EndToEnd)]);
}

#[test]
fn a_message_of_a_device_that_was_removed_is_shown_and_marked() {
    let (mut client, bob) = (Client::online(), bob());
    let phone = bob.with_device(60);
    let device = phone.device();
    let certificate = Certificate { encryption_key: device.encryption_key, signature: device.signature };
    let content = Content { certificate: Some(certificate), ..phone.content(&client, "m", "from the phone") };
    client.row(phone.envelope(&content, 1, &phone.signing));
    client.answer_devices(&bob, &bob.devices());
    assert_eq!(client.texts(), [("from the phone", Protection::RemovedDevice)]);
    // The other device is removed too: nobody can be written to, and what was sent before is still shown.
    let none = Devices { devices: Vec::new(), legacy: true, ..bob.devices() };
    let last = Content { message_id: "n".into(), text: "the last".into(), ..content };
    client.machine.known_devices.clear();
    client.row(phone.envelope(&last, 2, &phone.signing));
    client.answer_devices(&bob, &none);
    assert_eq!(client.texts()[1..], [("the last", Protection::RemovedDevice)]);
    client.machine.known_devices.clear();
    let uncertified = Content { message_id: "o".into(), certificate: None, ..last };
    client.events.clear();
    client.row(phone.envelope(&uncertified, 3, &phone.signing));
    client.answer_devices(&bob, &none);
    assert_eq!(client.refusal(), Distrust::Signature);
    client.send(&bob, false);
    assert!(matches!(client.sent(), Err(RequestError::Distrusted { source: Distrust::KeysWithheld, .. })));
}

#[test]
fn a_message_brings_the_certificate_of_the_login() {
    let (mut client, bob) = (Client::online(), bob());
    client.send(&bob, false);
    client.answer_devices(&bob, &bob.devices());
    let (_, _, content) = copies(&mut client);
    let messaging_wire::Content::Encrypted(copies) = content else { panic!("{content:?}") };
    let content = encryption::open(&copies[0].body.0, &bob.encryption_secret).unwrap();
    let encryption_key = FixedBytes(client.machine.account.keys.encryption_key);
    assert_eq!(content.certificate, Some(Certificate { encryption_key, signature: FixedBytes([4; 64]) }));
}
