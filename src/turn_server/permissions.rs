//! The addresses that a client lets in: [RFC 8656 section 9](https://www.rfc-editor.org/rfc/rfc8656#section-9).

use super::allocation::Family;
use super::policy::PeerAddr;
use crate::clock::Ticks;
use std::time::Duration;

/// How long a permission lasts ([RFC 8656 section 9](https://www.rfc-editor.org/rfc/rfc8656#section-9)).
pub const PERMISSION_LIFETIME: Duration = Duration::from_secs(300);

/// The permissions of one allocation, by address. The port of each is 0: a permission names none.
#[derive(Debug, Default)]
pub(super) struct Permissions(Vec<(PeerAddr, Ticks)>);

impl Permissions {
    fn position(&self, peer: PeerAddr) -> Result<usize, usize> {
        self.0.binary_search_by_key(&peer.without_port(), |(ip, _)| *ip)
    }

    /// Returns when the permission for the address of `peer` ends or has ended; never is the beginning of time.
    pub(super) fn until(&self, peer: PeerAddr) -> Ticks {
        self.position(peer).ok().and_then(|at| self.0.get(at)).map_or(Ticks::default(), |(_, until)| *until)
    }

    /// Installs or refreshes a permission.
    pub(super) fn install(&mut self, peer: PeerAddr, until: Ticks) {
        match self.position(peer) {
            Ok(at) => self.0[at].1 = until,
            Err(at) => {
                if self.0.len() == self.0.capacity() {
                    // Most allocations have one or a few, and a vector would begin with room for four.
                    self.0.reserve_exact(self.0.len().max(1));
                }
                self.0.insert(at, (peer.without_port(), until));
            }
        }
    }

    /// Lists the addresses that permissions were ever installed for and not forgotten.
    pub(super) fn iter(&self) -> impl Iterator<Item = PeerAddr> {
        self.0.iter().map(|(ip, _)| *ip)
    }

    /// Forgets every permission for peers of `family`.
    pub(super) fn forget(&mut self, family: Family) {
        self.0.retain(|(ip, _)| Family::of(ip.ip()) != family);
    }

    /// Forgets the permissions that are over.
    pub(super) fn forget_expired(&mut self, now: Ticks) {
        self.0.retain(|(_, until)| now < *until);
    }

    /// Returns how many permissions there would be with `peers` too.
    pub(super) fn len_with(&self, peers: &[PeerAddr]) -> usize {
        let mut unknown: Vec<_> =
            peers.iter().map(|peer| peer.without_port()).filter(|ip| self.position(*ip).is_err()).collect();
        unknown.sort_unstable();
        unknown.dedup();
        self.0.len() + unknown.len()
    }
}
