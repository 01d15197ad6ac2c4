//! Limits on what unauthenticated clients get over UDP: responses of each network, their size, and DTLS handshakes. Pure.
//!
//! Until a request's integrity is verified its source address is only a claim, and the response goes to the owner of that address. One
//! [`UnauthenticatedLimiter`] belongs to one worker and needs no lock.

use crate::clock::{Now, TickBase};
use crate::limits::{KeyedRateLimiter, Limit, NetworkPrefix, Rate, RateLimiter};
use rand::RngCore;
use std::net::IpAddr;
use std::sync::Arc;

/// Bytes of IP and UDP header that are counted with each datagram.
const HEADERS: usize = 28;
/// The most times that a response may be larger than its request, headers counted.
const MAX_AMPLIFICATION: usize = 3;
/// Networks that are remembered, 16 bytes each.
const NETWORKS: usize = 65_536;
/// How many responses a DTLS handshake counts for: it costs the worker a signature and a key agreement.
const HANDSHAKE_COST: u64 = 25;
/// The part of a second's handshakes that may begin at once: each delays what is relayed meanwhile.
const HANDSHAKE_BURST: u32 = 4;

/// The limits of one server.
#[derive(Debug, Clone)]
pub struct UnauthenticatedLimits {
    /// Responses a second to one network (IPv4 /24, IPv6 /48), over all workers; default 500.
    pub rate: u32,
    /// Responses that a network may get at once after a pause; default 1000.
    pub burst: u32,
    /// DTLS handshakes a second of all networks together, over all workers; default 100.
    pub dtls_handshakes: u32,
    /// Networks without these limits; default loopback.
    pub unlimited_from: Vec<NetworkPrefix>,
}

impl Default for UnauthenticatedLimits {
    fn default() -> Self {
        Self { rate: 500, burst: 1000, dtls_handshakes: 100, unlimited_from: NetworkPrefix::loopback() }
    }
}

/// What was refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct UnauthenticatedCounters {
    /// Responses over the rate of their network.
    pub over_rate: u64,
    /// Responses larger than three times their request.
    pub over_size: u64,
    /// DTLS handshakes over the rate of their network or of all networks.
    pub handshakes: u64,
}

/// One worker's share of the limits.
#[derive(Debug)]
pub(crate) struct UnauthenticatedLimiter {
    responses: KeyedRateLimiter<NetworkPrefix>,
    /// What a handshake takes of `responses`.
    handshake_cost: usize,
    /// The handshakes of all networks.
    handshakes: RateLimiter,
    handshake_rate: Rate,
    base: TickBase,
    limits: UnauthenticatedLimits,
    unlimited_from: Arc<[NetworkPrefix]>,
    counters: UnauthenticatedCounters,
}

impl UnauthenticatedLimiter {
    /// Makes the limiter of one of `workers` workers, each of which has an even share of the rates and bursts.
    #[must_use]
    pub(crate) fn new(
        limits: &UnauthenticatedLimits,
        workers: usize,
        now: Now,
        rng: &mut impl RngCore,
    ) -> Self {
        let rate = worker_share(limits.rate, limits.burst, workers);
        let handshakes = limits.dtls_handshakes;
        Self {
            responses: KeyedRateLimiter::new(rate, NETWORKS, Limit::RateLimiterKeys, rng),
            // A network whose burst is small may begin a handshake all the same, once it has its whole burst.
            handshake_cost: HANDSHAKE_COST.min(rate.burst_units()) as usize,
            handshakes: RateLimiter::default(),
            handshake_rate: worker_share(handshakes, handshakes / HANDSHAKE_BURST, workers),
            base: TickBase::new(now.mono),
            limits: limits.clone(),
            unlimited_from: limits.unlimited_from.clone().into(),
            counters: UnauthenticatedCounters::default(),
        }
    }

    /// Returns whether a response of `response` bytes may be sent to `client`, whose request has `request` bytes; counts it if not.
    pub(crate) fn allow_response(
        &mut self,
        now: Now,
        client: IpAddr,
        request: usize,
        response: usize,
    ) -> bool {
        if response + HEADERS > MAX_AMPLIFICATION * (request + HEADERS) {
            self.counters.over_size += 1;
            Limit::AnswerSize.reached(MAX_AMPLIFICATION);
            return false;
        }
        if self.is_unlimited(client) || self.responses.try_take(&NetworkPrefix::site(client), now.mono, 1) {
            return true;
        }
        self.counters.over_rate += 1;
        Limit::UnauthenticatedRate.reached(self.limits.rate);
        false
    }

    /// Returns whether `client` may begin a DTLS handshake, which counts for its network and for all networks; counts it if not.
    pub(crate) fn allow_handshake(&mut self, now: Now, client: IpAddr) -> bool {
        if self.is_unlimited(client) {
            return true;
        }
        let ticks = self.base.ticks(now.mono);
        let allowed = self.responses.try_take(&NetworkPrefix::site(client), now.mono, self.handshake_cost)
            && self.handshakes.try_take(self.handshake_rate, ticks, 1);
        if !allowed {
            self.counters.handshakes += 1;
            Limit::DtlsHandshakes.reached(self.limits.dtls_handshakes);
        }
        allowed
    }

    /// Returns what was refused so far.
    #[must_use]
    pub(crate) fn counters(&self) -> UnauthenticatedCounters {
        self.counters
    }

    fn is_unlimited(&self, client: IpAddr) -> bool {
        NetworkPrefix::any_contains(&self.unlimited_from, client)
    }
}

/// Returns one worker's share of `per_second` units a second and `burst` at once, of each at least one over all workers.
pub(crate) fn worker_share(per_second: u32, burst: u32, workers: usize) -> Rate {
    let workers = u32::try_from(workers.max(1)).unwrap_or(u32::MAX);
    let per_second = f64::from(per_second.max(1)) / f64::from(workers);
    Rate::new(per_second, f64::from(burst.div_ceil(workers).max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::time::now;
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;
    use std::time::Duration;

    fn limiter(rate: u32, burst: u32, workers: usize) -> (UnauthenticatedLimiter, Now) {
        let unlimited_from = Vec::new();
        make(
            &UnauthenticatedLimits { rate, burst, unlimited_from, ..UnauthenticatedLimits::default() },
            workers,
        )
    }

    fn make(limits: &UnauthenticatedLimits, workers: usize) -> (UnauthenticatedLimiter, Now) {
        let now = now();
        (UnauthenticatedLimiter::new(limits, workers, now, &mut ChaCha20Rng::seed_from_u64(7)), now)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// How many of `asked` responses of the same length pass at `now`.
    fn passed(limiter: &mut UnauthenticatedLimiter, now: Now, to: &str, asked: usize) -> usize {
        (0..asked).filter(|_| limiter.allow_response(now, ip(to), 20, 20)).count()
    }

    #[test]
    fn a_network_gets_its_burst_and_then_its_rate() {
        let (mut limiter, start) = limiter(500, 1000, 1);
        assert_eq!(passed(&mut limiter, start, "192.0.2.1", 3000), 1000);
        assert_eq!(limiter.counters().over_rate, 2000);
        let later = start.after(Duration::from_millis(100));
        assert_eq!(passed(&mut limiter, later, "192.0.2.1", 3000), 50);
        assert_eq!(passed(&mut limiter, start.after(Duration::from_secs(3600)), "192.0.2.1", 3000), 1000);
    }

    #[test]
    fn a_network_is_a_24_or_a_48() {
        let (mut limiter, now) = limiter(1, 10, 1);
        assert_eq!(passed(&mut limiter, now, "192.0.2.1", 20), 10);
        assert_eq!(passed(&mut limiter, now, "192.0.2.255", 20), 0);
        assert_eq!(passed(&mut limiter, now, "::ffff:192.0.2.9", 20), 0);
        assert_eq!(passed(&mut limiter, now, "192.0.3.1", 20), 10);
        assert_eq!(passed(&mut limiter, now, "2001:db8:1::1", 20), 10);
        assert_eq!(passed(&mut limiter, now, "2001:db8:1:ffff::2", 20), 0);
        assert_eq!(passed(&mut limiter, now, "2001:db8:2::1", 20), 10);
    }

    #[test]
    fn workers_share_the_rate_and_the_burst_evenly() {
        let (mut limiter, start) = limiter(500, 1000, 4);
        assert_eq!(passed(&mut limiter, start, "192.0.2.1", 3000), 250);
        assert_eq!(passed(&mut limiter, start.after(Duration::from_secs(1)), "192.0.2.1", 3000), 125);
    }

    #[test]
    fn listed_prefixes_have_no_rate_and_still_a_size() {
        let limits = UnauthenticatedLimits { rate: 1, burst: 1, ..UnauthenticatedLimits::default() };
        let (mut limiter, now) = make(&limits, 1);
        for from in ["127.0.0.1", "127.200.0.1", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(passed(&mut limiter, now, from, 50), 50, "{from}");
            assert!(!limiter.allow_response(now, ip(from), 20, 117));
        }
        assert_eq!(passed(&mut limiter, now, "128.0.0.1", 50), 1);
    }

    #[test]
    fn no_response_is_larger_than_three_requests() {
        let (mut limiter, now) = limiter(500, 1000, 1);
        assert!(limiter.allow_response(now, ip("192.0.2.1"), 20, 116));
        assert!(!limiter.allow_response(now, ip("192.0.2.1"), 20, 117));
        assert!(limiter.allow_response(now, ip("192.0.2.1"), 0, 56));
        assert_eq!(
            limiter.counters(),
            UnauthenticatedCounters { over_size: 1, ..UnauthenticatedCounters::default() }
        );
    }

    #[test]
    fn a_newcomer_is_served_while_every_network_is_over_its_rate() {
        let (mut limiter, now) = limiter(1, 2, 1);
        for network in 0..200_000_u32 {
            let to = IpAddr::from((0x0B00_0000 + (network << 8)).to_be_bytes());
            assert!(
                limiter.allow_response(now, to, 20, 20) && limiter.allow_response(now, to, 20, 20),
                "{to}"
            );
            assert!(!limiter.allow_response(now, to, 20, 20), "{to}");
        }
        assert_eq!(passed(&mut limiter, now, "2001:db8::1", 3), 2);
    }

    #[test]
    fn a_network_over_its_rate_outlasts_newcomers_that_ask_little() {
        let (mut limiter, now) = limiter(1, 1000, 1);
        assert_eq!(passed(&mut limiter, now, "192.0.2.1", 2000), 1000);
        for network in 0..500_000_u32 {
            assert!(limiter.allow_response(
                now,
                IpAddr::from((0x0B00_0000 + (network << 8)).to_be_bytes()),
                20,
                20
            ));
        }
        assert_eq!(passed(&mut limiter, now, "192.0.2.1", 100), 0);
    }

    #[test]
    fn a_handshake_is_charged_to_its_network_like_25_responses() {
        let (mut limiter, start) = limiter(500, 1000, 1);
        let begun = |limiter: &mut UnauthenticatedLimiter, now: Now, from: &str| {
            (0..3000).filter(|_| limiter.allow_handshake(now, ip(from))).count()
        };
        // The burst of all is spent first, and comes back within a quarter of a second.
        assert_eq!(begun(&mut limiter, start, "192.0.2.1"), 25);
        assert_eq!(limiter.counters().handshakes, 2975);
        let mut all = 25;
        for quarter in 1..=40 {
            all += begun(&mut limiter, start.after(Duration::from_millis(250 * quarter)), "192.0.2.1");
        }
        assert!((40..=40 + 200).contains(&all), "{all} in ten seconds: 40 at once and 20 a second");
        assert_eq!(passed(&mut limiter, start.after(Duration::from_secs(10)), "192.0.2.9", 100), 0);
        assert_eq!(passed(&mut limiter, start.after(Duration::from_secs(10)), "192.0.3.9", 100), 100);
    }

    #[test]
    fn all_networks_together_begin_a_hundred_handshakes_a_second() {
        for workers in [1, 4] {
            let (mut limiter, start) = limiter(500, 1000, workers);
            let mut begun = 0;
            // Six thousand a second, each from a network of its own.
            for number in 0..60_000_u32 {
                let now = start.after(Duration::from_micros(u64::from(number) * 166));
                let from = IpAddr::from((0x0B00_0000 + (number << 8)).to_be_bytes());
                begun += usize::from(limiter.allow_handshake(now, from));
            }
            let share = 1000 / workers;
            assert!((share..=share + 25).contains(&begun), "{begun} of one of {workers} workers");
        }
        let limits = UnauthenticatedLimits { dtls_handshakes: 1, ..UnauthenticatedLimits::default() };
        let (mut limiter, now) = make(&limits, 8);
        assert!((0..50).all(|_| limiter.allow_handshake(now, ip("127.0.0.1"))), "an exempted prefix");
    }
}
