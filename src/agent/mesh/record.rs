//! The signed record of a node: its keys, name, endpoints, NAT and friends (S3-15).
//!
//! The encoding is canonical: every record has one form. Nobody but the owner can make one, and a [`VerifiedRecord`] exists only after its
//! signatures were verified, so that no code can store or forward anything else.

use super::certificate::FriendCertificate;
use super::keys::{NodeKeys, PublicKeys, Purpose, is_signed};
use super::mesh_time::{MAX_NUMBER, MeshTime};
use super::node_id::NodeId;
use super::reader::Reader;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Longest encoding.
pub(super) const MAX_RECORD: usize = 1024;
/// Longest name, in bytes.
pub(super) const MAX_NAME: usize = 48;
/// Most endpoints.
pub(super) const MAX_ENDPOINTS: usize = 4;
/// Most friends.
pub(super) const MAX_FRIENDS: usize = 4;
/// How far the end of a record may be in the future.
pub(super) const MAX_LIFETIME: Duration = Duration::from_secs(8 * 86_400);
const VERSION: u8 = 1;
const OFFERS_RELAY: u8 = 1;

/// What is known of a node's NAT (S3-28).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum NatKind {
    #[default]
    Unknown,
    /// No NAT.
    Open,
    /// One mapping for all destinations, open to everybody.
    FullCone,
    /// One mapping for all destinations, open only to those that the node has sent to.
    Restricted,
    /// A mapping of its own for each destination.
    Symmetric,
}

const NAT_KINDS: [NatKind; 5] =
    [NatKind::Unknown, NatKind::Open, NatKind::FullCone, NatKind::Restricted, NatKind::Symmetric];

impl NatKind {
    /// Returns whether a node that it has never sent to can reach it.
    pub(super) fn is_reachable(self) -> bool {
        matches!(self, Self::Open | Self::FullCone)
    }

    /// Returns whether hole punching between both can work (S3-25); a restricted cone is taken for a port-restricted one.
    pub(super) fn can_punch(self, other: Self) -> bool {
        !matches!(
            (self, other),
            (Self::Symmetric, Self::Symmetric | Self::Restricted) | (Self::Restricted, Self::Symmetric)
        )
    }
}

/// The content of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NodeRecord {
    pub(super) keys: PublicKeys,
    /// Grows with every record; the highest wins.
    pub(super) sequence: u32,
    /// The incarnation: grows with every start, and when others take the node for gone. Signed here, so that only the owner raises it.
    pub(super) epoch: u32,
    pub(super) expires: MeshTime,
    pub(super) nat: NatKind,
    /// Relays for nodes that cannot punch.
    pub(super) offers_relay: bool,
    pub(super) name: String,
    /// Where the node can be reached, the best first.
    pub(super) endpoints: Vec<SocketAddr>,
    pub(super) friends: Vec<FriendCertificate>,
}

/// A record whose signatures are right.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct VerifiedRecord {
    record: NodeRecord,
    id: NodeId,
    bytes: Vec<u8>,
}

/// Why bytes are no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum RecordError {
    #[error("the record is longer than {MAX_RECORD} bytes")]
    TooLong,
    #[error("the record is malformed")]
    Malformed,
    #[error("a field of the record is not allowed")]
    Field,
    #[error("the record is not signed by its owner")]
    Signature,
    #[error("a friend of the record has not agreed, or was not named by the owner")]
    Friend,
}

/// Returns whether others may be told to send there.
pub(super) fn is_usable(endpoint: SocketAddr) -> bool {
    let ip = endpoint.ip();
    endpoint.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && ip == ip.to_canonical()
}

/// Returns whether a name can be shown: not too long, and without control characters.
pub(super) fn is_name(name: &str) -> bool {
    name.len() <= MAX_NAME && !name.chars().any(char::is_control)
}

pub(super) fn write_endpoint(out: &mut Vec<u8>, endpoint: SocketAddr) {
    match endpoint.ip() {
        IpAddr::V4(ip) => {
            out.push(4);
            out.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(6);
            out.extend(ip.octets());
        }
    }
    out.extend(endpoint.port().to_be_bytes());
}

pub(super) fn read_endpoint(reader: &mut Reader<'_>) -> Option<SocketAddr> {
    let ip = match reader.u8()? {
        4 => IpAddr::from(reader.array::<4>()?),
        6 => IpAddr::from(reader.array::<16>()?),
        _ => return None,
    };
    Some(SocketAddr::new(ip, reader.u16()?))
}

impl NodeRecord {
    fn is_allowed(&self) -> bool {
        is_name(&self.name)
            && self.endpoints.len() <= MAX_ENDPOINTS
            && self.endpoints.iter().all(|endpoint| is_usable(*endpoint))
            && self.friends.len() <= MAX_FRIENDS
            && self.sequence <= MAX_NUMBER
            && self.epoch <= self.sequence
            && self.expires.0 <= MAX_NUMBER
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend(self.keys.signing);
        out.extend(self.keys.encryption);
        for number in [self.sequence, self.epoch, self.expires.0] {
            out.extend(number.to_be_bytes());
        }
        out.push(self.nat as u8);
        out.push(if self.offers_relay { OFFERS_RELAY } else { 0 });
        out.push(self.name.len() as u8);
        out.extend(self.name.as_bytes());
        out.push(self.endpoints.len() as u8);
        for endpoint in &self.endpoints {
            write_endpoint(&mut out, *endpoint);
        }
        out.push(self.friends.len() as u8);
        for friend in &self.friends {
            friend.encode(&mut out);
        }
        out
    }

    fn parse(reader: &mut Reader<'_>) -> Option<Self> {
        if reader.u8()? != VERSION {
            return None;
        }
        let keys = PublicKeys { signing: reader.array()?, encryption: reader.array()? };
        let (sequence, epoch, expires) = (reader.u32()?, reader.u32()?, MeshTime(reader.u32()?));
        let nat = *NAT_KINDS.get(usize::from(reader.u8()?))?;
        let offers_relay = match reader.u8()? {
            0 => false,
            OFFERS_RELAY => true,
            _ => return None,
        };
        let len = usize::from(reader.u8()?);
        let name = str::from_utf8(reader.bytes(len)?).ok()?.to_owned();
        let count = usize::from(reader.u8()?);
        let endpoints = (0..count).map(|_| read_endpoint(reader)).collect::<Option<_>>()?;
        let count = usize::from(reader.u8()?);
        let friends = (0..count).map(|_| FriendCertificate::parse(reader)).collect::<Option<_>>()?;
        Some(Self { keys, sequence, epoch, expires, nat, offers_relay, name, endpoints, friends })
    }

    /// Signs the record.
    ///
    /// # Errors
    /// [`RecordError::Field`] if a field is not allowed.
    pub(super) fn sign(self, keys: &NodeKeys) -> Result<Arc<VerifiedRecord>, RecordError> {
        if !self.is_allowed() || self.keys != *keys.public() {
            return Err(RecordError::Field);
        }
        let mut bytes = self.encode();
        let signature = keys.sign(Purpose::Record, &bytes);
        bytes.extend(signature);
        let verified = Arc::new(VerifiedRecord { id: self.keys.id(), record: self, bytes });
        #[cfg(test)]
        memo::insert(&verified);
        Ok(verified)
    }
}

impl VerifiedRecord {
    /// Parses and verifies a record. Whether its time is right, [`VerifiedRecord::is_current`] decides.
    ///
    /// # Errors
    /// [`RecordError`] says what is wrong.
    pub(super) fn verify(bytes: &[u8]) -> Result<Arc<Self>, RecordError> {
        if bytes.len() > MAX_RECORD {
            return Err(RecordError::TooLong);
        }
        #[cfg(test)]
        if let Some(known) = memo::known(bytes) {
            return Ok(known);
        }
        let mut reader = Reader(bytes);
        let record = NodeRecord::parse(&mut reader).ok_or(RecordError::Malformed)?;
        let signed = &bytes[..bytes.len() - reader.0.len()];
        let signature: [u8; 64] = reader.0.try_into().map_err(|_| RecordError::Malformed)?;
        if !record.is_allowed() {
            return Err(RecordError::Field);
        }
        if !is_signed(&record.keys.signing, Purpose::Record, signed, &signature) {
            return Err(RecordError::Signature);
        }
        if !record.friends.iter().all(|friend| friend.is_signed_by_both(&record.keys.signing)) {
            return Err(RecordError::Friend);
        }
        let verified = Arc::new(Self { id: record.keys.id(), record, bytes: bytes.to_vec() });
        #[cfg(test)]
        memo::insert(&verified);
        Ok(verified)
    }

    /// Returns whether the record has not expired, and ends no later than a record may.
    pub(super) fn is_current(&self, now: MeshTime) -> bool {
        now < self.record.expires && self.record.expires <= now.after(MAX_LIFETIME)
    }

    pub(super) fn id(&self) -> NodeId {
        self.id
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl std::ops::Deref for VerifiedRecord {
    type Target = NodeRecord;

    fn deref(&self) -> &NodeRecord {
        &self.record
    }
}

/// Records that were verified before, so that a thousand nodes in one thread share them and verify each of them once.
#[cfg(test)]
mod memo {
    use super::VerifiedRecord;
    use std::cell::RefCell;
    use std::collections::HashMap;
    use std::sync::Arc;

    thread_local! {
        static KNOWN: RefCell<HashMap<Vec<u8>, Arc<VerifiedRecord>>> = RefCell::default();
    }

    pub(super) fn known(bytes: &[u8]) -> Option<Arc<VerifiedRecord>> {
        KNOWN.with_borrow(|known| known.get(bytes).cloned())
    }

    pub(super) fn insert(record: &Arc<VerifiedRecord>) {
        KNOWN.with_borrow_mut(|known| known.insert(record.bytes.clone(), Arc::clone(record)));
    }
}

#[cfg(test)]
pub(super) fn test_record(keys: &NodeKeys, sequence: u32) -> NodeRecord {
    NodeRecord {
        keys: *keys.public(),
        sequence,
        epoch: 1,
        expires: MeshTime(100_000),
        nat: NatKind::Open,
        offers_relay: false,
        name: "a node".into(),
        endpoints: vec!["203.0.113.5:4000".parse().unwrap()],
        friends: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::certificate::test_certificate;
    use super::super::keys::test_keys;
    use super::*;
    use proptest::prelude::*;

    fn full_record(keys: &NodeKeys) -> NodeRecord {
        let friends = (10..14).map(|number| test_certificate(keys, &test_keys(number), MeshTime(90_000)));
        NodeRecord {
            nat: NatKind::Restricted,
            offers_relay: true,
            name: "x".repeat(MAX_NAME),
            endpoints: ["[2001:db8::1]:1", "[2001:db8::2]:2", "[2001:db8::3]:3", "[2001:db8::4]:4"]
                .map(|text| text.parse().unwrap())
                .to_vec(),
            friends: friends.collect(),
            ..test_record(keys, 7)
        }
    }

    #[test]
    fn a_record_is_read_as_it_is_written_and_the_largest_has_its_room() {
        let keys = test_keys(1);
        for record in [test_record(&keys, 7), full_record(&keys)] {
            let signed = record.clone().sign(&keys).unwrap();
            assert!(signed.bytes().len() <= MAX_RECORD, "{}", signed.bytes().len());
            let mut reader = Reader(signed.bytes());
            assert_eq!(NodeRecord::parse(&mut reader), Some(record.clone()));
            assert_eq!(reader.0.len(), 64);
            assert_eq!(VerifiedRecord::verify(signed.bytes()).unwrap().id(), keys.id());
        }
        assert_eq!(VerifiedRecord::verify(&[0; MAX_RECORD + 1]), Err(RecordError::TooLong));
    }

    #[test]
    fn a_record_that_was_changed_anywhere_or_signed_by_another_is_refused() {
        let (keys, other) = (test_keys(1), test_keys(2));
        let bytes = full_record(&keys).sign(&keys).unwrap().bytes().to_vec();
        for at in (0..bytes.len()).step_by(3) {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            assert!(VerifiedRecord::verify(&changed).is_err(), "byte {at}");
        }
        for len in (0..bytes.len()).step_by(7) {
            assert!(VerifiedRecord::verify(&bytes[..len]).is_err(), "length {len}");
        }
        assert!(VerifiedRecord::verify(&[&bytes[..], &[0]].concat()).is_err());
        let mut forged = test_record(&keys, 8).encode();
        let signature = other.sign(Purpose::Record, &forged);
        forged.extend(signature);
        assert_eq!(VerifiedRecord::verify(&forged), Err(RecordError::Signature));
        assert_eq!(test_record(&keys, 8).sign(&other), Err(RecordError::Field));
    }

    #[test]
    fn a_friend_who_has_not_agreed_spoils_the_record() {
        let (keys, friend, other) = (test_keys(1), test_keys(2), test_keys(3));
        let foreign = test_certificate(&other, &friend, MeshTime(9000));
        let mut bytes = NodeRecord { friends: vec![foreign], ..test_record(&keys, 1) }.encode();
        let signature = keys.sign(Purpose::Record, &bytes);
        bytes.extend(signature);
        assert_eq!(VerifiedRecord::verify(&bytes), Err(RecordError::Friend));
    }

    #[test]
    fn fields_that_mislead_are_refused_even_when_they_are_signed() {
        let keys = test_keys(1);
        let at = |text: &str| vec![text.parse().unwrap()];
        let base = || test_record(&keys, 7);
        for wrong in [
            NodeRecord { name: "\u{1b}]0;x".into(), ..base() },
            NodeRecord { name: "x".repeat(MAX_NAME + 1), ..base() },
            NodeRecord { endpoints: at("0.0.0.0:4"), ..base() },
            NodeRecord { endpoints: at("224.0.0.1:4"), ..base() },
            NodeRecord { endpoints: at("192.0.2.1:0"), ..base() },
            NodeRecord { endpoints: at("[::ffff:192.0.2.1]:4"), ..base() },
            NodeRecord { endpoints: vec!["192.0.2.1:1".parse().unwrap(); 5], ..base() },
            NodeRecord { epoch: 8, ..base() },
            NodeRecord { sequence: MAX_NUMBER + 1, ..base() },
        ] {
            let mut bytes = wrong.encode();
            let signature = keys.sign(Purpose::Record, &bytes);
            bytes.extend(signature);
            assert_eq!(VerifiedRecord::verify(&bytes), Err(RecordError::Field), "{wrong:?}");
            assert_eq!(wrong.sign(&keys), Err(RecordError::Field));
        }
    }

    #[test]
    fn a_record_ends_and_cannot_be_made_to_last() {
        let keys = test_keys(1);
        let record =
            |expires| NodeRecord { expires: MeshTime(expires), ..test_record(&keys, 7) }.sign(&keys).unwrap();
        let now = MeshTime(1000);
        assert!(record(1001).is_current(now));
        assert!(!record(1000).is_current(now));
        assert!(record(now.after(MAX_LIFETIME).0).is_current(now));
        assert!(!record(now.after(MAX_LIFETIME).0 + 1).is_current(now));
    }

    #[test]
    fn symmetric_nats_meet_neither_each_other_nor_a_restricted_one() {
        for (index, one) in NAT_KINDS.into_iter().enumerate() {
            assert_eq!(one as usize, index, "the number on the wire");
            for other in NAT_KINDS {
                let hard = [one, other].contains(&NatKind::Symmetric)
                    && [one, other].iter().all(|nat| matches!(nat, NatKind::Symmetric | NatKind::Restricted));
                assert_eq!(one.can_punch(other), !hard, "{one:?} {other:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = VerifiedRecord::verify(&bytes);
            let _ = VerifiedRecord::verify(&[&[VERSION][..], &bytes].concat());
        }
    }
}
