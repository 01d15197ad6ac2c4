//! How often somebody may ask: token buckets, as many as the cap allows.

use super::config::Rate;
use crate::limits::Limit;
use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// What to do with one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Pass,
    /// Too many; worth an answer, as none was given within the last second.
    Refuse,
    /// Too many, and already told so.
    Drop,
}

const PRUNE_EVERY: Duration = Duration::from_secs(1);
const REFUSE_EVERY: Duration = Duration::from_secs(1);

/// One bucket for each key; keys beyond the cap share one.
#[derive(Debug)]
pub(super) struct Rates<K> {
    rate: Rate,
    cap: usize,
    buckets: HashMap<K, Bucket>,
    crowd: Option<Bucket>,
    pruned: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    level: f64,
    at: Instant,
    refused: Option<Instant>,
}

impl Bucket {
    fn take(&mut self, rate: Rate, now: Instant) -> Verdict {
        self.level = self.level_at(rate, now);
        self.at = now;
        if self.level >= 1.0 {
            self.level -= 1.0;
            return Verdict::Pass;
        }
        if self.refused.is_some_and(|refused| now.saturating_duration_since(refused) < REFUSE_EVERY) {
            return Verdict::Drop;
        }
        self.refused = Some(now);
        Verdict::Refuse
    }

    fn level_at(&self, rate: Rate, now: Instant) -> f64 {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        rate.burst.min(since.mul_add(rate.per_second, self.level))
    }
}

impl<K: Eq + Hash> Rates<K> {
    pub(super) fn new(rate: Rate, cap: usize) -> Self {
        Self { rate, cap, buckets: HashMap::new(), crowd: None, pruned: None }
    }

    pub(super) fn take(&mut self, key: K, now: Instant) -> Verdict {
        let (rate, full) = (self.rate, Bucket { level: self.rate.burst, at: now, refused: None });
        if let Some(bucket) = self.buckets.get_mut(&key) {
            return bucket.take(rate, now);
        }
        if self.buckets.len() >= self.cap {
            self.prune(now);
        }
        if self.buckets.len() >= self.cap {
            Limit::SignalingRates.reached(self.cap);
            return self.crowd.get_or_insert(full).take(rate, now);
        }
        self.buckets.entry(key).or_insert(full).take(rate, now)
    }

    /// Takes so much more of a bucket that one was taken of, which may leave a debt.
    pub(super) fn charge(&mut self, key: &K, more: f64) {
        if let Some(bucket) = self.buckets.get_mut(key).or(self.crowd.as_mut()) {
            bucket.level -= more;
        }
    }

    /// Forgets those whose bucket has filled up again; at most once a second, as it looks at all of them.
    fn prune(&mut self, now: Instant) {
        if self.pruned.is_some_and(|pruned| now.saturating_duration_since(pruned) < PRUNE_EVERY) {
            return;
        }
        self.pruned = Some(now);
        let rate = self.rate;
        self.buckets.retain(|_, bucket| bucket.level_at(rate, now) < rate.burst);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.buckets.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::time::now;

    const RATE: Rate = Rate { burst: 2.0, per_second: 1.0 };

    #[test]
    fn a_burst_passes_then_one_refusal_a_second_and_later_more() {
        let (mut rates, start) = (Rates::new(RATE, 8), now().mono);
        let half = start + Duration::from_millis(500);
        let takes: Vec<_> = [start, start, start, half].map(|at| rates.take("a", at)).to_vec();
        assert_eq!(takes, [Verdict::Pass, Verdict::Pass, Verdict::Refuse, Verdict::Drop]);
        assert_eq!(rates.take("b", half), Verdict::Pass);
        assert_eq!(rates.take("a", start + Duration::from_secs(1)), Verdict::Pass);
    }

    #[test]
    fn a_debt_is_waited_for() {
        let (mut rates, start) = (Rates::new(RATE, 8), now().mono);
        assert_eq!(rates.take("a", start), Verdict::Pass);
        rates.charge(&"a", 5.0);
        for (seconds, verdict) in [(0, Verdict::Refuse), (4, Verdict::Refuse), (5, Verdict::Pass)] {
            assert_eq!(rates.take("a", start + Duration::from_secs(seconds)), verdict, "{seconds}");
        }
    }

    #[test]
    fn beyond_the_cap_newcomers_share_one_bucket_until_others_are_forgotten() {
        let (mut rates, start) = (Rates::new(RATE, 2), now().mono);
        let verdicts: Vec<_> = (0..5).map(|key| rates.take(key, start)).collect();
        use Verdict::{Pass, Refuse};
        assert_eq!(verdicts, [Pass, Pass, Pass, Pass, Refuse]);
        assert_eq!(rates.len(), 2);
        assert_eq!(rates.take(9, start + Duration::from_secs(3)), Pass);
        assert_eq!(rates.len(), 1);
    }
}
