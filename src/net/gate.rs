//! What leaves for strangers: a token bucket per network in fixed memory, and a bound on how much larger than its question an
//! answer may be. Pure.
//!
//! Until integrity is verified a source address is a claim, and whoever it names gets the answer. A [`Gate`] belongs to one worker
//! and needs no lock. Its table never grows: a network that finds its set full takes the place of the one that has been served
//! least, so that a flood, from however many networks, keeps no newcomer out.

use crate::clock::Now;
use crate::limits::Limit;
use ipnet::IpNet;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

/// Bytes of IP and UDP header that are counted with each datagram.
const HEADERS: usize = 28;
/// The most times that an answer may be larger than its question, headers counted.
const MAX_RATIO: usize = 3;
/// Networks that share one set.
const WAYS: usize = 4;
/// Sets of the table: 1 MiB in all.
const SETS: usize = 16_384;
/// How many answers a DTLS handshake counts for: it costs the worker a signature and a key agreement.
const HANDSHAKE: u64 = 25;
/// The part of a second's handshakes that may begin at once: each holds up what is relayed meanwhile.
const HANDSHAKE_BURST: u64 = 4;

/// The limits of one server.
#[derive(Debug, Clone)]
pub struct GateConfig {
    /// Answers a second to one network (IPv4 /24, IPv6 /48), over all workers; default 500.
    pub rate: u32,
    /// Answers that a network may get at once after a pause; default 1000.
    pub burst: u32,
    /// DTLS handshakes a second of all networks together, over all workers; default 100.
    pub dtls_handshakes: u32,
    /// Prefixes without these limits; default loopback.
    pub unlimited_from: Vec<IpNet>,
}

impl Default for GateConfig {
    fn default() -> Self {
        let loopback = [IpAddr::from([127, 0, 0, 0]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])];
        let unlimited_from =
            loopback.into_iter().zip([8, 128]).filter_map(|(ip, len)| IpNet::new(ip, len).ok());
        Self { rate: 500, burst: 1000, dtls_handshakes: 100, unlimited_from: unlimited_from.collect() }
    }
}

/// What a gate has held back since it began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Answers to networks whose bucket was empty.
    pub over_rate: u64,
    /// Answers larger than three times their question.
    pub over_size: u64,
    /// DTLS handshakes beyond those of a network or of all.
    pub handshakes: u64,
}

/// One network's bucket.
#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    /// The network; zero for none.
    network: u64,
    /// When the bucket will be full again, in ns since the gate's beginning: all that a token bucket needs to remember.
    full_at: u64,
}

impl Bucket {
    /// Takes what costs `cost` ns of refilling from a bucket that holds `depth`; `false` when there is not as much.
    fn take(&mut self, now: u64, cost: u64, depth: u64) -> bool {
        let full_at = self.full_at.max(now).saturating_add(cost);
        let admitted = full_at - now <= depth;
        if admitted {
            self.full_at = full_at;
        }
        admitted
    }
}

/// The pace of a bucket.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Time in which one token comes back, ns.
    interval: u64,
    /// Time in which an empty bucket becomes full, ns.
    depth: u64,
}

impl Pace {
    /// One worker's share of `rate` tokens a second and `burst` at once.
    fn share(rate: u32, burst: u64, workers: u64) -> Self {
        let interval = 1_000_000_000 * workers / u64::from(rate.max(1));
        Self { interval, depth: interval * burst.div_ceil(workers).max(1) }
    }
}

/// One worker's share of the limits.
#[derive(Debug)]
pub struct Gate {
    sets: Box<[[Bucket; WAYS]]>,
    keys: RandomState,
    began: Instant,
    /// As configured, for all workers.
    rates: [u32; 2],
    pace: Pace,
    /// The handshakes of all networks.
    handshakes: Bucket,
    handshake_pace: Pace,
    unlimited_from: Arc<[IpNet]>,
    held: Held,
}

impl Gate {
    /// Makes the gate of one of `workers` workers, each of which has its even share of the rate and the burst. `keys` place networks
    /// in the table and must be unknown outside, so that nobody can aim at another network's set.
    #[must_use]
    pub fn new(config: &GateConfig, workers: usize, now: Now, keys: RandomState) -> Self {
        let workers = workers.max(1) as u64;
        let handshakes = config.dtls_handshakes;
        Self {
            sets: vec![[Bucket::default(); WAYS]; SETS].into(),
            keys,
            began: now.mono,
            pace: Pace::share(config.rate, config.burst.into(), workers),
            handshakes: Bucket::default(),
            handshake_pace: Pace::share(handshakes, u64::from(handshakes) / HANDSHAKE_BURST, workers),
            rates: [config.rate, handshakes],
            unlimited_from: config.unlimited_from.clone().into(),
            held: Held::default(),
        }
    }

    /// Decides whether an answer of `answer` bytes may leave for `to`, whose datagram of `question` bytes asked for it; takes the
    /// token if so, and counts it if not.
    pub fn admits(&mut self, now: Now, to: IpAddr, question: usize, answer: usize) -> bool {
        if answer + HEADERS > MAX_RATIO * (question + HEADERS) {
            self.held.over_size += 1;
            Limit::AnswerSize.reached(MAX_RATIO);
            return false;
        }
        let admitted = self.takes(now, to);
        if !admitted {
            Limit::UnauthenticatedRate.reached(self.rates[0]);
        }
        admitted
    }

    /// Takes a token of a network; `false` when it has none left. For what has a rate alone.
    pub fn takes(&mut self, now: Now, to: IpAddr) -> bool {
        let to = to.to_canonical();
        if self.is_unlimited(to) {
            return true;
        }
        let (now, Pace { interval, depth }) = (self.elapsed(now), self.pace);
        let admitted = self.bucket(network(to)).take(now, interval, depth);
        if !admitted {
            self.held.over_rate += 1;
        }
        admitted
    }

    /// Decides whether `from` may begin a DTLS handshake, which its network and all networks together are charged for; counts it if not.
    pub fn admits_handshake(&mut self, now: Now, from: IpAddr) -> bool {
        let from = from.to_canonical();
        if self.is_unlimited(from) {
            return true;
        }
        let now = self.elapsed(now);
        let Pace { interval, depth } = self.pace;
        // A network whose burst is small may begin one all the same, once its bucket is full.
        let cost = (HANDSHAKE * interval).min(depth);
        let all = self.handshake_pace;
        let admitted = self.bucket(network(from)).take(now, cost, depth)
            && self.handshakes.take(now, all.interval, all.depth);
        if !admitted {
            self.held.handshakes += 1;
            Limit::DtlsHandshakes.reached(self.rates[1]);
        }
        admitted
    }

    fn is_unlimited(&self, ip: IpAddr) -> bool {
        self.unlimited_from.iter().any(|prefix| prefix.contains(&ip))
    }

    /// Returns the nanoseconds since the gate's beginning.
    fn elapsed(&self, now: Now) -> u64 {
        let elapsed = now.mono.saturating_duration_since(self.began);
        u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Returns what was held back so far.
    #[must_use]
    pub fn held(&self) -> Held {
        self.held
    }

    /// Returns the bucket of `network`, which begins full in the place of the one that is fullest.
    fn bucket(&mut self, network: u64) -> &mut Bucket {
        let set = &mut self.sets[(self.keys.hash_one(network) % SETS as u64) as usize];
        let known = set.iter().position(|bucket| bucket.network == network);
        let way = known.unwrap_or_else(|| {
            let fullest = (0..WAYS).min_by_key(|way| set[*way].full_at).unwrap_or_default();
            set[fullest] = Bucket { network, full_at: 0 };
            fullest
        });
        &mut set[way]
    }
}

/// Names the /24 or /48 that `ip` is in; never zero.
#[must_use]
pub(crate) fn network(ip: IpAddr) -> u64 {
    match ip.to_canonical() {
        IpAddr::V4(ip) => 1 << 48 | u64::from(ip.to_bits() >> 8),
        IpAddr::V6(ip) => 1 << 49 | (ip.to_bits() >> 80) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::time::now;
    use std::time::Duration;

    fn gate(rate: u32, burst: u32, workers: usize) -> (Gate, Now) {
        let now = now();
        let config = GateConfig { rate, burst, unlimited_from: Vec::new(), ..GateConfig::default() };
        (Gate::new(&config, workers, now, RandomState::new()), now)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// How many of `asked` answers of the same length pass at `now`.
    fn passed(gate: &mut Gate, now: Now, to: &str, asked: usize) -> usize {
        (0..asked).filter(|_| gate.admits(now, ip(to), 20, 20)).count()
    }

    #[test]
    fn a_network_gets_its_burst_and_then_its_rate() {
        let (mut gate, start) = gate(500, 1000, 1);
        assert_eq!(passed(&mut gate, start, "192.0.2.1", 3000), 1000);
        assert_eq!(gate.held().over_rate, 2000);
        let later = start.after(Duration::from_millis(100));
        assert_eq!(passed(&mut gate, later, "192.0.2.1", 3000), 50);
        assert_eq!(passed(&mut gate, start.after(Duration::from_secs(3600)), "192.0.2.1", 3000), 1000);
    }

    #[test]
    fn a_network_is_a_24_or_a_48() {
        let (mut gate, now) = gate(1, 10, 1);
        assert_eq!(passed(&mut gate, now, "192.0.2.1", 20), 10);
        assert_eq!(passed(&mut gate, now, "192.0.2.255", 20), 0);
        assert_eq!(passed(&mut gate, now, "::ffff:192.0.2.9", 20), 0);
        assert_eq!(passed(&mut gate, now, "192.0.3.1", 20), 10);
        assert_eq!(passed(&mut gate, now, "2001:db8:1::1", 20), 10);
        assert_eq!(passed(&mut gate, now, "2001:db8:1:ffff::2", 20), 0);
        assert_eq!(passed(&mut gate, now, "2001:db8:2::1", 20), 10);
    }

    #[test]
    fn workers_share_the_rate_and_the_burst_evenly() {
        let (mut gate, start) = gate(500, 1000, 4);
        assert_eq!(passed(&mut gate, start, "192.0.2.1", 3000), 250);
        assert_eq!(passed(&mut gate, start.after(Duration::from_secs(1)), "192.0.2.1", 3000), 125);
    }

    #[test]
    fn listed_prefixes_have_no_rate_and_still_a_size() {
        let config = GateConfig { rate: 1, burst: 1, ..GateConfig::default() };
        let now = now();
        let mut gate = Gate::new(&config, 1, now, RandomState::new());
        for from in ["127.0.0.1", "127.200.0.1", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(passed(&mut gate, now, from, 50), 50, "{from}");
            assert!(!gate.admits(now, ip(from), 20, 117));
        }
        assert_eq!(passed(&mut gate, now, "128.0.0.1", 50), 1);
    }

    #[test]
    fn no_answer_is_larger_than_three_questions() {
        let (mut gate, now) = gate(500, 1000, 1);
        assert!(gate.admits(now, ip("192.0.2.1"), 20, 116));
        assert!(!gate.admits(now, ip("192.0.2.1"), 20, 117));
        assert!(gate.admits(now, ip("192.0.2.1"), 0, 56));
        assert_eq!(gate.held(), Held { over_size: 1, ..Held::default() });
    }

    #[test]
    fn a_newcomer_is_served_while_every_bucket_is_empty() {
        let (mut gate, now) = gate(1, 2, 1);
        for network in 0..200_000_u32 {
            let to = IpAddr::from((0x0B00_0000 + (network << 8)).to_be_bytes());
            assert!(gate.admits(now, to, 20, 20) && gate.admits(now, to, 20, 20), "{to}");
            assert!(!gate.admits(now, to, 20, 20), "{to}");
        }
        assert_eq!(passed(&mut gate, now, "2001:db8::1", 3), 2);
    }

    #[test]
    fn a_drained_bucket_outlasts_newcomers_that_ask_little() {
        let (mut gate, now) = gate(1, 1000, 1);
        assert_eq!(passed(&mut gate, now, "192.0.2.1", 2000), 1000);
        for network in 0..500_000_u32 {
            assert!(gate.admits(now, IpAddr::from((0x0B00_0000 + (network << 8)).to_be_bytes()), 20, 20));
        }
        assert_eq!(passed(&mut gate, now, "192.0.2.1", 100), 0);
    }

    #[test]
    fn a_handshake_is_charged_to_its_network_like_25_answers() {
        let (mut gate, start) = gate(500, 1000, 1);
        let begun = |gate: &mut Gate, now: Now, from: &str| {
            (0..3000).filter(|_| gate.admits_handshake(now, ip(from))).count()
        };
        // The burst of all is spent first, and comes back within a quarter of a second.
        assert_eq!(begun(&mut gate, start, "192.0.2.1"), 25);
        assert_eq!(gate.held().handshakes, 2975);
        let mut all = 25;
        for quarter in 1..=40 {
            all += begun(&mut gate, start.after(Duration::from_millis(250 * quarter)), "192.0.2.1");
        }
        assert!((40..=40 + 200).contains(&all), "{all} in ten seconds: 40 at once and 20 a second");
        assert_eq!(passed(&mut gate, start.after(Duration::from_secs(10)), "192.0.2.9", 100), 0);
        assert_eq!(passed(&mut gate, start.after(Duration::from_secs(10)), "192.0.3.9", 100), 100);
    }

    #[test]
    fn all_networks_together_begin_a_hundred_handshakes_a_second() {
        for workers in [1, 4] {
            let (mut gate, start) = gate(500, 1000, workers);
            let mut begun = 0;
            // Six thousand a second, each from a network of its own.
            for number in 0..60_000_u32 {
                let now = start.after(Duration::from_micros(u64::from(number) * 166));
                let from = IpAddr::from((0x0B00_0000 + (number << 8)).to_be_bytes());
                begun += usize::from(gate.admits_handshake(now, from));
            }
            let share = 1000 / workers;
            assert!((share..=share + 25).contains(&begun), "{begun} of one of {workers} workers");
        }
        let config = GateConfig { dtls_handshakes: 1, ..GateConfig::default() };
        let mut gate = Gate::new(&config, 8, now(), RandomState::new());
        assert!((0..50).all(|_| gate.admits_handshake(now(), ip("127.0.0.1"))), "an exempted prefix");
    }

    #[test]
    fn the_table_has_the_size_it_says() {
        assert_eq!(size_of::<[Bucket; WAYS]>() * SETS, 1 << 20);
    }
}
