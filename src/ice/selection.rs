//! Which pair carries data, and which one is nominated.
//!
//! Checks only promote: a pair is left for a better one that has answered, or when it is silent. Without any pair that answers, the silent one
//! goes on carrying data.

use super::generation::Generation;
use super::machine::{IceAgent, IceEvent, IceRole, IceState};
use super::pair::{Pair, PairKey, PairState};
use std::time::{Duration, Instant};

/// A pair of the same kind takes the place of the selected one if its round trip is a fifth shorter, and at least this much.
const GAIN: Duration = Duration::from_millis(10);

impl IceAgent {
    pub(super) fn select(&mut self, now: Instant) {
        let chosen = self.choose();
        if let Some(key) = chosen
            && self.current.pair(key).is_some_and(|pair| pair.is_usable() && !pair.is_suspect)
        {
            let gone = self.previous.take();
            gone.into_iter().for_each(|gone| self.forget(&gone));
        }
        if chosen != self.selected {
            self.selected = chosen;
            if let Some(selected) = self.selected() {
                self.push_event(IceEvent::Selected(Box::new(selected)));
            }
        }
        self.nominate(now);
    }

    fn choose(&self) -> Option<PairKey> {
        let followed =
            self.current.nominated.filter(|_| self.role == IceRole::Controlled).map(|(key, _)| key);
        let answers = |pair: &&Pair| pair.is_usable() && !pair.is_suspect;
        if let Some(pair) = followed.and_then(|key| self.current.pair(key)).filter(answers) {
            return Some(pair.key);
        }
        let selected = self.selected.and_then(|key| self.current.pair(key)).filter(answers);
        if let Some(best) = self.best(&self.current, selected) {
            return Some(best);
        }
        if let Some(previous) = &self.previous {
            let selected = self.selected.and_then(|key| previous.pair(key)).filter(answers);
            if let Some(best) = self.best(previous, selected) {
                return Some(best);
            }
        }
        // Nothing answers: what carried data goes on, or what was usable last.
        let is_usable = |key: &PairKey| self.pair(*key).is_some_and(Pair::is_usable);
        let usable =
            self.generations().flat_map(|generation| generation.pairs.iter()).find(|pair| pair.is_usable());
        self.selected.filter(is_usable).or(usable.map(|pair| pair.key))
    }

    /// Returns the best pair that answers; `selected` stays unless the gain is clear.
    fn best(&self, generation: &Generation, selected: Option<&Pair>) -> Option<PairKey> {
        let answering = generation.pairs.iter().filter(|pair| pair.is_usable() && !pair.is_suspect);
        let order = |pair: &&Pair| {
            let round_trip = pair.best_round_trip.unwrap_or(Duration::MAX);
            let steps = round_trip.as_millis() / GAIN.as_millis();
            (pair.tier(), steps, std::cmp::Reverse(pair.priority(self.role)))
        };
        let best = answering.min_by_key(order)?;
        match selected {
            Some(selected) if !is_clearly_better(best, selected) => Some(selected.key),
            // The peer, which has its own rule for several nominations, would stay.
            Some(selected) if self.is_final(selected) && best.tier() == selected.tier() => Some(selected.key),
            _ => Some(best.key),
        }
    }

    /// Whether a pair was nominated to a peer that takes one nomination. It is left only for a better kind of path, or when it is silent.
    fn is_final(&self, pair: &Pair) -> bool {
        let is_nominated = self.current.nominated.is_some_and(|(key, _)| key == pair.key);
        !self.config.renomination && self.role == IceRole::Controlling && is_nominated
    }

    /// Has the selected pair nominated, if this agent is controlling (RFC 8445 section 8.1.1).
    fn nominate(&mut self, now: Instant) {
        let Some(key) = self.selected.filter(|_| self.role == IceRole::Controlling) else { return };
        if self.current.nominated.is_some_and(|(nominated, _)| nominated == key) || self.is_worth_waiting(key)
        {
            return;
        }
        let Some(pair) = self.current.pair_mut(key).filter(|pair| pair.is_usable()) else { return };
        if pair.is_to_be_nominated {
            return;
        }
        pair.is_to_be_nominated = true;
        pair.next_check = Some(now);
        self.next_nomination = self.next_nomination.saturating_add(1);
        for other in self.current.pairs.iter_mut().filter(|other| other.key != key) {
            other.is_to_be_nominated = false;
        }
    }

    /// An agent that takes only the first nomination must not get a relay while a better pair is checked for the first time.
    fn is_worth_waiting(&self, key: PairKey) -> bool {
        let Some(tier) = self.current.pair(key).map(Pair::tier) else { return false };
        let is_hopeful = |pair: &Pair| {
            pair.tier() < tier && matches!(pair.state, PairState::Frozen | PairState::Checking(_))
        };
        !self.config.renomination
            && self.current.nominated.is_none()
            && self.current.pairs.iter().any(is_hopeful)
    }

    pub(super) fn update_state(&mut self, now: Instant) {
        let answers = |pair: &Pair| pair.is_usable() && !pair.is_suspect;
        let has_path = self.selected.and_then(|key| self.pair(key)).is_some_and(answers);
        let state = if has_path {
            self.without_path_since = None;
            IceState::Connected
        } else {
            if self.current.remote.is_some() && self.without_path_since.is_none() {
                self.without_path_since = Some(now);
            }
            match self.state {
                IceState::Failed => IceState::Failed,
                _ if self.is_out_of_patience(now) => IceState::Failed,
                IceState::Checking => IceState::Checking,
                IceState::Connected | IceState::Disconnected => IceState::Disconnected,
            }
        };
        if state == IceState::Disconnected && self.state == IceState::Connected {
            // Whatever may still work is found at once.
            for generation in [Some(&mut self.current), self.previous.as_mut()].into_iter().flatten() {
                generation.pairs.iter_mut().for_each(|pair| pair.check_now(now));
            }
        }
        if state != self.state {
            self.state = state;
            self.push_event(IceEvent::State(state));
        }
    }
}

fn is_clearly_better(pair: &Pair, selected: &Pair) -> bool {
    if pair.tier() != selected.tier() {
        return pair.tier() < selected.tier();
    }
    let (Some(new), Some(old)) = (pair.best_round_trip, selected.best_round_trip) else { return false };
    new < old * 4 / 5 && new + GAIN <= old
}
