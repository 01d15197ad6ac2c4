//! Ping, and who is dropped for silence or slowness (section 3.1, S2-A11). Pure.

use super::counters::Why;
use super::end::{EndKey, Pass, Role};
use super::machine::{Switchboard, Timer};
use super::wire::Command;
use crate::clock::Now;
use std::time::Duration;

/// How long a server may take to answer after another one wanted its id.
pub(super) const CLAIM: Duration = Duration::from_secs(1);

impl Switchboard {
    /// Carries out what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        while let Some(timer) = self.timers.pop_due(now.mono) {
            match timer {
                Timer::Alive(key) => self.look_after(now, key),
                Timer::Hold(key) => self.held_long(now, key),
                Timer::Pressure => self.relieve(now),
            }
        }
    }

    /// Another server wants the id of this one, which keeps it if it is still there: one that was cut off without a word comes back
    /// before anybody else has noticed.
    pub(super) fn claim(&mut self, now: Now, key: EndKey) {
        let Some(end) = self.ends.get_mut(key.0) else { return };
        // What a server may have sent is not read while it is held.
        if end.held.is_some() || end.claimed.is_some() {
            return;
        }
        end.claimed = Some(now.mono);
        if end.pinged.is_none() {
            end.pinged = Some(now.mono);
            self.tell(now, key, Command::Ping);
        }
        self.timers.set(Timer::Alive(key), now.mono + CLAIM);
    }

    fn look_after(&mut self, now: Now, key: EndKey) {
        let unread = self.is_unread(now, key);
        let times = self.rules.times;
        let Some(end) = self.ends.get_mut(key.0) else { return };
        let since = |at| now.mono.saturating_duration_since(at);
        let is_held = end.held.is_some();
        let claim = end.claimed.take_if(|at| end.heard > *at || is_held || since(*at) >= CLAIM);
        let is_gone = claim.is_some_and(|at| end.heard <= at);
        let is_late = is_gone || end.pinged.is_some_and(|at| since(at) >= times.ping);
        let is_slow = end.frame_since.is_some_and(|at| since(at) >= times.frame);
        let why = match end.role {
            Role::Client { pass: Pass::Awaited, .. } => Some(Why::Ticket),
            // What it may have sent is not read: silence is our doing.
            _ if is_held => unread,
            _ if is_late => Some(Why::Silent),
            _ if is_slow => Some(Why::SlowFrame),
            _ => unread,
        };
        if let Some(why) = why {
            return self.drop_end(now, key, why);
        }
        if is_held {
            (end.heard, end.pinged) = (now.mono, None);
        }
        let claimed = end.claimed;
        let next = match end.pinged {
            Some(at) => at + times.ping,
            None if since(end.heard) < times.ping => end.heard + times.ping,
            None => {
                end.pinged = Some(now.mono);
                self.tell(now, key, Command::Ping);
                now.mono + times.ping
            }
        };
        let next = claimed.map_or(next, |at| next.min(at + CLAIM));
        self.timers.set(Timer::Alive(key), next);
    }
}
