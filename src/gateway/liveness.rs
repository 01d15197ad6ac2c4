//! Ping, and closing endpoints that are silent or slow (S2-A11). Pure.

use super::counters::CloseReason;
use super::endpoint::{Access, EndpointKey, EndpointRole};
use super::machine::{Router, Timer};
use super::wire::Command;
use crate::clock::Now;
use std::time::Duration;

/// How long a server may take to answer after another one claimed its id.
pub(super) const ID_PROBE_TIMEOUT: Duration = Duration::from_secs(1);

impl Router {
    /// Handles all timers that are due.
    pub fn handle_timeout(&mut self, now: Now) {
        while let Some(timer) = self.timers.pop_due(now.mono) {
            match timer {
                Timer::Liveness(key) => self.check_liveness(now, key),
                Timer::Pause(key) => self.handle_pause_timeout(now, key),
                Timer::Reclaim => self.reclaim_memory(now),
            }
        }
    }

    /// Sends Ping to a server whose id another server claims. It keeps the id if it answers; a server that was cut off can return before
    /// its old connection times out.
    pub(super) fn probe_id_owner(&mut self, now: Now, key: EndpointKey) {
        let Some(endpoint) = self.endpoints.get_mut(key.0) else { return };
        // A paused server may have sent something that was not read.
        if endpoint.paused.is_some() || endpoint.id_contested.is_some() {
            return;
        }
        endpoint.id_contested = Some(now.mono);
        if endpoint.ping_sent.is_none() {
            endpoint.ping_sent = Some(now.mono);
            self.send_command(now, key, Command::Ping);
        }
        self.timers.set(Timer::Liveness(key), now.mono + ID_PROBE_TIMEOUT);
    }

    fn check_liveness(&mut self, now: Now, key: EndpointKey) {
        let unread = self.stall_reason(now, key);
        let times = self.config.times;
        let Some(endpoint) = self.endpoints.get_mut(key.0) else { return };
        let since = |at| now.mono.saturating_duration_since(at);
        let is_paused = endpoint.paused.is_some();
        let claim = endpoint
            .id_contested
            .take_if(|at| endpoint.last_received > *at || is_paused || since(*at) >= ID_PROBE_TIMEOUT);
        let is_gone = claim.is_some_and(|at| endpoint.last_received <= at);
        let is_late = is_gone || endpoint.ping_sent.is_some_and(|at| since(at) >= times.ping);
        let is_slow = endpoint.frame_started.is_some_and(|at| since(at) >= times.frame);
        let why = match endpoint.role {
            EndpointRole::Client { access: Access::TokenRequired, .. } => Some(CloseReason::Token),
            // A paused endpoint may have sent something that was not read.
            _ if is_paused => unread,
            _ if is_late => Some(CloseReason::Silent),
            _ if is_slow => Some(CloseReason::SlowFrame),
            _ => unread,
        };
        if let Some(why) = why {
            return self.close_endpoint(now, key, why);
        }
        if is_paused {
            (endpoint.last_received, endpoint.ping_sent) = (now.mono, None);
        }
        let id_contested = endpoint.id_contested;
        let next = match endpoint.ping_sent {
            Some(at) => at + times.ping,
            None if since(endpoint.last_received) < times.ping => endpoint.last_received + times.ping,
            None => {
                endpoint.ping_sent = Some(now.mono);
                self.send_command(now, key, Command::Ping);
                now.mono + times.ping
            }
        };
        let next = id_contested.map_or(next, |at| next.min(at + ID_PROBE_TIMEOUT));
        self.timers.set(Timer::Liveness(key), next);
    }
}
