//! Why a session is on the relay, in the words that people are shown.

use super::candidate::CandidatePath;
use super::session::Mode;
use crate::signaling::wire::NatType;
use std::fmt;

/// What is known of both sides.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Observations {
    /// Which paths this side may use.
    pub mode: Mode,
    /// This side's NAT.
    pub mine: Option<NatType>,
    /// The other side's NAT.
    pub theirs: Option<NatType>,
    /// The other side has told at least one candidate for the direct lane.
    pub their_direct: bool,
    /// The other side has told all its candidates.
    pub their_done: bool,
    /// The direct lane has had its time.
    pub trial_over: bool,
    /// The direct lane carried data and fell silent.
    pub lost_direct: bool,
    /// The lane that carries data.
    pub active: Option<CandidatePath>,
}

/// Why it is the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RelayReason {
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
pub(super) fn of(observed: &Observations) -> Option<RelayReason> {
    let rules = [
        (observed.mode == Mode::RelayOnly, RelayReason::AskedHere),
        (observed.their_done && !observed.their_direct, RelayReason::AskedThere),
        (observed.mine == Some(NatType::Blocked), RelayReason::BlockedHere),
        (observed.theirs == Some(NatType::Blocked), RelayReason::BlockedThere),
        (observed.lost_direct, RelayReason::Lost),
        (
            observed.mine == Some(NatType::Hard) && observed.theirs == Some(NatType::Hard),
            RelayReason::BothHard,
        ),
        (!observed.trial_over, RelayReason::Trying),
        (observed.mine == Some(NatType::Hard), RelayReason::HardHere),
        (observed.theirs == Some(NatType::Hard), RelayReason::HardThere),
    ];
    let relayed = observed.active == Some(CandidatePath::Relay);
    let first =
        rules.into_iter().find(|(holds, _)| *holds).map_or(RelayReason::Unanswered, |(_, reason)| reason);
    relayed.then_some(first)
}

impl fmt::Display for RelayReason {
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
        use NatType::{Blocked, Easy, Hard, Open};
        let observed = |mine, theirs, trial_over| Observations {
            mine,
            theirs,
            their_direct: true,
            trial_over,
            active: Some(CandidatePath::Relay),
            ..Observations::default()
        };
        let table = [
            (observed(Some(Hard), Some(Hard), false), "both NATs change ports"),
            (observed(Some(Hard), Some(Easy), false), "direct path still being tried"),
            (observed(Some(Hard), Some(Easy), true), "this NAT changes ports and theirs filters by port"),
            (observed(Some(Easy), Some(Hard), true), "their NAT changes ports and this one filters by port"),
            (observed(Some(Blocked), Some(Hard), false), "UDP is blocked here"),
            (observed(Some(Open), Some(Blocked), true), "UDP is blocked on the other side"),
            (observed(Some(Easy), Some(Easy), true), "direct checks got no answer"),
            (observed(None, None, false), "direct path still being tried"),
            (
                Observations { mode: Mode::RelayOnly, ..observed(Some(Hard), Some(Hard), true) },
                "asked for (--relay-only)",
            ),
            (
                Observations { their_done: true, their_direct: false, ..observed(None, None, true) },
                "asked for on the other side",
            ),
            (
                Observations { lost_direct: true, ..observed(None, None, true) },
                "the direct path stopped answering",
            ),
        ];
        for (observed, expected) in table {
            assert_eq!(
                of(&observed).map(|reason| reason.to_string()).as_deref(),
                Some(expected),
                "{observed:?}"
            );
            assert_eq!(of(&Observations { active: Some(CandidatePath::Direct), ..observed }), None);
        }
    }
}
