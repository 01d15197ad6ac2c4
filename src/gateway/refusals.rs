//! Rate limits for refused Dials, of one endpoint and of all endpoints of one network. Pure.

use super::budget::Network;
use crate::clock::TickBase;
use crate::limits::{KeyedRateLimiter, Limit, NetworkPrefix, Rate, RateLimiter};
use rand::RngCore;
use std::time::{Duration, Instant};

/// Refused Dials of one client per second, and the burst.
const RATE: f64 = 10.0;
const BURST: f64 = 50.0;
/// The factor for all clients of one network together.
const PER_NETWORK: f64 = 10.0;
/// The factor for a server, which dials many clients.
const PER_SERVER: f64 = 64.0;
/// Networks in the table.
const NETWORKS: usize = 16_384;

/// The limiters of networks.
#[derive(Debug)]
pub(super) struct Refusals {
    networks: KeyedRateLimiter<NetworkPrefix>,
    base: Option<TickBase>,
}

impl Refusals {
    pub(super) fn new(rng: &mut impl RngCore) -> Self {
        let networks = KeyedRateLimiter::new(times(PER_NETWORK), NETWORKS, Limit::RateLimiterKeys, rng);
        Self { networks, base: None }
    }

    /// Counts a Dial that was refused; returns for how long its endpoint is paused.
    pub(super) fn count(&mut self, now: Instant, network: Network, own: &mut RateLimiter) -> Duration {
        let ticks = self.base.get_or_insert(TickBase::new(now)).ticks(now);
        let Some(network) = network else { return own.charge(times(PER_SERVER), ticks, 1) };
        let wait = own.charge(times(1.0), ticks, 1).max(self.networks.charge(&network, now, 1));
        if !wait.is_zero() {
            Limit::GatewayRefusals.reached(RATE as u64);
        }
        wait
    }
}

/// Returns the rate of a client, multiplied.
fn times(factor: f64) -> Rate {
    Rate::new(RATE * factor, BURST * factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::budget::network;
    use crate::net::time::now;
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;

    fn refusals() -> Refusals {
        Refusals::new(&mut ChaCha20Rng::seed_from_u64(7))
    }

    #[test]
    fn a_burst_is_free_and_further_refusals_are_paced() {
        let (start, mut refusals) = (now().mono, refusals());
        let (address, mut own) = (network([192, 0, 2, 1].into()), RateLimiter::default());
        let mut waits = (0..60).map(|_| refusals.count(start, address, &mut own));
        assert!(waits.by_ref().take(50).all(|wait| wait.is_zero()));
        assert_eq!(waits.last(), Some(Duration::from_secs(1)));
        let mut server = RateLimiter::default();
        assert!((0..3000).all(|_| refusals.count(start, None, &mut server).is_zero()));
    }

    #[test]
    fn one_address_has_ten_times_the_limit_over_all_its_connections() {
        let (start, mut refusals) = (now().mono, refusals());
        let address = network([192, 0, 2, 1].into());
        let passed = (0..1000)
            .filter(|_| refusals.count(start, address, &mut RateLimiter::default()).is_zero())
            .count();
        assert_eq!(passed, 500);
        assert!(refusals.count(start, network([192, 0, 2, 2].into()), &mut RateLimiter::default()).is_zero());
    }
}
