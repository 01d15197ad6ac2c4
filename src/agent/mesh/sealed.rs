//! What one node tells another so that no node between them can read, change or forge it: HPKE for the receiver around a content that the
//! sender has signed.

use super::frame::MAX_SEALED;
use super::keys::{NodeKeys, PublicKeys, Purpose, is_signed};
use super::mesh_time::MeshTime;
use super::node_id::NodeId;
use super::reader::{Reader, write_long};
use super::record::{is_usable, read_endpoint, write_endpoint};
use crate::messaging_client::encryption;
use rand::CryptoRng;
use std::net::SocketAddr;

const INFO: &[u8] = b"ginnel mesh sealed v1";
/// Longest message of an application.
pub(super) const MAX_BODY: usize = 16 * 1024;
/// Longest parameters of ICE.
pub(super) const MAX_PARAMETERS: usize = 2048;

/// The id of a message, chosen at random by the sender.
pub(super) type MessageId = [u8; 16];

/// The content of a sealed payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    Ping {
        nonce: u64,
    },
    Pong {
        nonce: u64,
    },
    /// Parameters of ICE, or a relay's address; `relay` carries the connection.
    Offer {
        attempt: u64,
        relay: Option<NodeId>,
        parameters: Vec<u8>,
    },
    /// Empty parameters refuse.
    Answer {
        attempt: u64,
        parameters: Vec<u8>,
    },
    Message {
        id: MessageId,
        expires: MeshTime,
        body: Vec<u8>,
    },
    Delivered {
        id: MessageId,
    },
    /// To a friend of `owner`: keep this.
    Keep {
        owner: NodeId,
        id: MessageId,
        expires: MeshTime,
        sealed: Vec<u8>,
    },
    /// The friend keeps it, or does not.
    Kept {
        owner: NodeId,
        id: MessageId,
        is_stored: bool,
    },
    /// To a friend: send what you keep for me.
    Collect,
    /// From a friend: this was kept.
    Mail {
        id: MessageId,
        sealed: Vec<u8>,
    },
    /// To a friend: it has arrived.
    Taken {
        id: MessageId,
    },
    NameFriend {
        until: MeshTime,
        signature: [u8; 64],
    },
    AgreeFriend {
        until: MeshTime,
        signature: [u8; 64],
    },
    /// Send one Binding request with this transaction to the own endpoint.
    CheckFilter {
        endpoint: SocketAddr,
        transaction: [u8; 12],
    },
}

/// A content that was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Opened {
    pub(super) from: NodeId,
    pub(super) from_key: [u8; 32],
    pub(super) sent: MeshTime,
    pub(super) content: Content,
}

impl Content {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Ping { nonce } => numbered(out, 1, *nonce, &[]),
            Self::Pong { nonce } => numbered(out, 2, *nonce, &[]),
            Self::Offer { attempt, relay, parameters } => {
                let relay = relay.map_or(vec![0], |relay| [&[1], &relay.bytes()[..]].concat());
                numbered(out, 3, *attempt, &relay);
                write_long(out, parameters);
            }
            Self::Answer { attempt, parameters } => {
                numbered(out, 4, *attempt, &[]);
                write_long(out, parameters);
            }
            Self::Message { id, expires, body } => {
                tagged(out, 5, &[id, &expires.0.to_be_bytes()]);
                write_long(out, body);
            }
            Self::Delivered { id } => tagged(out, 6, &[id]),
            Self::Keep { owner, id, expires, sealed } => {
                tagged(out, 7, &[owner.bytes(), id, &expires.0.to_be_bytes()]);
                write_long(out, sealed);
            }
            Self::Kept { owner, id, is_stored } => {
                tagged(out, 8, &[owner.bytes(), id, &[u8::from(*is_stored)]]);
            }
            Self::Collect => out.push(9),
            Self::Mail { id, sealed } => {
                tagged(out, 10, &[id]);
                write_long(out, sealed);
            }
            Self::Taken { id } => tagged(out, 11, &[id]),
            Self::NameFriend { until, signature } => {
                tagged(out, 12, &[&until.0.to_be_bytes(), signature]);
            }
            Self::AgreeFriend { until, signature } => {
                tagged(out, 13, &[&until.0.to_be_bytes(), signature]);
            }
            Self::CheckFilter { endpoint, transaction } => {
                tagged(out, 14, &[transaction]);
                write_endpoint(out, *endpoint);
            }
        }
    }

    fn parse(mut reader: Reader<'_>) -> Option<Self> {
        let r = &mut reader;
        let content = match r.u8()? {
            1 => Self::Ping { nonce: r.u64()? },
            2 => Self::Pong { nonce: r.u64()? },
            3 => {
                let attempt = r.u64()?;
                let relay = match r.u8()? {
                    0 => None,
                    1 => Some(r.node()?),
                    _ => return None,
                };
                Self::Offer { attempt, relay, parameters: r.long(MAX_PARAMETERS)?.to_vec() }
            }
            4 => Self::Answer { attempt: r.u64()?, parameters: r.long(MAX_PARAMETERS)?.to_vec() },
            5 => Self::Message {
                id: r.array()?,
                expires: MeshTime(r.u32()?),
                body: r.long(MAX_BODY)?.to_vec(),
            },
            6 => Self::Delivered { id: r.array()? },
            7 => Self::Keep {
                owner: r.node()?,
                id: r.array()?,
                expires: MeshTime(r.u32()?),
                sealed: r.long(MAX_SEALED)?.to_vec(),
            },
            8 => Self::Kept { owner: r.node()?, id: r.array()?, is_stored: r.u8()? == 1 },
            9 => Self::Collect,
            10 => Self::Mail { id: r.array()?, sealed: r.long(MAX_SEALED)?.to_vec() },
            11 => Self::Taken { id: r.array()? },
            12 => Self::NameFriend { until: MeshTime(r.u32()?), signature: r.array()? },
            13 => Self::AgreeFriend { until: MeshTime(r.u32()?), signature: r.array()? },
            14 => {
                let transaction = r.array()?;
                let endpoint = read_endpoint(r).filter(|endpoint| is_usable(*endpoint))?;
                Self::CheckFilter { endpoint, transaction }
            }
            _ => return None,
        };
        reader.end(content)
    }
}

fn numbered(out: &mut Vec<u8>, kind: u8, number: u64, rest: &[u8]) {
    tagged(out, kind, &[&number.to_be_bytes(), rest]);
}

fn tagged(out: &mut Vec<u8>, kind: u8, fields: &[&[u8]]) {
    out.push(kind);
    fields.iter().for_each(|field| out.extend(*field));
}

/// Signs a content and encrypts it; `None` if the receiver's key is invalid.
pub(super) fn seal(
    content: &Content,
    sent: MeshTime,
    keys: &NodeKeys,
    receiver: &PublicKeys,
    random: &mut impl CryptoRng,
) -> Option<Vec<u8>> {
    let mut encoded = sent.0.to_be_bytes().to_vec();
    content.encode(&mut encoded);
    let id = receiver.id();
    let signature = keys.sign(Purpose::Sealed, &[&id.bytes()[..], &encoded].concat());
    let plaintext = [&keys.public().signing[..], &signature, &encoded].concat();
    encryption::encrypt_bytes(&receiver.encryption, (INFO, id.bytes()), &plaintext, random)
}

/// Decrypts a content and verifies its signature; `None` if it is not for these keys, or malformed.
pub(super) fn open(sealed: &[u8], keys: &NodeKeys) -> Option<Opened> {
    let id = keys.id();
    let plaintext = encryption::decrypt_bytes(keys.encryption_secret(), (INFO, id.bytes()), sealed)?;
    let mut reader = Reader(&plaintext);
    let (from_key, signature) = (reader.array::<32>()?, reader.array::<64>()?);
    let signed = [&id.bytes()[..], reader.0].concat();
    if !is_signed(&from_key, Purpose::Sealed, &signed, &signature) {
        return None;
    }
    let sent = MeshTime(reader.u32()?);
    Some(Opened { from: NodeId::of(&from_key), from_key, sent, content: Content::parse(reader)? })
}

#[cfg(test)]
mod tests {
    use super::super::keys::test_keys;
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;

    fn examples() -> Vec<Content> {
        let (owner, id, time) = (NodeId::of(&[7; 32]), [5; 16], MeshTime(9));
        let (sealed, parameters) = (vec![3; 40], vec![4; 50]);
        vec![
            Content::Ping { nonce: 1 },
            Content::Pong { nonce: u64::MAX },
            Content::Offer { attempt: 5, relay: None, parameters: parameters.clone() },
            Content::Offer { attempt: 5, relay: Some(owner), parameters: Vec::new() },
            Content::Answer { attempt: 5, parameters },
            Content::Message { id, expires: time, body: vec![1; MAX_BODY] },
            Content::Delivered { id },
            Content::Keep { owner, id, expires: time, sealed: sealed.clone() },
            Content::Kept { owner, id, is_stored: true },
            Content::Collect,
            Content::Mail { id, sealed },
            Content::Taken { id },
            Content::NameFriend { until: time, signature: [1; 64] },
            Content::AgreeFriend { until: time, signature: [2; 64] },
            Content::CheckFilter { endpoint: "192.0.2.1:4".parse().unwrap(), transaction: [6; 12] },
        ]
    }

    #[test]
    fn what_is_sealed_is_opened_by_its_receiver_only_and_names_its_sender() {
        let (sender, receiver, other) = (test_keys(1), test_keys(2), test_keys(3));
        let random = &mut ChaCha20Rng::seed_from_u64(1);
        for content in examples() {
            let sealed = seal(&content, MeshTime(77), &sender, receiver.public(), random).unwrap();
            let opened = open(&sealed, &receiver).unwrap();
            assert_eq!((opened.from, opened.sent), (sender.id(), MeshTime(77)));
            assert_eq!(opened.content, content);
            assert_eq!(open(&sealed, &other), None);
        }
    }

    #[test]
    fn what_was_changed_or_sealed_for_another_node_is_not_opened() {
        let (sender, receiver, other) = (test_keys(1), test_keys(2), test_keys(3));
        let random = &mut ChaCha20Rng::seed_from_u64(1);
        let sealed = seal(&Content::Collect, MeshTime(1), &sender, receiver.public(), random).unwrap();
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(open(&changed, &receiver), None, "byte {at}");
        }
        // A receiver cannot pass a signed content on to somebody else.
        let plaintext =
            encryption::decrypt_bytes(receiver.encryption_secret(), (INFO, receiver.id().bytes()), &sealed)
                .unwrap();
        let other_id = other.id();
        let context = (INFO, &other_id.bytes()[..]);
        let passed_on =
            encryption::encrypt_bytes(&other.public().encryption, context, &plaintext, random).unwrap();
        assert_eq!(open(&passed_on, &other), None);
    }

    #[test]
    fn a_kept_message_of_the_greatest_length_fits_a_frame() {
        let (sender, receiver) = (test_keys(1), test_keys(2));
        let random = &mut ChaCha20Rng::seed_from_u64(1);
        let message = Content::Message { id: [0; 16], expires: MeshTime(1), body: vec![0; MAX_BODY] };
        let sealed = seal(&message, MeshTime(1), &sender, receiver.public(), random).unwrap();
        let keep = Content::Keep { owner: receiver.id(), id: [0; 16], expires: MeshTime(1), sealed };
        let sealed = seal(&keep, MeshTime(1), &sender, receiver.public(), random).unwrap();
        assert!(sealed.len() <= MAX_SEALED);
        assert_eq!(open(&sealed, &receiver).unwrap().content, keep);
    }
}
