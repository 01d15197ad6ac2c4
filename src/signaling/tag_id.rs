//! The binary form of the server's tags.

use super::wire::Tag;
use data_encoding::BASE32_NOPAD;

/// Length of a tag id: 120 bits (S0-A24).
pub(super) const TAG_BYTES: usize = 15;

/// The id of a tag in the server's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct TagId(pub(super) [u8; TAG_BYTES]);

impl TagId {
    /// Parses a tag; returns `None` if it is not in the server's format.
    pub(super) fn of(tag: &Tag) -> Option<Self> {
        let text = tag.as_str().as_bytes();
        let mut upper = [0; TAG_LEN];
        if text.len() != TAG_LEN || !text.iter().all(|letter| LETTERS.contains(letter)) {
            return None;
        }
        upper.copy_from_slice(text);
        upper.make_ascii_uppercase();
        let mut bytes = [0; TAG_BYTES];
        BASE32_NOPAD.decode_mut(&upper, &mut bytes).ok()?;
        Some(Self(bytes))
    }

    /// Returns the tag as text.
    pub(super) fn tag(self) -> Option<Tag> {
        Tag::new(base32(&self.0))
    }
}

/// The base32 alphabet of tags, in lower case.
pub(super) const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// Length of a tag in characters.
pub(super) const TAG_LEN: usize = TAG_BYTES * 8 / 5;

pub(super) fn base32(bytes: &[u8]) -> String {
    let mut text = BASE32_NOPAD.encode(bytes);
    text.make_ascii_lowercase();
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_has_exactly_one_spelling() {
        let name = TagId([0x5a; TAG_BYTES]);
        let tag = name.tag().unwrap();
        assert_eq!((TagId::of(&tag), tag.as_str().len()), (Some(name), TAG_LEN));
        let upper = tag.as_str().to_uppercase();
        let longer = format!("{tag}a");
        for foreign in [upper.as_str(), &longer, "a", &"1".repeat(TAG_LEN), &"é".repeat(TAG_LEN / 2)] {
            assert_eq!(TagId::of(&Tag::new(foreign).unwrap()), None, "{foreign}");
        }
    }
}
