//! The BLAKE3 tree of a file, by groups of 1 MiB.
//!
//! The chaining value of a group can be computed and compared without the rest of the file, and all of them together give the hash of the file,
//! the same as that of `b3sum`. So the sender hashes what it reads once, the receiver what it writes, and neither reads again what was verified.

use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

/// Bytes of a group.
pub(crate) const GROUP: u64 = 1 << 20;
/// Length of a hash and of a chaining value.
pub(crate) const HASH_LEN: usize = 32;
/// The hash of a file, or the chaining value of a group.
pub(crate) type Hash = [u8; HASH_LEN];

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Returns the number of groups of a file; an empty file has none.
pub(crate) fn group_count(size: u64) -> u64 {
    size.div_ceil(GROUP)
}

/// The chaining values of the first groups of a file, merged as far as possible: as many as the number of groups has binary digits.
#[derive(Debug, Clone, Default)]
struct Nodes {
    stack: Vec<Hash>,
    groups: u64,
    /// The last group is merged only when another one follows: the root is merged in another way.
    last: Option<Hash>,
}

impl Nodes {
    fn push(&mut self, value: Hash) {
        if let Some(mut node) = self.last.replace(value) {
            self.groups += 1;
            let mut count = self.groups;
            while count & 1 == 0
                && let Some(left) = self.stack.pop()
            {
                node = merge_subtrees_non_root(&left, &node, Mode::Hash);
                count >>= 1;
            }
            self.stack.push(node);
        }
    }

    /// Returns the hash of a file of at least two groups.
    fn root(mut self) -> Option<Hash> {
        let mut right = self.last?;
        loop {
            let left = self.stack.pop()?;
            if self.stack.is_empty() {
                return Some(*merge_subtrees_root(&left, &right, Mode::Hash).as_bytes());
            }
            right = merge_subtrees_non_root(&left, &right, Mode::Hash);
        }
    }
}

/// Hashes the content of one file in order.
#[derive(Debug)]
pub(crate) struct TreeHasher {
    size: u64,
    position: u64,
    hasher: blake3::Hasher,
    nodes: Nodes,
}

impl TreeHasher {
    /// Begins at the start of a file of this size.
    pub(crate) fn new(size: u64) -> Self {
        Self { size, position: 0, hasher: blake3::Hasher::new(), nodes: Nodes::default() }
    }

    /// Takes the chaining value of the next group, whose content was hashed before.
    pub(crate) fn skip_group(&mut self, value: Hash) {
        self.nodes.push(value);
        self.position = self.group_end();
        self.begin_group();
    }

    /// Moves to the start of a group, to compute only its chaining value.
    pub(crate) fn seek_group(&mut self, group: u64) {
        self.position = group.saturating_mul(GROUP).min(self.size);
        self.begin_group();
    }

    fn begin_group(&mut self) {
        self.hasher = blake3::Hasher::new();
        if self.position < self.size {
            self.hasher.set_input_offset(self.position);
        }
    }

    /// Returns where the current group ends.
    fn group_end(&self) -> u64 {
        (self.position / GROUP + 1).saturating_mul(GROUP).min(self.size)
    }

    /// Returns how many bytes of the file were hashed or skipped.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Returns whether a group has just ended or not begun.
    pub(crate) fn is_between_groups(&self) -> bool {
        self.position.is_multiple_of(GROUP) || self.position == self.size
    }

    /// Hashes a part of the content; returns `false`, and does nothing, if it exceeds the current group.
    #[must_use]
    pub(crate) fn update(&mut self, bytes: &[u8]) -> bool {
        self.advance(bytes.len() as u64, |hasher| {
            hasher.update(bytes);
        })
    }

    /// Hashes so many zero bytes.
    #[must_use]
    pub(crate) fn update_zeros(&mut self, len: u64) -> bool {
        self.advance(len, |hasher| {
            let mut left = len;
            while left > 0 {
                let now = left.min(ZEROS.len() as u64);
                hasher.update(&ZEROS[..usize::try_from(now).unwrap_or(0)]);
                left -= now;
            }
        })
    }

    fn advance(&mut self, len: u64, hash: impl FnOnce(&mut blake3::Hasher)) -> bool {
        // After the last byte of a group its end has to come first.
        let ends_here = self.hasher.count() > 0 && self.is_between_groups();
        if len == 0 || ends_here || len > self.group_end() - self.position {
            return len == 0;
        }
        hash(&mut self.hasher);
        self.position += len;
        true
    }

    /// Ends a group; `None` if it is not complete, or the file has only one.
    pub(crate) fn finish_group(&mut self) -> Option<Hash> {
        if self.size <= GROUP || self.hasher.count() == 0 || !self.is_between_groups() {
            return None;
        }
        let value = self.hasher.finalize_non_root();
        self.nodes.push(value);
        self.begin_group();
        Some(value)
    }

    /// Returns the hash of the file; `None` if some of it is missing.
    pub(crate) fn root(self) -> Option<Hash> {
        match self.size {
            size if self.position != size => None,
            0..=GROUP => Some(*self.hasher.finalize().as_bytes()),
            _ if self.hasher.count() > 0 => None,
            _ => self.nodes.root(),
        }
    }
}

/// Returns the hash of a sequence of chaining values, with which two sides compare what they have.
pub(crate) fn hash_of_values<'a>(values: impl IntoIterator<Item = &'a Hash>) -> Hash {
    let mut hasher = blake3::Hasher::new();
    values.into_iter().for_each(|value| {
        hasher.update(value);
    });
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = GROUP as usize;

    fn content(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at / 7 % 251) as u8).collect()
    }

    fn values_of(data: &[u8]) -> (Vec<Hash>, Option<Hash>) {
        let mut tree = TreeHasher::new(data.len() as u64);
        let mut values = Vec::new();
        for group in data.chunks(MIB) {
            for part in group.chunks(300_000) {
                assert!(tree.update(part));
            }
            values.extend(tree.finish_group());
        }
        (values, tree.root())
    }

    #[test]
    fn the_root_is_the_blake3_hash_of_the_file() {
        for len in [0, 1, 1024, MIB - 1, MIB, MIB + 1, 2 * MIB, 3 * MIB + 5, 4 * MIB, 7 * MIB + 1, 8 * MIB] {
            let data = content(len);
            let (values, root) = values_of(&data);
            assert_eq!(root, Some(*blake3::hash(&data).as_bytes()), "{len}");
            assert_eq!(values.len() as u64, if len <= MIB { 0 } else { group_count(len as u64) });
        }
    }

    #[test]
    fn a_file_whose_first_groups_are_known_has_the_same_root() {
        let data = content(5 * MIB + 77);
        let (values, root) = values_of(&data);
        for known in 0..=values.len() {
            let mut tree = TreeHasher::new(data.len() as u64);
            values[..known].iter().for_each(|value| tree.skip_group(*value));
            for group in data.chunks(MIB).skip(known) {
                assert!(tree.update(group));
                tree.finish_group();
            }
            assert_eq!(tree.root(), root, "{known}");
        }
    }

    #[test]
    fn zeros_hash_as_written_zeros_do() {
        let data = vec![0; 2 * MIB + 10];
        let mut tree = TreeHasher::new(data.len() as u64);
        for len in [GROUP, GROUP, 10] {
            assert!(tree.update_zeros(len));
            tree.finish_group();
        }
        assert_eq!(tree.root(), Some(*blake3::hash(&data).as_bytes()));
    }

    #[test]
    fn content_beyond_a_group_or_the_file_is_refused() {
        let mut tree = TreeHasher::new(GROUP + 5);
        assert!(!tree.update(&content(MIB + 1)));
        assert!(tree.update(&content(MIB)));
        assert!(!tree.update(&[1]), "the end of the group is missing");
        assert!(tree.finish_group().is_some() && tree.finish_group().is_none());
        assert!(!tree.update(&[1; 6]) && tree.update(&[1; 5]) && !tree.update(&[1]));
        assert!(tree.finish_group().is_some() && !tree.update(&[1]) && !tree.update_zeros(1));
        assert!(TreeHasher::new(5).root().is_none());
        let mut whole = TreeHasher::new(3);
        assert!(whole.update(b"abc") && !whole.update(b"d") && whole.finish_group().is_none());
        assert_eq!(whole.root(), Some(*blake3::hash(b"abc").as_bytes()));
    }
}
