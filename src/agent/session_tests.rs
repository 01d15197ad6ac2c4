use super::*;
use crate::net::time;

fn config(role: AgentRole) -> SessionConfig {
    SessionConfig {
        role,
        policy: PathPolicy::All,
        ufrag: format!("{role:?}"),
        pwd: "p".repeat(32),
        own_relay: true,
    }
}

fn start() -> Instant {
    time::now().mono
}

fn drain(session: &mut Session) -> Vec<SessionOutput> {
    std::iter::from_fn(|| session.poll_output()).collect()
}

/// Runs the timers up to `end` and returns the outputs.
fn run(session: &mut Session, end: Instant) -> Vec<SessionOutput> {
    let mut outputs = drain(session);
    while let Some(due) = session.poll_timeout().filter(|due| *due <= end) {
        session.handle_timeout(due);
        outputs.extend(drain(session));
    }
    outputs
}

const HOST: &str = "candidate:1 1 udp 2130706431 192.0.2.1 4000 typ host";
const RELAY: &str = "candidate:2 1 udp 16777215 203.0.113.10 50000 typ relay raddr 0.0.0.0 rport 0";

fn offer(cands: &[&str]) -> IceDescription {
    IceDescription {
        ufrag: Some("them".into()),
        pwd: Some("secret".into()),
        cands: cands.iter().map(|text| (*text).to_owned()).collect(),
        ..IceDescription::default()
    }
}

fn checking(config: SessionConfig, now: Instant) -> Session {
    let mut session = Session::new(config);
    session.dial(now);
    session.handle_token(now);
    session.handle_offer(now, offer(&[]));
    drain(&mut session);
    session
}

#[test]
fn a_candidate_with_a_name_of_its_link_is_used_where_hosts_may_be_reached() {
    let named = "candidate:1 1 udp 2130706431 1f4712db-ea17-4bcf-a596-105139dfd8bf.local 4000 typ host";
    let other = "candidate:1 1 udp 2130706431 printer.local 4000 typ host";
    let now = start();
    for (policy, expected) in [(PathPolicy::All, 1), (PathPolicy::RelayOnly, 0)] {
        let mut session = checking(SessionConfig { policy, ..config(AgentRole::Connector) }, now);
        session.handle_trickle(&[named.to_owned(), other.to_owned()], false, None);
        let outputs = drain(&mut session);
        let named = outputs.iter().filter(|output| **output == SessionOutput::Candidate(named.to_owned()));
        assert_eq!((named.count(), outputs.len()), (expected, expected), "{policy:?}");
    }
}

#[test]
fn candidates_go_over_the_connection_where_the_other_side_reads_them_there() {
    let now = start();
    for (opts, expected) in [(vec![CONTROL_STREAMS.to_owned()], true), (vec![TRICKLE.to_owned()], false)] {
        let mut session = Session::new(config(AgentRole::Connector));
        session.dial(now);
        assert!(!session.has_control_streams(), "not before its description");
        session.handle_offer(now, IceDescription { opts, ..offer(&[]) });
        assert_eq!(session.has_control_streams(), expected);
    }
}

#[test]
fn a_call_has_the_candidates_so_far_and_trickles_the_rest() {
    let now = start();
    let mut session = Session::new(config(AgentRole::Connector));
    session.handle_local(now, HOST);
    session.dial(now);
    let Some(SessionOutput::Call(ice)) = drain(&mut session).pop() else { panic!("no call") };
    assert_eq!(ice.cands, [HOST.to_owned()]);
    assert_eq!((ice.ufrag.as_deref(), ice.nat), (Some("Connector"), None));

    session.handle_local(now, RELAY);
    session.handle_nat(now, NatType::Easy);
    assert_eq!(run(&mut session, now + GATHER_TIME), [], "nothing can be outputs before there is a token");
    session.handle_token(now);
    let cands = vec![RELAY.to_owned()];
    let trickle = SessionOutput::Trickle { cands, done: false, nat: Some(NatType::Easy) };
    assert_eq!(run(&mut session, now + GATHER_TIME), [trickle]);

    session.handle_gathered(now);
    let done = SessionOutput::Trickle { cands: vec![], done: true, nat: None };
    assert_eq!(run(&mut session, now + 2 * GATHER_TIME), [done], "outputs once");
}

#[test]
fn a_listener_accepts_starts_and_trickles() {
    let now = start();
    let mut session = Session::new(config(AgentRole::Listener));
    session.handle_nat(now, NatType::Hard);
    session.handle_offer(now, offer(&[HOST]));
    let outputs = drain(&mut session);
    assert!(
        matches!(&outputs[0], SessionOutput::Accept(ice) if ice.nat == Some(NatType::Hard)),
        "{outputs:?}"
    );
    assert_eq!(outputs[1], SessionOutput::Start { ufrag: "them".into(), pwd: "secret".into() });
    assert!(matches!(&outputs[2], SessionOutput::Candidate(text) if text == HOST), "{outputs:?}");
    session.handle_local(now, HOST);
    session.handle_local(now, RELAY);
    let outputs = run(&mut session, now + GATHER_TIME);
    assert!(
        matches!(&outputs[..], [SessionOutput::Trickle { cands, .. }] if cands.len() == 2),
        "one message: {outputs:?}"
    );
}

#[test]
fn candidates_before_the_answer_are_kept() {
    let now = start();
    let mut session = Session::new(config(AgentRole::Connector));
    session.dial(now);
    session.handle_trickle(&[HOST.to_owned()], false, None);
    drain(&mut session);
    session.handle_offer(now, offer(&[]));
    let outputs = drain(&mut session);
    assert!(matches!(outputs[..], [SessionOutput::Start { .. }, SessionOutput::Candidate(_)]), "{outputs:?}");
}

#[test]
fn candidates_that_the_policy_excludes_are_not_checked() {
    let now = start();
    let global = HOST.replace("192.0.2.1", "203.0.113.5");
    let inner = HOST.replace("192.0.2.1", "10.0.0.1");
    let all = [&global, &inner, RELAY];
    let admitted = |own_relay, policy| {
        let mut session = Session::new(SessionConfig { own_relay, policy, ..config(AgentRole::Listener) });
        session.handle_offer(now, offer(&all));
        let outputs = drain(&mut session).into_iter();
        let texts = outputs.filter_map(|output| match output {
            SessionOutput::Candidate(text) => Some(text),
            _ => None,
        });
        texts.collect::<Vec<_>>()
    };
    assert_eq!(admitted(true, PathPolicy::All), all);
    assert_eq!(admitted(false, PathPolicy::All), all);
    assert_eq!(admitted(true, PathPolicy::RelayOnly), [&global, RELAY], "a relay refuses private addresses");
    assert_eq!(admitted(false, PathPolicy::RelayOnly), [RELAY]);
    assert_eq!(admitted(true, PathPolicy::DirectOnly), [&global[..], &inner[..]]);
}

#[test]
fn the_path_is_reported_with_its_reason_and_again_when_either_changes() {
    let now = start();
    let mut session = checking(config(AgentRole::Connector), now);
    session.handle_nat(now, NatType::Hard);
    session.handle_trickle(&[HOST.to_owned()], false, Some(NatType::Easy));
    drain(&mut session);
    session.handle_active(Some(CandidatePath::Relay));
    assert_eq!(drain(&mut session), [SessionOutput::Path(CandidatePath::Relay, Some(RelayReason::Checking))]);
    session.handle_active(Some(CandidatePath::Relay));
    assert_eq!(drain(&mut session), []);
    let outputs = run(&mut session, now + DIRECT_TRIAL_TIME);
    assert!(
        outputs.contains(&SessionOutput::Path(CandidatePath::Relay, Some(RelayReason::OwnNatHard(None)))),
        "{outputs:?}"
    );
    session.handle_active(Some(CandidatePath::Direct));
    assert_eq!(drain(&mut session), [SessionOutput::Path(CandidatePath::Direct, None)]);
    session.handle_active(Some(CandidatePath::Relay));
    assert_eq!(
        drain(&mut session),
        [SessionOutput::Path(CandidatePath::Relay, Some(RelayReason::DirectLost))]
    );
}

#[test]
fn the_call_is_punching_while_a_direct_path_is_searched() {
    let now = start();
    let mut session = checking(config(AgentRole::Connector), now);
    assert!(session.is_punching(now));
    session.handle_active(Some(CandidatePath::Relay));
    assert!(session.is_punching(now), "candidates may still come");
    assert!(!session.is_punching(now + PATH_TIMEOUT));
    session.handle_active(Some(CandidatePath::Direct));
    assert!(!session.is_punching(now));
}

#[test]
fn a_call_without_answer_fails_in_time() {
    let now = start();
    let mut session = Session::new(config(AgentRole::Connector));
    session.dial(now);
    drain(&mut session);
    assert_eq!(run(&mut session, now + ANSWER_TIMEOUT), [SessionOutput::Failed(SessionFailure::NoAnswer)]);
    assert_eq!(session.poll_timeout(), None);
}

#[test]
fn a_search_without_path_fails_in_time_with_its_attempts() {
    let now = start();
    let mut session = checking(config(AgentRole::Connector), now);
    session.handle_local(now, HOST);
    session.handle_trickle(&[RELAY.to_owned()], false, Some(NatType::Blocked));
    let outputs = run(&mut session, now + PATH_TIMEOUT);
    let attempts = PathAttempts {
        local: 1,
        remote: 1,
        own_relay: true,
        their_relay: true,
        their_nat: Some(NatType::Blocked),
        ..PathAttempts::default()
    };
    assert_eq!(outputs.last(), Some(&SessionOutput::Failed(SessionFailure::NoPath(attempts))));
}

#[test]
fn a_path_stops_the_deadline_and_a_later_end_is_no_failure() {
    let now = start();
    let mut session = checking(config(AgentRole::Connector), now);
    session.handle_active(Some(CandidatePath::Direct));
    session.handle_end(Some("bye".into()));
    let outputs = run(&mut session, now + 10 * PATH_TIMEOUT);
    assert!(!outputs.iter().any(|output| matches!(output, SessionOutput::Failed(_))), "{outputs:?}");
}

#[test]
fn the_failure_of_the_engine_ends_the_search_at_once() {
    let now = start();
    let mut session = checking(config(AgentRole::Connector), now);
    session.handle_failed();
    assert!(matches!(drain(&mut session)[..], [SessionOutput::Failed(SessionFailure::NoPath(_))]));
    let mut session = checking(config(AgentRole::Connector), now);
    session.handle_active(Some(CandidatePath::Direct));
    session.handle_failed();
    assert!(!drain(&mut session).iter().any(|output| matches!(output, SessionOutput::Failed(_))));
}

#[test]
fn an_end_before_a_path_and_an_offer_without_credentials_are_failures() {
    let now = start();
    let mut session = checking(config(AgentRole::Connector), now);
    session.handle_end(None);
    assert_eq!(drain(&mut session), [SessionOutput::Failed(SessionFailure::Ended(None))]);
    let mut session = checking(config(AgentRole::Connector), now);
    session.handle_end(Some(NO_PATH.into()));
    assert!(matches!(drain(&mut session)[..], [SessionOutput::Failed(SessionFailure::NoPath(_))]));
    let mut session = Session::new(config(AgentRole::Listener));
    session.handle_offer(now, IceDescription { ufrag: None, ..offer(&[]) });
    assert_eq!(drain(&mut session), [SessionOutput::Failed(SessionFailure::BadOffer)]);
}

#[test]
fn a_candidate_that_comes_both_ways_is_used_once() {
    let mut session = checking(config(AgentRole::Connector), start());
    for text in [HOST, HOST, RELAY, HOST, RELAY] {
        session.handle_trickle(&[text.to_owned()], false, None);
    }
    let expected = [HOST, RELAY].map(|text| SessionOutput::Candidate(text.to_owned()));
    assert_eq!(drain(&mut session), expected);
}

#[test]
fn the_number_of_candidates_is_bounded() {
    let now = start();
    let mut session = checking(config(AgentRole::Connector), now);
    for port in 1..10_000 {
        session.handle_trickle(&[HOST.replace("4000", &port.to_string())], false, None);
    }
    assert_eq!(drain(&mut session).len(), MAX_REMOTE);
    for port in 1..10_000 {
        session.handle_local(now, &HOST.replace("4000", &port.to_string()));
    }
    let outputs = run(&mut session, now + GATHER_TIME);
    let sent = outputs.iter().map(|output| match output {
        SessionOutput::Trickle { cands, .. } => cands.len(),
        _ => 0,
    });
    assert_eq!(sent.max(), Some(MAX_PER_MESSAGE));
    assert_eq!(session.sent, MAX_LOCAL);
}

#[test]
fn a_hopeless_search_ends_with_the_last_candidate() {
    let only = |policy, own_relay| SessionConfig { policy, own_relay, ..config(AgentRole::Connector) };
    let options = |direct_only: bool| if direct_only { vec![DIRECT_ONLY.to_owned()] } else { vec![] };
    // Configuration of this side, whether the other side uses no relay, its candidates, and whether a path is possible.
    let table = [
        (only(PathPolicy::RelayOnly, false), false, vec![HOST], false),
        (only(PathPolicy::RelayOnly, false), false, vec![HOST, RELAY], true),
        (only(PathPolicy::RelayOnly, true), false, vec![HOST], true),
        (only(PathPolicy::RelayOnly, true), true, vec![HOST], false),
        (only(PathPolicy::DirectOnly, true), false, vec![RELAY], false),
        (only(PathPolicy::DirectOnly, true), true, vec![HOST], true),
        (only(PathPolicy::All, false), false, vec![], false),
        (only(PathPolicy::All, false), true, vec![HOST], true),
        (only(PathPolicy::All, true), true, vec![], false),
    ];
    for (config, direct_only, candidates, is_possible) in table {
        let now = start();
        let mut session = Session::new(config.clone());
        session.dial(now);
        session.handle_token(now);
        session.handle_offer(now, IceDescription { opts: options(direct_only), ..offer(&candidates) });
        assert!(
            !drain(&mut session).iter().any(|outputs| matches!(outputs, SessionOutput::Failed(_))),
            "more may come"
        );
        session.handle_trickle(&[], true, None);
        let failed =
            drain(&mut session).into_iter().any(|outputs| matches!(outputs, SessionOutput::Failed(_)));
        assert_eq!(failed, !is_possible, "{config:?} {candidates:?}");
    }
}

#[test]
fn a_session_that_is_resumed_keeps_its_path_and_what_is_known_of_it() {
    let now = start();
    let mut session = checking(config(AgentRole::Connector), now);
    session.handle_nat(now, NatType::Hard);
    for path in [CandidatePath::Direct, CandidatePath::Relay] {
        session.handle_active(Some(path));
    }
    let reason = session.reason();
    assert_eq!(reason, Some(RelayReason::DirectLost));
    for has_path in [true, false] {
        if !has_path {
            session.handle_lost();
        }
        let mut resumed = session.resumed(config(AgentRole::Connector));
        assert_eq!(resumed.reason(), reason);
        resumed.dial(now);
        let Some(SessionOutput::Call(ice)) = drain(&mut resumed).pop() else { panic!("no call") };
        assert_eq!(ice.nat, Some(NatType::Hard));
        resumed.handle_active(Some(CandidatePath::Relay).filter(|_| has_path));
        resumed.handle_offer(now, offer(&[HOST]));
        assert_eq!(resumed.reason(), reason, "no other reason for a moment");
        let mut direct = session.resumed(config(AgentRole::Connector));
        direct.handle_active(Some(CandidatePath::Direct));
        assert_eq!(direct.reason(), None, "a direct path has no reason, even before the call");
        let outputs = run(&mut resumed, now + 2 * PATH_TIMEOUT);
        let failed = outputs.iter().any(|output| matches!(output, SessionOutput::Failed(_)));
        assert_eq!(failed, !has_path, "{outputs:?}");
    }
}
