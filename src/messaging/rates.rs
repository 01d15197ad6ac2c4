//! How often networks may log in, register and exchange keys. Pure.

use super::config::Limits;
use crate::limits::{KeyedRateLimiter, Limit, NetworkPrefix, Quota, Rate};
use rand::RngCore;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

/// Look-ups of devices a second of one network, and at once.
const LOOKUPS: f64 = 20.0;
const LOOKUP_BURST: f64 = 500.0;
/// Signatures a second, each of which takes about 50 µs of the thread that handles all messages.
const SIGNATURES: f64 = 2000.0;

#[derive(Debug)]
pub(super) struct Rates {
    /// By account and network: a flood from elsewhere does not lock the owner out.
    logins_per_account: KeyedRateLimiter<(String, NetworkPrefix)>,
    logins_per_network: KeyedRateLimiter<NetworkPrefix>,
    registrations: KeyedRateLimiter<NetworkPrefix>,
    key_exchanges: KeyedRateLimiter<NetworkPrefix>,
    lookups: KeyedRateLimiter<NetworkPrefix>,
    signatures: KeyedRateLimiter<()>,
    /// Jobs that are not done, by kind.
    pub(super) passwords: Arc<Quota<NetworkPrefix>>,
    pub(super) session_keys: Arc<Quota<NetworkPrefix>>,
}

impl Rates {
    pub(super) fn new(limits: &Limits, random: &mut impl RngCore) -> Self {
        let (keys, overflow) = (limits.rate_keys, Limit::RateLimiterKeys);
        let quota = || Quota::new(limits.job_queue, limits.jobs_per_network);
        Self {
            logins_per_account: KeyedRateLimiter::new(limits.logins_per_account, keys, overflow, random),
            logins_per_network: KeyedRateLimiter::new(limits.logins_per_network, keys, overflow, random),
            registrations: KeyedRateLimiter::new(limits.registrations_per_network, keys, overflow, random),
            key_exchanges: KeyedRateLimiter::new(limits.key_exchanges_per_network, keys, overflow, random),
            lookups: KeyedRateLimiter::new(Rate::new(LOOKUPS, LOOKUP_BURST), keys, overflow, random),
            signatures: KeyedRateLimiter::new(Rate::new(SIGNATURES, SIGNATURES), 1, overflow, random),
            passwords: quota(),
            session_keys: quota(),
        }
    }

    pub(super) fn login(&mut self, now: Instant, ip: IpAddr, name: &str) -> bool {
        let network = NetworkPrefix::subscriber(ip);
        take(&mut self.logins_per_network, now, &network, Limit::MessagingLoginsPerNetwork)
            && take(
                &mut self.logins_per_account,
                now,
                &(name.to_owned(), network),
                Limit::MessagingLoginsPerAccount,
            )
    }

    /// A login by a signature, whatever the account.
    pub(super) fn signed_login(&mut self, now: Instant, ip: IpAddr) -> bool {
        let network = NetworkPrefix::subscriber(ip);
        take(&mut self.logins_per_network, now, &network, Limit::MessagingLoginsPerNetwork)
    }

    pub(super) fn registration(&mut self, now: Instant, ip: IpAddr) -> bool {
        let network = NetworkPrefix::subscriber(ip);
        take(&mut self.registrations, now, &network, Limit::MessagingRegistrationsPerNetwork)
    }

    pub(super) fn key_exchange(&mut self, now: Instant, ip: IpAddr) -> bool {
        let network = NetworkPrefix::subscriber(ip);
        take(&mut self.key_exchanges, now, &network, Limit::MessagingKeyExchangesPerNetwork)
    }

    /// Asks for the devices of a party.
    pub(super) fn lookup(&mut self, now: Instant, ip: IpAddr) -> bool {
        let network = NetworkPrefix::subscriber(ip);
        take(&mut self.lookups, now, &network, Limit::MessagingLookups)
    }

    /// Verifies a signature, or two: of whichever client.
    pub(super) fn signatures(&mut self, now: Instant) -> bool {
        take(&mut self.signatures, now, &(), Limit::MessagingSignatures)
    }
}

fn take<K: std::hash::Hash>(limiter: &mut KeyedRateLimiter<K>, now: Instant, key: &K, limit: Limit) -> bool {
    let is_within = limiter.try_take(key, now, 1);
    if !is_within {
        limit.reached(limiter.rate().per_second());
    }
    is_within
}
