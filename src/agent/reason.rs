//! Why a session is on the relay, in the words that people are shown.

use super::candidate::LaneKind;
use super::session::Mode;
use crate::signaling::wire::Nat;
use std::fmt;

/// What is known of both sides.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Facts {
    /// Which paths this side may use.
    pub mode: Mode,
    /// This side's NAT.
    pub mine: Option<Nat>,
    /// The other side's NAT.
    pub theirs: Option<Nat>,
    /// The other side has told at least one candidate for the direct lane.
    pub their_direct: bool,
    /// The other side has told all its candidates.
    pub their_done: bool,
    /// The direct lane has had its time.
    pub trial_over: bool,
    /// The direct lane carried data and fell silent.
    pub lost_direct: bool,
    /// The lane that carries data.
    pub active: Option<LaneKind>,
}

/// Why it is the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// `--relay-only` on this side.
    AskedHere,
    /// `--relay-only` on the other side.
    AskedThere,
    /// No UDP on this side.
    BlockedHere,
    /// No UDP on the other side.
    BlockedThere,
    /// There was a direct path.
    Lost,
    /// A new port for each destination on both sides.
    BothHard,
    /// Checks are under way.
    Trying,
    /// The hard NAT is on this side, and the other one lets in only ports it has sent to.
    HardHere,
    /// The same the other way round.
    HardThere,
    /// None of the known obstacles, yet nothing came through.
    Unanswered,
}

/// Names the reason; `None` on a direct path.
#[must_use]
pub(super) fn of(facts: &Facts) -> Option<Reason> {
    let rules = [
        (facts.mode == Mode::RelayOnly, Reason::AskedHere),
        (facts.their_done && !facts.their_direct, Reason::AskedThere),
        (facts.mine == Some(Nat::Blocked), Reason::BlockedHere),
        (facts.theirs == Some(Nat::Blocked), Reason::BlockedThere),
        (facts.lost_direct, Reason::Lost),
        (facts.mine == Some(Nat::Hard) && facts.theirs == Some(Nat::Hard), Reason::BothHard),
        (!facts.trial_over, Reason::Trying),
        (facts.mine == Some(Nat::Hard), Reason::HardHere),
        (facts.theirs == Some(Nat::Hard), Reason::HardThere),
    ];
    let relayed = facts.active == Some(LaneKind::Relay);
    let first = rules.into_iter().find(|(holds, _)| *holds).map_or(Reason::Unanswered, |(_, reason)| reason);
    relayed.then_some(first)
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AskedHere => "asked for (--relay-only)",
            Self::AskedThere => "asked for on the other side",
            Self::BlockedHere => "UDP is blocked here",
            Self::BlockedThere => "UDP is blocked on the other side",
            Self::Lost => "the direct path stopped answering",
            Self::BothHard => "both NATs change ports",
            Self::Trying => "direct path still being tried",
            Self::HardHere => "this NAT changes ports and theirs filters by port",
            Self::HardThere => "their NAT changes ports and this one filters by port",
            Self::Unanswered => "direct checks got no answer",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strongest_fact_is_the_reason() {
        use Nat::{Blocked, Easy, Hard, Open};
        let facts = |mine, theirs, trial_over| Facts {
            mine,
            theirs,
            their_direct: true,
            trial_over,
            active: Some(LaneKind::Relay),
            ..Facts::default()
        };
        let table = [
            (facts(Some(Hard), Some(Hard), false), "both NATs change ports"),
            (facts(Some(Hard), Some(Easy), false), "direct path still being tried"),
            (facts(Some(Hard), Some(Easy), true), "this NAT changes ports and theirs filters by port"),
            (facts(Some(Easy), Some(Hard), true), "their NAT changes ports and this one filters by port"),
            (facts(Some(Blocked), Some(Hard), false), "UDP is blocked here"),
            (facts(Some(Open), Some(Blocked), true), "UDP is blocked on the other side"),
            (facts(Some(Easy), Some(Easy), true), "direct checks got no answer"),
            (facts(None, None, false), "direct path still being tried"),
            (
                Facts { mode: Mode::RelayOnly, ..facts(Some(Hard), Some(Hard), true) },
                "asked for (--relay-only)",
            ),
            (
                Facts { their_done: true, their_direct: false, ..facts(None, None, true) },
                "asked for on the other side",
            ),
            (Facts { lost_direct: true, ..facts(None, None, true) }, "the direct path stopped answering"),
        ];
        for (facts, expected) in table {
            assert_eq!(of(&facts).map(|reason| reason.to_string()).as_deref(), Some(expected), "{facts:?}");
            assert_eq!(of(&Facts { active: Some(LaneKind::Direct), ..facts }), None);
        }
    }
}
