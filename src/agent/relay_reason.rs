//! The reason why a session uses the relay, as users see it.

use super::candidate::CandidatePath;
use super::hard_nat::SprayStatus;
use super::path::PathPolicy;
use crate::signaling::wire::NatType;
use std::fmt;

/// What a session knows about both sides.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Observations {
    /// The paths that this side may use.
    pub(super) policy: PathPolicy,
    /// The NAT of this side.
    pub(super) own_nat: Option<NatType>,
    /// The NAT of the other side.
    pub(super) their_nat: Option<NatType>,
    /// The other side has sent at least one candidate for the direct path.
    pub(super) their_direct: bool,
    /// The other side has sent all its candidates.
    pub(super) their_done: bool,
    /// The direct checks had enough time.
    pub(super) direct_trial_over: bool,
    /// The direct path was in use and stopped answering.
    pub(super) lost_direct: bool,
    /// What became of the prediction of ports.
    pub(super) spray: Option<SprayStatus>,
    /// The path in use.
    pub(super) active: Option<CandidatePath>,
}

/// Why a session uses the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RelayReason {
    /// `--relay-only` on this side.
    OwnPolicy,
    /// `--relay-only` on the other side.
    TheirPolicy,
    /// UDP is blocked on this side.
    OwnUdpBlocked,
    /// UDP is blocked on the other side.
    TheirUdpBlocked,
    /// The direct path was lost.
    DirectLost,
    /// Both NATs have endpoint-dependent mapping (RFC 4787).
    BothNatsHard(Option<SprayStatus>),
    /// The direct checks are running.
    Checking,
    /// This side's NAT has endpoint-dependent mapping, and the other one filters by port.
    OwnNatHard(Option<SprayStatus>),
    /// The other side's NAT has endpoint-dependent mapping, and this one filters by port.
    TheirNatHard(Option<SprayStatus>),
    /// No known obstacle, but no check succeeded.
    NoAnswer,
}

/// Returns the reason; `None` on a direct path.
pub(super) fn relay_reason(observed: &Observations) -> Option<RelayReason> {
    let rules = [
        (observed.policy == PathPolicy::RelayOnly, RelayReason::OwnPolicy),
        (observed.their_done && !observed.their_direct, RelayReason::TheirPolicy),
        (observed.own_nat == Some(NatType::Blocked), RelayReason::OwnUdpBlocked),
        (observed.their_nat == Some(NatType::Blocked), RelayReason::TheirUdpBlocked),
        (observed.lost_direct, RelayReason::DirectLost),
        (observed.spray == Some(SprayStatus::Running), RelayReason::Checking),
        (
            observed.own_nat == Some(NatType::Hard) && observed.their_nat == Some(NatType::Hard),
            RelayReason::BothNatsHard(observed.spray),
        ),
        (!observed.direct_trial_over, RelayReason::Checking),
        (observed.own_nat == Some(NatType::Hard), RelayReason::OwnNatHard(observed.spray)),
        (observed.their_nat == Some(NatType::Hard), RelayReason::TheirNatHard(observed.spray)),
    ];
    let relayed = observed.active == Some(CandidatePath::Relay);
    let first =
        rules.into_iter().find(|(holds, _)| *holds).map_or(RelayReason::NoAnswer, |(_, reason)| reason);
    relayed.then_some(first)
}

impl fmt::Display for RelayReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (text, spray) = match self {
            Self::OwnNatHard(spray) => ("this NAT changes ports and theirs filters by port", *spray),
            Self::TheirNatHard(spray) => ("their NAT changes ports and this one filters by port", *spray),
            Self::OwnPolicy => ("--relay-only", None),
            Self::TheirPolicy => ("--relay-only on the other side", None),
            Self::OwnUdpBlocked => ("UDP is blocked here", None),
            Self::TheirUdpBlocked => ("UDP is blocked on the other side", None),
            Self::DirectLost => ("the direct path stopped answering", None),
            Self::BothNatsHard(spray) => ("both NATs change ports", *spray),
            Self::Checking => ("direct path still being tried", None),
            Self::NoAnswer => ("direct checks got no answer", None),
        };
        f.write_str(text)?;
        f.write_str(match spray {
            None | Some(SprayStatus::Running) => "",
            Some(SprayStatus::Failed) => "; the next ports were predicted or sprayed without success",
            Some(SprayStatus::Off) => "; --no-spray",
            Some(SprayStatus::OffThere) => "; --no-spray on the other side",
            Some(SprayStatus::Vetoed) => "; a server forbids the spray",
            Some(SprayStatus::Recent) => "; sprayed less than an hour ago",
            Some(SprayStatus::SeveralAddresses) => "; it uses several addresses",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strongest_fact_is_the_reason() {
        use NatType::{Blocked, Easy, Hard, Open};
        let observed = |own_nat, their_nat, direct_trial_over| Observations {
            own_nat,
            their_nat,
            their_direct: true,
            direct_trial_over,
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
                Observations { policy: PathPolicy::RelayOnly, ..observed(Some(Hard), Some(Hard), true) },
                "--relay-only",
            ),
            (
                Observations { their_done: true, their_direct: false, ..observed(None, None, true) },
                "--relay-only on the other side",
            ),
            (
                Observations { spray: Some(SprayStatus::Running), ..observed(Some(Hard), Some(Easy), true) },
                "direct path still being tried",
            ),
            (
                Observations { spray: Some(SprayStatus::Failed), ..observed(Some(Hard), Some(Easy), true) },
                "this NAT changes ports and theirs filters by port; the next ports were predicted or sprayed without success",
            ),
            (
                Observations { spray: Some(SprayStatus::Running), ..observed(Some(Hard), Some(Hard), true) },
                "direct path still being tried",
            ),
            (
                Observations { spray: Some(SprayStatus::Failed), ..observed(Some(Hard), Some(Hard), true) },
                "both NATs change ports; the next ports were predicted or sprayed without success",
            ),
            (
                Observations { spray: Some(SprayStatus::Off), ..observed(Some(Hard), Some(Easy), true) },
                "this NAT changes ports and theirs filters by port; --no-spray",
            ),
            (
                Observations { spray: Some(SprayStatus::Vetoed), ..observed(Some(Open), Some(Hard), true) },
                "their NAT changes ports and this one filters by port; a server forbids the spray",
            ),
            (
                Observations { lost_direct: true, ..observed(None, None, true) },
                "the direct path stopped answering",
            ),
        ];
        for (observed, expected) in table {
            assert_eq!(
                relay_reason(&observed).map(|reason| reason.to_string()).as_deref(),
                Some(expected),
                "{observed:?}"
            );
            assert_eq!(relay_reason(&Observations { active: Some(CandidatePath::Direct), ..observed }), None);
        }
    }
}
