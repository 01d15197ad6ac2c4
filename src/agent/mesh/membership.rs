//! Who is online: SWIM by the crate `foca`, with its timers and its random numbers.

use super::frame::MAX_MEMBERSHIP;
use super::member::{MemberCodec, MemberId};
use crate::messaging_client::encryption::NewerRng;
use foca::{Config, Foca, Member, NoCustomBroadcast, Notification, PeriodicParams, Runtime, Timer};
use rand_chacha::ChaCha20Rng;
use std::collections::BTreeMap;
use std::fmt;
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::{Duration, Instant};

/// How long a member that is down is remembered: the longest split after which it is still announced to.
const REMEMBER_DOWN: Duration = Duration::from_secs(6 * 3600);
/// Most members, those that are down included.
pub(super) const MAX_MEMBERS: usize = 2 * super::map::CAPACITY;

/// What has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MembershipNotice {
    Up(MemberId),
    Down(MemberId),
    /// Others take this node for gone.
    Defunct,
}

/// The members.
pub(super) struct Membership {
    foca: Foca<MemberId, MemberCodec, NewerRng<ChaCha20Rng>, NoCustomBroadcast>,
    pending: Pending,
    /// Packets that were refused.
    pub(super) refused: u64,
}

/// What `foca` wants done.
#[derive(Default)]
struct Pending {
    now: Option<Instant>,
    number: u64,
    timers: BTreeMap<(Instant, u64), Timer<MemberId>>,
    packets: Vec<(MemberId, Vec<u8>)>,
    notices: Vec<MembershipNotice>,
}

impl Runtime<MemberId> for Pending {
    fn notify(&mut self, notification: Notification<'_, MemberId>) {
        self.notices.push(match notification {
            Notification::MemberUp(id) => MembershipNotice::Up(*id),
            Notification::MemberDown(id) => MembershipNotice::Down(*id),
            Notification::Defunct => MembershipNotice::Defunct,
            _ => return,
        });
    }

    fn send_to(&mut self, to: MemberId, data: &[u8]) {
        self.packets.push((to, data.to_vec()));
    }

    fn submit_after(&mut self, event: Timer<MemberId>, after: Duration) {
        let Some(now) = self.now else { return };
        self.number += 1;
        self.timers.insert((now + after, self.number), event);
    }
}

fn config() -> Config {
    let every = |seconds, members| PeriodicParams {
        frequency: Duration::from_millis(seconds),
        num_members: NonZeroUsize::new(members).unwrap_or(NonZeroUsize::MIN),
    };
    Config {
        probe_period: Duration::from_secs(5),
        probe_rtt: Duration::from_secs(2),
        max_transmissions: NonZeroU8::new(8).unwrap_or(NonZeroU8::MIN),
        suspect_to_down_after: Duration::from_secs(20),
        remove_down_after: Some(REMEMBER_DOWN),
        max_packet_size: NonZeroUsize::new(MAX_MEMBERSHIP).unwrap_or(NonZeroUsize::MIN),
        notify_down_members: true,
        // The exchange of maps finds members.
        periodic_announce: None,
        periodic_announce_to_down_members: Some(every(15_000, 2)),
        periodic_gossip: Some(every(1_000, 3)),
        ..Config::simple()
    }
}

impl Membership {
    pub(super) fn new(own: MemberId, rng: ChaCha20Rng) -> Self {
        let foca = Foca::new(own, config(), NewerRng(rng), MemberCodec);
        Self { foca, pending: Pending::default(), refused: 0 }
    }

    pub(super) fn own(&self) -> MemberId {
        *self.foca.identity()
    }

    /// Handles a packet that passed the filter.
    pub(super) fn handle_packet(&mut self, now: Instant, packet: &[u8]) {
        self.pending.now = Some(now);
        self.refused += u64::from(self.foca.handle_data(packet, &mut self.pending).is_err());
    }

    /// Takes a member for online until its probes fail.
    pub(super) fn insert_alive(&mut self, now: Instant, id: MemberId) {
        self.pending.now = Some(now);
        let alive = std::iter::once(Member::alive(id));
        self.refused += u64::from(self.foca.apply_many(alive, false, &mut self.pending).is_err());
    }

    /// Announces this node to another one, which answers with other members, or that it takes this one for gone.
    pub(super) fn announce(&mut self, now: Instant, to: MemberId) {
        self.pending.now = Some(now);
        self.refused += u64::from(self.foca.announce(to, &mut self.pending).is_err());
    }

    /// Goes on under a higher epoch.
    pub(super) fn set_epoch(&mut self, now: Instant, epoch: u32) {
        self.pending.now = Some(now);
        let id = MemberId { epoch, ..self.own() };
        let changed = self.foca.change_identity(id, &mut self.pending);
        // Only an active member makes `foca` connected, which starts its timers.
        let again = self.foca.apply_many(std::iter::empty(), false, &mut self.pending);
        self.refused += u64::from(changed.is_err()) + u64::from(again.is_err());
    }

    /// Leaves: the others need not find out.
    pub(super) fn leave(&mut self, now: Instant) {
        self.pending.now = Some(now);
        self.refused += u64::from(self.foca.leave_cluster(&mut self.pending).is_err());
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.pending.now = Some(now);
        while let Some(entry) = self.pending.timers.first_entry()
            && entry.key().0 <= now
        {
            let timer = entry.remove();
            self.refused += u64::from(self.foca.handle_timer(timer, &mut self.pending).is_err());
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.pending.timers.first_key_value().map(|((at, _), _)| *at)
    }

    pub(super) fn poll_packet(&mut self) -> Option<(MemberId, Vec<u8>)> {
        self.pending.packets.pop()
    }

    pub(super) fn poll_notice(&mut self) -> Option<MembershipNotice> {
        if self.pending.notices.is_empty() { None } else { Some(self.pending.notices.remove(0)) }
    }

    pub(super) fn active(&self) -> usize {
        self.foca.num_members()
    }

    /// Returns the members, those that are down included, the timers and the updates that wait.
    pub(super) fn sizes(&self) -> [usize; 3] {
        [self.foca.iter_membership_state().len(), self.pending.timers.len(), self.foca.updates_backlog()]
    }
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Membership({} active)", self.active())
    }
}
