//! Ping, and who is dropped for silence or slowness (section 3.1, S2-A11). Pure.

use super::counters::Why;
use super::end::{EndKey, Pass, Role};
use super::machine::{Switchboard, Timer};
use super::wire::Command;
use crate::clock::Now;

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

    fn look_after(&mut self, now: Now, key: EndKey) {
        let unread = self.is_unread(now, key);
        let times = self.rules.times;
        let Some(end) = self.ends.get_mut(key.0) else { return };
        let since = |at| now.mono.saturating_duration_since(at);
        let is_held = end.held.is_some();
        let is_late = end.pinged.is_some_and(|at| since(at) >= times.ping);
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
        let next = match end.pinged {
            Some(at) => at + times.ping,
            None if since(end.heard) < times.ping => end.heard + times.ping,
            None => {
                end.pinged = Some(now.mono);
                self.tell(now, key, Command::Ping);
                now.mono + times.ping
            }
        };
        self.timers.set(Timer::Alive(key), next);
    }
}
