//! Friend certificates: the owner signs "F may keep mail for me until T", and F agrees (S3-9, S3-10, S3-12, S3-A4).

use super::keys::{NodeKeys, Purpose, is_signed};
use super::mesh_time::MeshTime;
use super::node_id::NodeId;
use super::reader::Reader;

/// What both have signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FriendCertificate {
    /// The signing key of the friend.
    pub(super) friend_key: [u8; 32],
    /// When the certificate ends.
    pub(super) until: MeshTime,
    owner_signature: [u8; 64],
    friend_signature: [u8; 64],
}

fn statement(owner: NodeId, friend: NodeId, until: MeshTime) -> Vec<u8> {
    [&owner.bytes()[..], friend.bytes(), &until.0.to_be_bytes()].concat()
}

/// Signs the owner's half.
pub(super) fn name_friend(owner: &NodeKeys, friend: NodeId, until: MeshTime) -> [u8; 64] {
    owner.sign(Purpose::NameFriend, &statement(owner.id(), friend, until))
}

/// Signs the friend's half; `None` if the owner has not signed this.
pub(super) fn agree(
    friend: &NodeKeys,
    owner_key: &[u8; 32],
    until: MeshTime,
    owner_signature: &[u8; 64],
) -> Option<[u8; 64]> {
    let statement = statement(NodeId::of(owner_key), friend.id(), until);
    is_signed(owner_key, Purpose::NameFriend, &statement, owner_signature)
        .then(|| friend.sign(Purpose::AgreeFriend, &statement))
}

impl FriendCertificate {
    pub(super) const LEN: usize = 32 + 4 + 64 + 64;

    /// Joins both halves; `None` if one of them is wrong.
    pub(super) fn new(
        owner_key: &[u8; 32],
        friend_key: [u8; 32],
        until: MeshTime,
        [owner_signature, friend_signature]: [[u8; 64]; 2],
    ) -> Option<Self> {
        let certificate = Self { friend_key, until, owner_signature, friend_signature };
        certificate.is_signed_by_both(owner_key).then_some(certificate)
    }

    pub(super) fn friend(&self) -> NodeId {
        NodeId::of(&self.friend_key)
    }

    pub(super) fn is_signed_by_both(&self, owner_key: &[u8; 32]) -> bool {
        let statement = statement(NodeId::of(owner_key), self.friend(), self.until);
        is_signed(owner_key, Purpose::NameFriend, &statement, &self.owner_signature)
            && is_signed(&self.friend_key, Purpose::AgreeFriend, &statement, &self.friend_signature)
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.friend_key);
        out.extend(self.until.0.to_be_bytes());
        out.extend(self.owner_signature);
        out.extend(self.friend_signature);
    }

    /// Reads a certificate, whose signatures are not verified.
    pub(super) fn parse(reader: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            friend_key: reader.array()?,
            until: MeshTime(reader.u32()?),
            owner_signature: reader.array()?,
            friend_signature: reader.array()?,
        })
    }
}

#[cfg(test)]
pub(super) fn test_certificate(owner: &NodeKeys, friend: &NodeKeys, until: MeshTime) -> FriendCertificate {
    let named = name_friend(owner, friend.id(), until);
    let agreed = agree(friend, &owner.public().signing, until, &named).unwrap();
    FriendCertificate::new(&owner.public().signing, friend.public().signing, until, [named, agreed]).unwrap()
}

#[cfg(test)]
mod tests {
    use super::super::keys::test_keys;
    use super::*;

    #[test]
    fn a_friendship_needs_both_signatures_over_the_same_owner_friend_and_end() {
        let (owner, friend, other) = (test_keys(1), test_keys(2), test_keys(3));
        let until = MeshTime(1000);
        let key = owner.public().signing;
        let named = name_friend(&owner, friend.id(), until);
        let agreed = agree(&friend, &key, until, &named).unwrap();
        let certificate =
            FriendCertificate::new(&key, friend.public().signing, until, [named, agreed]).unwrap();
        assert_eq!(certificate.friend(), friend.id());
        assert!(!certificate.is_signed_by_both(&other.public().signing));
        let later = FriendCertificate { until: MeshTime(1001), ..certificate };
        assert!(!later.is_signed_by_both(&key), "the end is signed");
        let swapped = FriendCertificate { owner_signature: agreed, friend_signature: named, ..certificate };
        assert!(!swapped.is_signed_by_both(&key));
        let foreign = FriendCertificate { friend_key: other.public().signing, ..certificate };
        assert!(!foreign.is_signed_by_both(&key));
        // A friend agrees only to what the owner has signed, and only for itself.
        assert_eq!(agree(&friend, &key, MeshTime(9), &named), None);
        assert_eq!(agree(&other, &key, until, &named), None);
        assert_eq!(agree(&friend, &other.public().signing, until, &named), None);
    }
}
