//! Permissions: [RFC 8656 section 9](https://www.rfc-editor.org/rfc/rfc8656#section-9).

use super::allocation::Family;
use super::policy::PeerAddr;
use crate::clock::Ticks;
use std::time::Duration;

/// How long a permission lasts ([RFC 8656 section 9](https://www.rfc-editor.org/rfc/rfc8656#section-9)).
pub const PERMISSION_LIFETIME: Duration = Duration::from_secs(300);

/// The permissions of one allocation and when they expire, sorted by address. The port of each is 0: a permission names none.
#[derive(Debug, Default)]
pub(super) struct Permissions(Vec<(PeerAddr, Ticks)>);

impl Permissions {
    fn position(&self, peer: PeerAddr) -> Result<usize, usize> {
        self.0.binary_search_by_key(&peer.without_port(), |(ip, _)| *ip)
    }

    /// Returns when the permission for the address of `peer` expires or has expired; zero if there was none.
    pub(super) fn expiry(&self, peer: PeerAddr) -> Ticks {
        self.position(peer).ok().and_then(|at| self.0.get(at)).map_or(Ticks::default(), |(_, expiry)| *expiry)
    }

    /// Installs or refreshes a permission.
    pub(super) fn insert(&mut self, peer: PeerAddr, expiry: Ticks) {
        match self.position(peer) {
            Ok(at) => self.0[at].1 = expiry,
            Err(at) => {
                if self.0.len() == self.0.capacity() {
                    // Most allocations have one or a few, and a vector would begin with room for four.
                    self.0.reserve_exact(self.0.len().max(1));
                }
                self.0.insert(at, (peer.without_port(), expiry));
            }
        }
    }

    /// Iterates over the addresses of all permissions, expired ones included.
    pub(super) fn iter(&self) -> impl Iterator<Item = PeerAddr> {
        self.0.iter().map(|(ip, _)| *ip)
    }

    /// Removes every permission for peers of `family`.
    pub(super) fn remove_family(&mut self, family: Family) {
        self.0.retain(|(ip, _)| Family::of(ip.ip()) != family);
    }

    /// Removes expired permissions.
    pub(super) fn remove_expired(&mut self, now: Ticks) {
        self.0.retain(|(_, expiry)| now < *expiry);
    }

    /// Returns the number of permissions if `peers` were added.
    pub(super) fn len_with(&self, peers: &[PeerAddr]) -> usize {
        let mut new: Vec<_> =
            peers.iter().map(|peer| peer.without_port()).filter(|ip| self.position(*ip).is_err()).collect();
        new.sort_unstable();
        new.dedup();
        self.0.len() + new.len()
    }
}
