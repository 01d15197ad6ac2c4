//! What a receiver does with what is offered and what is there, and how much a sender sends ahead. Pure.

use super::names;
use super::tree::{GROUP, group_count};
use super::wire::{EntryProblem, Mtime, OfferedRoot};
use std::collections::HashSet;

/// Most files that a sender names before the receiver has said what it needs of them.
pub(crate) const MAX_OPEN_FILES: usize = 4096;
/// Most bytes that a sender sends before they are verified: what is sent again at most after either side has died.
pub(crate) const WINDOW: u64 = 24 << 20;
/// Highest number in a name such as `photo (2).jpg`.
const MAX_NUMBER: u32 = 10_000;

/// What is done with a name that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExistingPolicy {
    /// Under another name.
    KeepBoth,
    /// Files are replaced; folders are merged.
    Overwrite,
    /// Not received.
    Skip,
}

/// What becomes of an offered file or folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RootPlan {
    /// Created under this name.
    Create(String),
    /// Created under this name, in place of what is there.
    Replace(String),
    /// Not received.
    Skip,
    /// The name is refused.
    Refused(EntryProblem),
}

impl RootPlan {
    /// Returns the name here.
    pub(crate) fn name(&self) -> Option<&str> {
        match self {
            Self::Create(name) | Self::Replace(name) => Some(name),
            Self::Skip | Self::Refused(_) => None,
        }
    }
}

/// Plans what is offered; `exists` returns whether a name is taken. Returns the names that are, if there is no policy for them.
///
/// # Errors
/// The names that exist, if there is no policy.
pub(crate) fn plan_roots(
    roots: &[OfferedRoot],
    policy: Option<ExistingPolicy>,
    exists: impl Fn(&str) -> bool,
) -> Result<Vec<RootPlan>, Vec<String>> {
    let mut taken = HashSet::new();
    let mut conflicts = Vec::new();
    let plans = roots.iter().map(|root| {
        let Ok(name) = names::local_name(&root.name) else {
            return RootPlan::Refused(EntryProblem::Name);
        };
        let is_twice = taken.contains(&name);
        let is_there = exists(&name);
        if !is_there && !is_twice {
            taken.insert(name.clone());
            return RootPlan::Create(name);
        }
        let free = |taken: &HashSet<String>| {
            let mut names = (2..MAX_NUMBER).map(|number| names::numbered(&name, number));
            names.find(|name| !exists(name) && !taken.contains(name))
        };
        let plan = match policy {
            _ if is_twice => free(&taken).map(RootPlan::Create),
            Some(ExistingPolicy::Skip) => Some(RootPlan::Skip),
            Some(ExistingPolicy::Overwrite) => Some(RootPlan::Replace(name.clone())),
            Some(ExistingPolicy::KeepBoth) => free(&taken).map(RootPlan::Create),
            None => {
                conflicts.push(name.clone());
                Some(RootPlan::Skip)
            }
        };
        let plan = plan.unwrap_or(RootPlan::Refused(EntryProblem::Exists));
        taken.extend(plan.name().map(str::to_owned));
        plan
    });
    let plans = plans.collect();
    if conflicts.is_empty() { Ok(plans) } else { Err(conflicts) }
}

/// Size and time of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileStamp {
    pub(crate) size: u64,
    pub(crate) mtime: Mtime,
}

impl FileStamp {
    /// Returns whether this file was received from that one: a received file gets its size only when it is complete. The file system may have cut
    /// off digits of the time.
    pub(crate) fn is_copy_of(self, original: Self) -> bool {
        let (here, there) = (self.mtime, original.mtime);
        let cut = [1, 100, 1000, 1_000_000, 1_000_000_000];
        self.size == original.size
            && here.secs == there.secs
            && cut.iter().any(|unit| there.nanos - there.nanos % unit == here.nanos)
    }
}

/// Returns how many groups of a file can be kept, if `journaled` were recorded and the partial file has this length.
pub(crate) fn kept_groups(size: u64, journaled: u64, part_len: u64) -> u64 {
    let written = if part_len >= size { group_count(size) } else { part_len / GROUP };
    journaled.min(written).min(group_count(size))
}

/// Counts what was sent and verified.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Window {
    sent: u64,
    verified: u64,
}

impl Window {
    /// Returns whether more may be sent.
    pub(crate) fn is_open(self) -> bool {
        self.sent - self.verified < WINDOW
    }

    /// Counts bytes that are sent.
    pub(crate) fn add(&mut self, bytes: u64) {
        self.sent = self.sent.saturating_add(bytes);
    }

    /// Handles the count of the other side; returns `false` if that is impossible.
    #[must_use]
    pub(crate) fn set_verified(&mut self, bytes: u64) -> bool {
        let is_valid = (self.verified..=self.sent).contains(&bytes);
        if is_valid {
            self.verified = bytes;
        }
        is_valid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roots(names: &[&str]) -> Vec<OfferedRoot> {
        names.iter().map(|name| OfferedRoot { is_folder: false, name: name.as_bytes().to_vec() }).collect()
    }

    fn create(names: &[&str]) -> Vec<RootPlan> {
        names.iter().map(|name| RootPlan::Create((*name).to_owned())).collect()
    }

    #[test]
    fn nothing_that_exists_is_replaced_unasked() {
        let offered = roots(&["a.txt", "b"]);
        let exists = |name: &str| ["a.txt", "a (2).txt"].contains(&name);
        assert_eq!(plan_roots(&offered, None, exists), Err(vec!["a.txt".to_owned()]));
        assert_eq!(
            plan_roots(&offered, Some(ExistingPolicy::KeepBoth), exists),
            Ok(create(&["a (3).txt", "b"]))
        );
        let replaced = plan_roots(&offered, Some(ExistingPolicy::Overwrite), exists).unwrap();
        assert_eq!(replaced[0], RootPlan::Replace("a.txt".to_owned()));
        let skipped = plan_roots(&offered, Some(ExistingPolicy::Skip), exists).unwrap();
        assert_eq!(skipped, [RootPlan::Skip, RootPlan::Create("b".to_owned())]);
        assert_eq!(plan_roots(&roots(&["b"]), None, exists), Ok(create(&["b"])));
    }

    #[test]
    fn two_roots_of_one_name_are_both_kept_whatever_the_policy() {
        let offered = roots(&["x", "x", "x"]);
        for policy in [None, Some(ExistingPolicy::Overwrite), Some(ExistingPolicy::KeepBoth)] {
            assert_eq!(plan_roots(&offered, policy, |_| false), Ok(create(&["x", "x (2)", "x (3)"])));
        }
    }

    #[test]
    fn a_root_that_is_a_path_is_refused() {
        let plans = plan_roots(&roots(&["../../x", "/etc/x", "ok"]), None, |_| false).unwrap();
        assert_eq!(
            plans[..2],
            [RootPlan::Refused(EntryProblem::Name), RootPlan::Refused(EntryProblem::Name)]
        );
        assert_eq!(plans[2].name(), Some("ok"));
    }

    #[test]
    fn a_file_with_another_size_or_time_is_not_a_copy() {
        let stamp = |size, secs, nanos| FileStamp { size, mtime: Mtime { secs, nanos } };
        let original = stamp(5, 10, 123_456_789);
        for nanos in [123_456_789, 123_456_700, 123_456_000, 123_000_000, 0] {
            assert!(stamp(5, 10, nanos).is_copy_of(original), "{nanos}");
        }
        for other in [stamp(4, 10, 123_456_789), stamp(5, 11, 123_456_789), stamp(5, 10, 5)] {
            assert!(!other.is_copy_of(original), "{other:?}");
        }
    }

    #[test]
    fn only_groups_that_were_recorded_and_written_are_kept() {
        assert_eq!(kept_groups(10 * GROUP, 7, 8 * GROUP), 7);
        assert_eq!(kept_groups(10 * GROUP, 7, 6 * GROUP + 5), 6);
        assert_eq!(kept_groups(10 * GROUP + 1, 11, 10 * GROUP + 1), 11);
        assert_eq!(kept_groups(2 * GROUP, 99, 99 * GROUP), 2);
        assert_eq!(kept_groups(2 * GROUP, 0, 2 * GROUP), 0);
    }

    #[test]
    fn the_window_is_open_until_too_much_is_unverified() {
        let mut window = Window::default();
        window.add(WINDOW - 1);
        assert!(window.is_open());
        window.add(1);
        assert!(!window.is_open() && window.set_verified(1) && window.is_open());
        assert!(!window.set_verified(WINDOW + 1), "more than was sent");
        assert!(!window.set_verified(0), "less than before");
    }
}
