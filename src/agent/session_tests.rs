use super::*;
use crate::net::time;

fn setup(role: Role) -> SessionConfig {
    SessionConfig { role, mode: Mode::Auto, ufrag: format!("{role:?}"), pwd: "p".repeat(32), own_relay: true }
}

fn start() -> Instant {
    time::now().mono
}

fn drain(session: &mut Session) -> Vec<Output> {
    std::iter::from_fn(|| session.poll_output()).collect()
}

/// Lets time pass up to `end`, collecting what the session says on the way.
fn run(session: &mut Session, end: Instant) -> Vec<Output> {
    let mut said = drain(session);
    while let Some(due) = session.poll_timeout().filter(|due| *due <= end) {
        session.handle_timeout(due);
        said.extend(drain(session));
    }
    said
}

const HOST: &str = "1 1 udp 2130706431 192.0.2.1 4000 typ host";
const RELAY: &str = "2 1 udp 16777215 203.0.113.10 50000 typ relay raddr 0.0.0.0 rport 0";

fn offer(cands: &[&str]) -> IceDescription {
    IceDescription {
        ufrag: Some("them".into()),
        pwd: Some("secret".into()),
        cands: cands.iter().map(|text| format!("candidate:{text}")).collect(),
        ..IceDescription::default()
    }
}

fn trying(setup: SessionConfig, now: Instant) -> Session {
    let mut session = Session::new(setup);
    session.dial(now);
    session.handle_token(now);
    session.handle_offer(now, offer(&[]));
    drain(&mut session);
    session
}

#[test]
fn a_call_carries_what_was_found_and_trickles_the_rest() {
    let now = start();
    let mut session = Session::new(setup(Role::Connector));
    session.handle_local(now, CandidatePath::Direct, HOST);
    session.dial(now);
    let Some(Output::Call(ice)) = drain(&mut session).pop() else { panic!("no call") };
    assert_eq!(ice.cands, [format!("candidate:{HOST} lane direct")]);
    assert_eq!((ice.ufrag.as_deref(), ice.nat), (Some("Connector"), None));

    session.handle_local(now, CandidatePath::Relay, RELAY);
    session.handle_nat(now, NatType::Easy);
    assert_eq!(run(&mut session, now + GATHER_TIME), [], "nothing can be said before there is a token");
    session.handle_token(now);
    let cands = vec![format!("candidate:{RELAY} lane relay")];
    let trickle = Output::Trickle { cands, done: false, nat: Some(NatType::Easy) };
    assert_eq!(run(&mut session, now + GATHER_TIME), [trickle]);

    session.handle_gathered(now, CandidatePath::Direct);
    session.handle_gathered(now, CandidatePath::Relay);
    let done = Output::Trickle { cands: vec![], done: true, nat: None };
    assert_eq!(run(&mut session, now + 2 * GATHER_TIME), [done], "said once");
}

#[test]
fn a_listener_accepts_starts_and_trickles() {
    let now = start();
    let mut session = Session::new(setup(Role::Listener));
    session.handle_nat(now, NatType::Hard);
    session.handle_offer(now, offer(&[HOST]));
    let said = drain(&mut session);
    assert!(matches!(&said[0], Output::Accept(ice) if ice.nat == Some(NatType::Hard)), "{said:?}");
    assert_eq!(said[1], Output::Start { ufrag: "them".into(), pwd: "secret".into() });
    assert!(matches!(&said[2], Output::Candidate(c) if c.lane == CandidatePath::Direct), "{said:?}");
    session.handle_local(now, CandidatePath::Direct, HOST);
    session.handle_local(now, CandidatePath::Relay, RELAY);
    let said = run(&mut session, now + GATHER_TIME);
    assert!(
        matches!(&said[..], [Output::Trickle { cands, .. }] if cands.len() == 2),
        "one message: {said:?}"
    );
}

#[test]
fn candidates_that_overtake_the_answer_are_kept() {
    let now = start();
    let mut session = Session::new(setup(Role::Connector));
    session.dial(now);
    session.handle_trickle(&[format!("candidate:{HOST}")], false, None);
    drain(&mut session);
    session.handle_offer(now, offer(&[]));
    let said = drain(&mut session);
    assert!(matches!(said[..], [Output::Start { .. }, Output::Candidate(_)]), "{said:?}");
}

#[test]
fn the_relay_lane_is_paired_only_where_a_relay_takes_part() {
    let now = start();
    let host_in_relay_lane = format!("{HOST} lane relay").replace("192.0.2.1", "203.0.113.5");
    let inner_in_relay_lane = format!("{HOST} lane relay").replace("192.0.2.1", "10.0.0.1");
    let relay_in_direct_lane = format!("{RELAY} lane direct");
    let all = [HOST, RELAY, &host_in_relay_lane, &inner_in_relay_lane, &relay_in_direct_lane];
    let admitted = |own_relay, mode| {
        let mut session = Session::new(SessionConfig { own_relay, mode, ..setup(Role::Listener) });
        session.handle_offer(now, offer(&all));
        let said = drain(&mut session).into_iter();
        let texts = said.filter_map(|output| match output {
            Output::Candidate(candidate) => Some(candidate.text),
            _ => None,
        });
        texts.collect::<Vec<_>>()
    };
    assert_eq!(admitted(true, Mode::Auto), [HOST, RELAY, &host_in_relay_lane]);
    assert_eq!(admitted(false, Mode::Auto), [HOST, RELAY]);
    assert_eq!(admitted(true, Mode::RelayOnly), [RELAY, &host_in_relay_lane]);
    assert_eq!(admitted(true, Mode::NoRelay), [HOST]);
}

#[test]
fn the_path_is_told_with_its_reason_and_again_when_either_changes() {
    let now = start();
    let mut session = trying(setup(Role::Connector), now);
    session.handle_nat(now, NatType::Hard);
    session.handle_trickle(&[format!("candidate:{HOST}")], false, Some(NatType::Easy));
    drain(&mut session);
    session.handle_active(Some(CandidatePath::Relay));
    assert_eq!(drain(&mut session), [Output::Path(CandidatePath::Relay, Some(RelayReason::Trying))]);
    session.handle_active(Some(CandidatePath::Relay));
    assert_eq!(drain(&mut session), []);
    let said = run(&mut session, now + TRIAL_TIME);
    assert!(said.contains(&Output::Path(CandidatePath::Relay, Some(RelayReason::HardHere))), "{said:?}");
    session.handle_active(Some(CandidatePath::Direct));
    assert_eq!(drain(&mut session), [Output::Path(CandidatePath::Direct, None)]);
    session.handle_active(Some(CandidatePath::Relay));
    assert_eq!(drain(&mut session), [Output::Path(CandidatePath::Relay, Some(RelayReason::Lost))]);
}

#[test]
fn the_server_is_told_to_go_on_while_a_direct_path_is_looked_for() {
    let now = start();
    let mut session = trying(setup(Role::Connector), now);
    assert!(session.is_punching(now));
    session.handle_active(Some(CandidatePath::Relay));
    assert!(session.is_punching(now), "candidates may still come");
    assert!(!session.is_punching(now + PATH_TIME));
    session.handle_active(Some(CandidatePath::Direct));
    assert!(!session.is_punching(now));
}

#[test]
fn a_call_without_answer_fails_in_time() {
    let now = start();
    let mut session = Session::new(setup(Role::Connector));
    session.dial(now);
    drain(&mut session);
    assert_eq!(run(&mut session, now + ANSWER_TIME), [Output::Failed(Failure::NoAnswer)]);
    assert_eq!(session.poll_timeout(), None);
}

#[test]
fn a_search_without_path_fails_in_time_and_says_what_was_tried() {
    let now = start();
    let mut session = trying(setup(Role::Connector), now);
    session.handle_local(now, CandidatePath::Direct, HOST);
    session.handle_trickle(&[format!("candidate:{RELAY}")], false, Some(NatType::Blocked));
    let said = run(&mut session, now + PATH_TIME);
    let tried = Tried {
        local: 1,
        remote: 1,
        own_relay: true,
        their_relay: true,
        theirs: Some(NatType::Blocked),
        ..Tried::default()
    };
    assert_eq!(said.last(), Some(&Output::Failed(Failure::NoPath(tried))));
}

#[test]
fn a_found_path_stops_the_clock_and_a_later_end_is_no_failure() {
    let now = start();
    let mut session = trying(setup(Role::Connector), now);
    session.handle_active(Some(CandidatePath::Direct));
    session.handle_end(Some("bye".into()));
    let said = run(&mut session, now + 10 * PATH_TIME);
    assert!(!said.iter().any(|output| matches!(output, Output::Failed(_))), "{said:?}");
}

#[test]
fn lanes_that_all_gave_up_end_the_search_at_once() {
    let now = start();
    let mut session = trying(setup(Role::Connector), now);
    session.handle_dead(CandidatePath::Direct);
    assert_eq!(drain(&mut session), []);
    session.handle_dead(CandidatePath::Relay);
    assert!(matches!(drain(&mut session)[..], [Output::Failed(Failure::NoPath(_))]));
    let mut session = trying(SessionConfig { mode: Mode::RelayOnly, ..setup(Role::Connector) }, now);
    session.handle_dead(CandidatePath::Relay);
    assert!(matches!(drain(&mut session)[..], [Output::Failed(Failure::NoPath(_))]));
}

#[test]
fn an_end_before_a_path_and_an_offer_without_credentials_are_failures() {
    let now = start();
    let mut session = trying(setup(Role::Connector), now);
    session.handle_end(None);
    assert_eq!(drain(&mut session), [Output::Failed(Failure::Ended(None))]);
    let mut session = trying(setup(Role::Connector), now);
    session.handle_end(Some(NO_PATH.into()));
    assert!(matches!(drain(&mut session)[..], [Output::Failed(Failure::NoPath(_))]));
    let mut session = Session::new(setup(Role::Listener));
    session.handle_offer(now, IceDescription { ufrag: None, ..offer(&[]) });
    assert_eq!(drain(&mut session), [Output::Failed(Failure::BadOffer)]);
}

#[test]
fn a_peer_with_endless_candidates_is_capped() {
    let now = start();
    let mut session = trying(setup(Role::Connector), now);
    for port in 1..10_000 {
        session.handle_trickle(
            &[format!("candidate:{HOST}").replace("4000", &port.to_string())],
            false,
            None,
        );
    }
    assert_eq!(drain(&mut session).len(), MAX_REMOTE);
    for port in 1..10_000 {
        session.handle_local(now, CandidatePath::Direct, &HOST.replace("4000", &port.to_string()));
    }
    let said = run(&mut session, now + GATHER_TIME);
    let told = said.iter().map(|output| match output {
        Output::Trickle { cands, .. } => cands.len(),
        _ => 0,
    });
    assert_eq!(told.max(), Some(CANDIDATES_A_MESSAGE));
    assert_eq!(session.told, MAX_LOCAL);
}

#[test]
fn a_search_that_cannot_find_anything_ends_when_the_other_side_has_told_all() {
    let direct = format!("candidate:{HOST} lane direct");
    let relay_lane = format!("candidate:{HOST} lane relay");
    let relayed = format!("candidate:{RELAY}");
    let only = |mode, own_relay| SessionConfig { mode, own_relay, ..setup(Role::Connector) };
    // Which paths this side has, what the other one tells, and whether anything may come of it.
    let table = [
        (only(Mode::RelayOnly, false), vec![&direct, &relay_lane], false),
        (only(Mode::RelayOnly, false), vec![&direct, &relay_lane, &relayed], true),
        (only(Mode::RelayOnly, true), vec![&direct, &relay_lane], true),
        (only(Mode::RelayOnly, true), vec![&direct], false),
        (only(Mode::NoRelay, true), vec![&relay_lane, &relayed], false),
        (only(Mode::NoRelay, true), vec![&direct], true),
        (only(Mode::Auto, false), vec![&relay_lane], false),
        (only(Mode::Auto, false), vec![&direct], true),
        (only(Mode::Auto, true), vec![], false),
    ];
    for (setup, told, hope) in table {
        let now = start();
        let mut session = trying(setup.clone(), now);
        let told: Vec<String> = told.into_iter().cloned().collect();
        session.handle_trickle(&told, false, None);
        assert!(
            !drain(&mut session).iter().any(|said| matches!(said, Output::Failed(_))),
            "there may be more"
        );
        session.handle_trickle(&[], true, None);
        let failed = drain(&mut session).into_iter().any(|said| matches!(said, Output::Failed(_)));
        assert_eq!(failed, !hope, "{setup:?} {told:?}");
    }
}
