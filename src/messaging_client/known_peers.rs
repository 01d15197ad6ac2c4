//! Which keys and messages are trusted. Pure; every such decision is in this file.
//!
//! The identity key of a party is pinned when it is first seen. From then on the server cannot replace it, deny that the party has keys, add a
//! device to it, or write in its name.

use super::encryption::{Content, OpenError};
use super::keys::Fingerprint;
use super::party_name::PartyName;
use crate::messaging_wire::signing::Statement;
use crate::messaging_wire::{Devices, FixedBytes};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Most parties whose identity is pinned.
const MAX_PEERS: usize = 4096;
/// Most devices of a party.
const MAX_DEVICES: usize = 64;

/// Why the server's statement about a party, or a message of it, is not trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Distrust {
    /// The party has another identity key than when it was first seen.
    #[error("the identity key has changed: it was {pinned}, now it is {shown}")]
    IdentityChanged {
        /// The fingerprint that is known.
        pinned: Fingerprint,
        /// The fingerprint that the server shows.
        shown: Fingerprint,
    },
    /// The server denies that the party has keys, which were seen before.
    #[error("the server denies its keys, which were seen before")]
    KeysWithheld,
    /// A device is not signed by the party's identity key.
    #[error("a device is not signed by the identity key")]
    Certificate,
    /// A message is not signed by a device of its sender.
    #[error("it is not signed by a device of the sender")]
    Signature,
    /// A message is not encrypted for this device, or has no readable content.
    #[error("it cannot be decrypted")]
    Unreadable,
    /// A message was signed for another recipient, or under another sender or message id.
    #[error("it was made for another recipient, or under another sender or id")]
    Misdirected,
    /// A message was received before, or is too old to tell.
    #[error("it was received before, or is too old to tell")]
    Replayed,
    /// As many identity keys are pinned as may be.
    #[error("too many parties are known")]
    TooManyPeers,
}

impl From<OpenError> for Distrust {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Undecryptable | OpenError::Content => Self::Unreadable,
            OpenError::Signature => Self::Signature,
        }
    }
}

/// A device of a party, signed by its pinned identity key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TrustedDevice {
    pub(super) device: i64,
    pub(super) signing_key: [u8; 32],
    pub(super) encryption_key: [u8; 32],
}

/// What is known of a party's keys after the server's answer was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PeerKeys {
    /// It reads encrypted messages.
    Devices {
        identity_key: [u8; 32],
        fingerprint: Fingerprint,
        /// The fingerprint is not pinned yet.
        is_new: bool,
        devices: Vec<TrustedDevice>,
    },
    /// It has no keys and never had any that were seen: plaintext only.
    Legacy,
}

/// The pinned identity keys, by the party's form on the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct KnownPeers(BTreeMap<String, Fingerprint>);

impl KnownPeers {
    /// Returns the pinned fingerprint of a party.
    pub(super) fn pinned(&self, party: &PartyName) -> Option<Fingerprint> {
        self.0.get(party.as_wire()).copied()
    }

    /// Pins a fingerprint, in place of the one before.
    pub(super) fn pin(&mut self, party: &PartyName, fingerprint: Fingerprint) {
        self.0.insert(party.as_wire().to_owned(), fingerprint);
    }

    /// Checks the server's answer to a question for the devices of a party.
    pub(super) fn assess_devices(&self, party: &PartyName, answer: &Devices) -> Result<PeerKeys, Distrust> {
        let pinned = self.pinned(party);
        let Some(FixedBytes(identity_key)) = &answer.identity_key else {
            return match (pinned, answer.devices.is_empty()) {
                (Some(_), _) => Err(Distrust::KeysWithheld),
                (None, false) => Err(Distrust::Certificate),
                (None, true) => Ok(PeerKeys::Legacy),
            };
        };
        let shown = Fingerprint::of(identity_key);
        if let Some(pinned) = pinned.filter(|pinned| *pinned != shown) {
            return Err(Distrust::IdentityChanged { pinned, shown });
        }
        if pinned.is_none() && self.0.len() >= MAX_PEERS {
            return Err(Distrust::TooManyPeers);
        }
        if answer.devices.len() > MAX_DEVICES {
            return Err(Distrust::Certificate);
        }
        if answer.devices.is_empty() && answer.legacy && pinned.is_some() {
            return Err(Distrust::KeysWithheld);
        }
        let user = party.as_wire().strip_prefix("user:").ok_or(Distrust::Certificate)?;
        let mut devices = Vec::with_capacity(answer.devices.len());
        for device in &answer.devices {
            let (signing_key, encryption_key) = (device.signing_key.0, device.encryption_key.0);
            let statement =
                Statement::Device { user, signing_key: &signing_key, encryption_key: &encryption_key };
            if !statement.is_signed(identity_key, &device.signature.0) {
                return Err(Distrust::Certificate);
            }
            devices.push(TrustedDevice { device: device.device, signing_key, encryption_key });
        }
        Ok(PeerKeys::Devices {
            identity_key: *identity_key,
            fingerprint: shown,
            is_new: pinned.is_none(),
            devices,
        })
    }
}

/// What the outside of a message says, and for whom it must be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Envelope<'a> {
    pub(super) from: &'a str,
    pub(super) message_id: &'a str,
    /// This account.
    pub(super) to: &'a PartyName,
    /// The encryption key of this device.
    pub(super) to_key: &'a [u8; 32],
}

/// Whether the device that has sent a message is still one of the sender's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SendingDevice {
    Current,
    /// The identity key has signed it, and the account does not list it any more.
    Removed,
}

/// Checks a content, whose signature was verified with the key that it names, against its envelope and the devices of its sender.
///
/// A certificate is good for ever, so a server could list a removed device again: a message that brings its certificate is no less trusted.
pub(super) fn assess_message(
    content: &Content,
    envelope: &Envelope<'_>,
    (sender, identity_key): (&[TrustedDevice], &[u8; 32]),
) -> Result<SendingDevice, Distrust> {
    let is_directed = content.from == envelope.from
        && content.message_id == envelope.message_id
        && content.to == envelope.to.as_wire()
        && content.to_key.0 == *envelope.to_key;
    if !is_directed {
        return Err(Distrust::Misdirected);
    }
    if sender.iter().any(|device| device.signing_key == content.from_key.0) {
        return Ok(SendingDevice::Current);
    }
    let (Some(user), Some(certificate)) = (envelope.from.strip_prefix("user:"), &content.certificate) else {
        return Err(Distrust::Signature);
    };
    let (signing_key, encryption_key) = (&content.from_key.0, &certificate.encryption_key.0);
    match (Statement::Device { user, signing_key, encryption_key })
        .is_signed(identity_key, &certificate.signature.0)
    {
        true => Ok(SendingDevice::Removed),
        false => Err(Distrust::Signature),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messaging_client::encryption::Certificate;
    use crate::messaging_wire::Device;
    use crate::messaging_wire::signing::SigningKey;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&[seed; 32]).unwrap()
    }

    fn bob() -> PartyName {
        "bob".parse().unwrap()
    }

    fn device(number: i64, user: &str, identity: &SigningKey) -> Device {
        let byte = u8::try_from(number).unwrap();
        let (signing_key, encryption_key) = (key(byte).public(), [byte; 32]);
        let statement =
            Statement::Device { user, signing_key: &signing_key, encryption_key: &encryption_key };
        Device {
            device: number,
            label: None,
            signing_key: FixedBytes(signing_key),
            encryption_key: FixedBytes(encryption_key),
            signature: FixedBytes(identity.sign(&statement)),
            created_at: 0,
        }
    }

    fn answer(identity: &SigningKey, devices: Vec<Device>) -> Devices {
        Devices { identity_key: Some(FixedBytes(identity.public())), devices, legacy: false }
    }

    /// A state in which bob's identity is pinned.
    fn pinned(identity: &SigningKey) -> KnownPeers {
        let mut peers = KnownPeers::default();
        peers.pin(&bob(), Fingerprint::of(&identity.public()));
        peers
    }

    #[test]
    fn the_first_identity_key_is_new_and_the_same_one_is_known_later() {
        let identity = key(100);
        let answer = answer(&identity, vec![device(1, "bob", &identity), device(2, "bob", &identity)]);
        let first = KnownPeers::default().assess_devices(&bob(), &answer).unwrap();
        let PeerKeys::Devices { fingerprint, is_new: true, devices, .. } = first else { panic!("{first:?}") };
        assert_eq!(fingerprint, Fingerprint::of(&identity.public()));
        assert_eq!(devices.iter().map(|device| device.device).collect::<Vec<_>>(), [1, 2]);
        let second = pinned(&identity).assess_devices(&bob(), &answer).unwrap();
        assert!(matches!(second, PeerKeys::Devices { is_new: false, .. }));
    }

    #[test]
    fn a_server_that_swaps_the_identity_key_is_refused() {
        let (real, other) = (key(100), key(101));
        let swapped = answer(&other, vec![device(1, "bob", &other)]);
        let [was, is] = [&real, &other].map(|key| Fingerprint::of(&key.public()));
        let refused = pinned(&real).assess_devices(&bob(), &swapped);
        assert_eq!(refused, Err(Distrust::IdentityChanged { pinned: was, shown: is }));
    }

    #[test]
    fn a_server_that_swaps_or_adds_a_device_key_is_refused() {
        let (real, other) = (key(100), key(101));
        let good = device(1, "bob", &real);
        let mut swapped_encryption = good.clone();
        swapped_encryption.encryption_key = FixedBytes([9; 32]);
        let mut swapped_signing = good.clone();
        swapped_signing.signing_key = FixedBytes(key(9).public());
        for bad in [
            swapped_encryption,
            swapped_signing,
            device(3, "bob", &other),
            // Of the same identity key, for another name.
            device(3, "bobby", &real),
        ] {
            let answer = answer(&real, vec![good.clone(), bad]);
            for peers in [KnownPeers::default(), pinned(&real)] {
                assert_eq!(peers.assess_devices(&bob(), &answer), Err(Distrust::Certificate));
            }
        }
        let without_identity = Devices { identity_key: None, devices: vec![good], legacy: false };
        assert_eq!(
            KnownPeers::default().assess_devices(&bob(), &without_identity),
            Err(Distrust::Certificate)
        );
    }

    #[test]
    fn a_server_that_declares_a_known_peer_legacy_is_refused() {
        let real = key(100);
        let nothing = Devices { identity_key: None, devices: Vec::new(), legacy: false };
        let legacy = Devices { legacy: true, ..nothing.clone() };
        let without_devices = Devices { legacy: true, ..answer(&real, Vec::new()) };
        for answer in [&nothing, &legacy, &without_devices] {
            assert_eq!(pinned(&real).assess_devices(&bob(), answer), Err(Distrust::KeysWithheld));
        }
        for answer in [&nothing, &legacy] {
            assert_eq!(KnownPeers::default().assess_devices(&bob(), answer), Ok(PeerKeys::Legacy));
        }
        // A party with an identity key is never legacy, even if it has no device.
        let known = KnownPeers::default().assess_devices(&bob(), &without_devices).unwrap();
        assert!(matches!(known, PeerKeys::Devices { devices, .. } if devices.is_empty()));
    }

    #[test]
    fn no_more_identities_are_pinned_than_may_be() {
        let identity = key(100);
        let mut peers = KnownPeers::default();
        for n in 0..MAX_PEERS {
            peers.pin(&format!("peer{n}").parse().unwrap(), Fingerprint::of(&[0; 32]));
        }
        let full = peers.assess_devices(&bob(), &answer(&identity, vec![device(1, "bob", &identity)]));
        assert_eq!(full, Err(Distrust::TooManyPeers));
        let many = (0..=MAX_DEVICES).map(|_| device(1, "bob", &identity)).collect();
        let refused = KnownPeers::default().assess_devices(&bob(), &answer(&identity, many));
        assert_eq!(refused, Err(Distrust::Certificate));
    }

    #[test]
    fn a_message_is_for_this_device_from_a_device_of_its_sender_under_its_id() {
        let (alice, me) = ("alice".parse().unwrap(), [7; 32]);
        let sender = TrustedDevice { device: 1, signing_key: key(1).public(), encryption_key: [1; 32] };
        let envelope = Envelope { from: "user:bob", message_id: "m1", to: &alice, to_key: &me };
        let content = Content {
            from: "user:bob".into(),
            from_key: FixedBytes(sender.signing_key),
            to: "user:alice".into(),
            to_key: FixedBytes(me),
            message_id: "m1".into(),
            sent_at: 0,
            certificate: None,
            copy_of: None,
            text: "hello".into(),
        };
        let identity = key(100);
        let identity_key = &identity.public();
        let current = assess_message(&content, &envelope, (&[sender], identity_key));
        assert_eq!(current, Ok(SendingDevice::Current));
        let misdirected: [fn(&mut Content); 4] = [
            |content| content.from = "user:carol".into(),
            |content| content.to = "user:carol".into(),
            |content| content.to_key = FixedBytes([8; 32]),
            |content| content.message_id = "m2".into(),
        ];
        for change in misdirected {
            let mut changed = content.clone();
            change(&mut changed);
            let assessed = assess_message(&changed, &envelope, (&[sender], identity_key));
            assert_eq!(assessed, Err(Distrust::Misdirected));
        }
        let forged = Content { from_key: FixedBytes(key(9).public()), ..content.clone() };
        let forged = assess_message(&forged, &envelope, (&[sender], identity_key));
        assert_eq!(forged, Err(Distrust::Signature));
        assert_eq!(assess_message(&content, &envelope, (&[], identity_key)), Err(Distrust::Signature));
        // Of a device that was removed, with the certificate of the identity key, of another one, or of another user.
        let certified = |user: &str, identity: &SigningKey| {
            let Device { encryption_key, signature, .. } = device(1, user, identity);
            Content { certificate: Some(Certificate { encryption_key, signature }), ..content.clone() }
        };
        for (content, expected) in [
            (certified("bob", &identity), Ok(SendingDevice::Removed)),
            (certified("bob", &key(101)), Err(Distrust::Signature)),
            (certified("bobby", &identity), Err(Distrust::Signature)),
        ] {
            assert_eq!(assess_message(&content, &envelope, (&[], identity_key)), expected);
        }
    }
}
