//! The congestion controller of QUIC: CUBIC, with two changes that a path through many networks needs.
//!
//! - **Random loss.** CUBIC takes every loss for congestion, and a radio link that loses one packet in a hundred stops it. Like BBR, this
//!   controller ignores a loss of up to one packet in [`TOLERATED`] while no queue stands on the path.
//! - **Acknowledgements under congestion.** `quinn-proto` sends no acknowledgements while the window is full and stream data waits. If that is
//!   so on both sides, both wait for their probe timers, which after an outage may be a minute away. An [`Allowance`] lets some packets pass.

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// One packet in this many may be lost at random.
const TOLERATED: u64 = 50;
/// Bytes that may be lost besides: a share of few packets says little.
const TOLERATED_BYTES: u64 = 3000;
/// Fewest acknowledged bytes over which the share of lost ones is measured.
const MEASURED_BYTES: u64 = 512 << 10;
/// A shorter round trip than this above the shortest one is no queue: systems and radio links delay packets as much.
const JITTER: Duration = Duration::from_millis(4);
/// How long a shortest round trip counts, at most twice.
const SHORTEST_PERIOD: Duration = Duration::from_secs(5);

/// Bytes that may be sent though the window is full; shared with the tunnel, which sees when acknowledgements or a new path need them.
#[derive(Debug, Default)]
pub(super) struct Allowance {
    bytes: AtomicU64,
    /// Bytes in flight.
    in_flight: AtomicU64,
}

impl Allowance {
    /// Allows this many bytes. They are not added to what is allowed already.
    pub(super) fn allow(&self, bytes: u64) {
        self.bytes.fetch_max(bytes, Ordering::Relaxed);
    }

    /// Returns the bytes in flight. Packets that are not acknowledged themselves are counted until the next acknowledgement.
    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    fn handle_sent(&self, bytes: u64) {
        self.in_flight.fetch_add(bytes, Ordering::Relaxed);
        let allowed = self.bytes.load(Ordering::Relaxed);
        if allowed > 0 {
            self.bytes.store(allowed.saturating_sub(bytes), Ordering::Relaxed);
        }
    }

    fn window(&self, window: u64) -> u64 {
        match self.bytes.load(Ordering::Relaxed) {
            0 => window,
            allowed => window.max(self.in_flight().saturating_add(allowed)),
        }
    }
}

/// Creates the controller of a connection.
#[derive(Debug)]
pub(super) struct CongestionConfig(pub(super) Arc<Allowance>);

impl ControllerFactory for CongestionConfig {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        let cubic = Arc::new(CubicConfig::default()).build(now, mtu);
        Box::new(PathController {
            cubic,
            allowance: Arc::clone(&self.0),
            loss: LossShare::default(),
            queue: QueueDelay::default(),
        })
    }
}

struct PathController {
    cubic: Box<dyn Controller>,
    allowance: Arc<Allowance>,
    loss: LossShare,
    queue: QueueDelay,
}

impl Controller for PathController {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.allowance.handle_sent(bytes);
        self.cubic.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.loss.handle_acknowledged(bytes, self.cubic.window());
        self.queue.handle_round_trip(now, now.saturating_duration_since(sent), rtt.get());
        self.cubic.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.allowance.in_flight.store(in_flight, Ordering::Relaxed);
        self.cubic.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent: bool, lost_bytes: u64) {
        let in_flight = self.allowance.in_flight().saturating_sub(lost_bytes);
        self.allowance.in_flight.store(in_flight, Ordering::Relaxed);
        self.loss.handle_lost(lost_bytes);
        // 0 bytes: the network has marked packets.
        let is_random =
            lost_bytes > 0 && !is_persistent && self.loss.is_tolerable() && !self.queue.is_standing();
        if !is_random {
            self.cubic.on_congestion_event(now, sent, is_persistent, lost_bytes);
        }
    }

    fn on_mtu_update(&mut self, mtu: u16) {
        self.cubic.on_mtu_update(mtu);
    }

    fn window(&self) -> u64 {
        self.allowance.window(self.cubic.window())
    }

    fn metrics(&self) -> ControllerMetrics {
        self.cubic.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            cubic: self.cubic.clone_box(),
            allowance: Arc::clone(&self.allowance),
            loss: self.loss,
            queue: self.queue,
        })
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// The share of bytes that were lost lately.
#[derive(Debug, Default, Clone, Copy)]
struct LossShare {
    acknowledged: u64,
    lost: u64,
}

impl LossShare {
    fn handle_acknowledged(&mut self, bytes: u64, window: u64) {
        self.acknowledged += bytes;
        // Over two round trips of a full window, with the older ones counting half.
        if self.acknowledged > MEASURED_BYTES.max(2 * window) {
            self.acknowledged /= 2;
            self.lost /= 2;
        }
    }

    fn handle_lost(&mut self, bytes: u64) {
        self.lost += bytes;
    }

    fn is_tolerable(&self) -> bool {
        self.lost <= (self.acknowledged + self.lost) / TOLERATED + TOLERATED_BYTES
    }
}

/// The shortest of the values of this period and the one before.
#[derive(Debug, Default, Clone, Copy)]
struct Shortest {
    begun: Option<Instant>,
    this: Option<Duration>,
    before: Option<Duration>,
}

impl Shortest {
    fn insert(&mut self, now: Instant, period: Duration, value: Duration) {
        if self.begun.is_none_or(|begun| now.saturating_duration_since(begun) >= period) {
            *self = Self { begun: Some(now), this: None, before: self.this };
        }
        self.this = Some(self.this.map_or(value, |shortest| shortest.min(value)));
    }

    fn get(&self) -> Option<Duration> {
        self.this.into_iter().chain(self.before).min()
    }
}

/// How long packets wait in a queue of the network.
#[derive(Debug, Default, Clone, Copy)]
struct QueueDelay {
    /// Of the last seconds: the path without a queue.
    shortest: Shortest,
    /// Of the last round trip: single packets may be late without a queue.
    latest: Shortest,
}

impl QueueDelay {
    fn handle_round_trip(&mut self, now: Instant, round_trip: Duration, smoothed: Duration) {
        self.shortest.insert(now, SHORTEST_PERIOD, round_trip);
        self.latest.insert(now, smoothed / 2, round_trip);
    }

    fn is_standing(&self) -> bool {
        let (Some(shortest), Some(latest)) = (self.shortest.get(), self.latest.get()) else { return false };
        latest > shortest + JITTER.max(shortest / 4)
    }
}

#[cfg(test)]
#[path = "congestion_tests.rs"]
mod tests;
