//! Makes QUIC go on after a silence, when its own timers would take long.
//!
//! QUIC's probe timer doubles with every probe that is not acknowledged, and only an acknowledgement resets it: after 30 s without a path the
//! next probe may be 30 s away. And `quinn-proto` holds back acknowledgements while the congestion window is full. [`Traffic`] sees every
//! datagram, and [`run`] acts on it: it allows packets beyond the window, and sends a frame that the other side acknowledges.

use super::congestion::Allowance;
use super::quic::{CONNECTION_WINDOW, SEND_WINDOW};
use super::tunnel::Tunnel;
use crate::net::time;
use quinn::{FrameStats, VarInt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::time::sleep;

/// How often the traffic is looked at, while there is any.
const TICK: Duration = Duration::from_millis(50);
/// How long acknowledgements may wait at most: the `max_ack_delay` of QUIC, until the other side asks for less.
const ACK_DELAY: Duration = Duration::from_millis(25);
/// The first and the longest silence after which a packet is sent that must be acknowledged; twice as long each time.
const SILENCE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));
/// Room for one packet beyond the window.
const ONE_PACKET: u64 = 1500;
/// Bytes beyond the window after a change of the path: what was in flight is probably lost.
const NEW_PATH_BYTES: u64 = 64 << 10;

/// When datagrams of QUIC were sent and received.
#[derive(Debug)]
pub(super) struct Traffic {
    started: Instant,
    /// Milliseconds since `started`.
    sent_at: AtomicU64,
    received_at: AtomicU64,
    is_new_path: AtomicBool,
    /// [`run`] waits for a datagram.
    is_idle: AtomicBool,
    wake: Notify,
    allowance: Arc<Allowance>,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            started: time::runtime(),
            sent_at: AtomicU64::new(0),
            received_at: AtomicU64::new(0),
            is_new_path: AtomicBool::new(false),
            is_idle: AtomicBool::new(false),
            wake: Notify::new(),
            allowance: Arc::default(),
        }
    }
}

impl Traffic {
    /// Returns what the congestion controller must share.
    pub(super) fn allowance(&self) -> Arc<Allowance> {
        Arc::clone(&self.allowance)
    }

    /// Handles that datagrams were sent.
    pub(super) fn handle_sent(&self) {
        self.sent_at.store(self.millis(), Ordering::Relaxed);
        self.wake_if_idle();
    }

    /// Handles that datagrams have arrived. If nothing was sent lately, one packet may take the acknowledgement.
    pub(super) fn handle_received(&self) {
        let at = self.millis();
        self.received_at.store(at, Ordering::Relaxed);
        let since_sent = Duration::from_millis(at.saturating_sub(self.sent_at.load(Ordering::Relaxed)));
        if since_sent > ACK_DELAY {
            self.allowance.allow(ONE_PACKET);
        }
        self.wake_if_idle();
    }

    /// Handles that another path carries the data, or the same one again.
    pub(super) fn handle_new_path(&self) {
        self.is_new_path.store(true, Ordering::Relaxed);
        self.allowance.allow(NEW_PATH_BYTES);
        self.wake.notify_one();
    }

    fn millis(&self) -> u64 {
        u64::try_from(time::runtime().saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }

    fn wake_if_idle(&self) {
        if self.is_idle.load(Ordering::Relaxed) && self.is_idle.swap(false, Ordering::AcqRel) {
            self.wake.notify_one();
        }
    }

    fn since(&self, at: &AtomicU64) -> Duration {
        Duration::from_millis(self.millis().saturating_sub(at.load(Ordering::Relaxed)))
    }

    /// Waits for the next look at the traffic.
    async fn next(&self, is_idle: bool) {
        if is_idle {
            self.is_idle.store(true, Ordering::Release);
            self.wake.notified().await;
        } else {
            tokio::select! {
                () = sleep(TICK) => {}
                () = self.wake.notified() => {}
            }
        }
    }
}

/// The task of a connection that acts on its traffic; ends when it is dropped.
#[derive(Debug)]
pub(super) struct StallRecovery(tokio::task::JoinHandle<()>);

impl StallRecovery {
    /// Starts the task.
    pub(super) fn start(connection: quinn::Connection, tunnel: Arc<Tunnel>) -> Self {
        Self(tokio::spawn(async move {
            tokio::select! {
                () = run(&connection, tunnel.traffic()) => {}
                _ = connection.closed() => {}
            }
        }))
    }
}

impl Drop for StallRecovery {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn run(connection: &quinn::Connection, traffic: &Traffic) {
    let mut watch = Watch::default();
    let mut receive_window = CONNECTION_WINDOW;
    let mut is_idle = false;
    loop {
        traffic.next(is_idle).await;
        let seen = Observation {
            now: time::runtime(),
            since_sent: traffic.since(&traffic.sent_at),
            since_received: traffic.since(&traffic.received_at),
            eliciting: eliciting(&connection.stats().frame_tx),
            in_flight: traffic.allowance.in_flight(),
            is_new_path: traffic.is_new_path.swap(false, Ordering::Relaxed),
            round_trip: connection.rtt(),
        };
        match watch.handle(seen) {
            Some(Action::Acknowledge) => {
                traffic.allowance.allow(ONE_PACKET);
                // Changes nothing, but has QUIC look for something to send.
                connection.set_send_window(SEND_WINDOW);
            }
            Some(Action::Probe) => {
                traffic.allowance.allow(ONE_PACKET);
                // QUIC sends its new window in a packet that must be acknowledged.
                receive_window = receive_window.saturating_add(1);
                connection.set_receive_window(VarInt::from_u32(receive_window));
            }
            None => {}
        }
        is_idle = watch.is_idle(&seen);
    }
}

/// Counts the frames that must be acknowledged.
fn eliciting(sent: &FrameStats) -> u64 {
    let flow_control = sent.max_data + sent.max_stream_data + sent.max_streams_bidi + sent.max_streams_uni;
    let blocked = sent.data_blocked + sent.stream_data_blocked;
    sent.stream + sent.crypto + sent.ping + sent.reset_stream + sent.stop_sending + flow_control + blocked
}

/// What must be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// Acknowledgements wait: QUIC may send one packet.
    Acknowledge,
    /// The other side must acknowledge something.
    Probe,
}

/// What is seen at one time.
#[derive(Debug, Clone, Copy)]
struct Observation {
    now: Instant,
    /// Since the last datagram in each direction.
    since_sent: Duration,
    since_received: Duration,
    /// Number of frames sent that must be acknowledged.
    eliciting: u64,
    in_flight: u64,
    is_new_path: bool,
    round_trip: Duration,
}

/// Decides when to act.
#[derive(Debug, Default)]
struct Watch {
    eliciting: u64,
    /// Since when something that was sent may be unacknowledged.
    waits_since: Option<Instant>,
    /// The other side has sent the last datagram.
    owes: bool,
    probes: u32,
    probed_at: Option<Instant>,
}

impl Watch {
    fn handle(&mut self, seen: Observation) -> Option<Action> {
        if self.eliciting != seen.eliciting {
            self.waits_since.get_or_insert(seen.now);
        }
        self.eliciting = seen.eliciting;
        if seen.in_flight == 0 {
            self.waits_since = None;
        }
        let owes = seen.since_received >= ACK_DELAY && seen.since_received < seen.since_sent;
        let owes_since_now = !std::mem::replace(&mut self.owes, owes) && owes;
        if seen.is_new_path {
            self.probes = 0;
            self.probed_at = Some(seen.now);
            return Some(Action::Probe);
        }
        let since =
            |at: Option<Instant>| at.map_or(Duration::MAX, |at| seen.now.saturating_duration_since(at));
        let since_probe = since(self.probed_at);
        if seen.since_received < since_probe {
            self.probes = 0;
        }
        let first = SILENCE.0.max(seen.round_trip * 2).min(SILENCE.1);
        let silence = (first * 2_u32.pow(self.probes.min(4))).min(SILENCE.1);
        let silent_for = since(self.waits_since).min(seen.since_received).min(since_probe);
        if self.waits_since.is_some() && silent_for >= silence {
            self.probes += 1;
            self.probed_at = Some(seen.now);
            return Some(Action::Probe);
        }
        owes_since_now.then_some(Action::Acknowledge)
    }

    /// Returns whether nothing is left to wait for.
    fn is_idle(&self, seen: &Observation) -> bool {
        self.waits_since.is_none() && seen.since_sent.min(seen.since_received) > 2 * TICK
    }
}

#[cfg(test)]
#[path = "stall_recovery_tests.rs"]
mod tests;
