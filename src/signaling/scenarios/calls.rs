//! Calls from t=4 to their end.

use super::super::call_table::CallOutcomes;
use super::*;

/// Two plain clients, each with a signalling and a punching socket (S0-28), A's being the caller.
const A: &str = "192.0.2.10:1000";
const A_PUNCH: &str = "192.0.2.10:1001";
const B: &str = "192.0.2.20:2000";
const B_PUNCH: &str = "192.0.2.20:2001";

/// Lets A call B; returns the token and the 51s sent to B.
fn call(hubs: &mut TestHubs, params: Value) -> (String, Vec<(ServerPort, Value)>) {
    let (a, b) = (hubs.register_udp(A), hubs.register_udp(B));
    let mut all = json!({"tag": a, "rtag": b});
    all.as_object_mut().unwrap().extend(params.as_object().unwrap().clone());
    let answer = hubs.request_udp(A_PUNCH, &json!({"t": 4, "mid": 40, "params": all}));
    assert_eq!((code(&answer), &answer["t"]), (200, &json!(-4)));
    (answer["extra"]["token"].as_str().unwrap().to_owned(), hubs.take_datagrams(B))
}

/// Lets B answer and A acknowledge.
fn establish_call(hubs: &mut TestHubs) -> String {
    let (token, notified) = call(hubs, json!({}));
    hubs.send_udp(B_PUNCH, &json!({"t": -51, "mid": notified[0].1["mid"], "token": token, "code": 200}));
    let answered = hubs.take_datagrams(A_PUNCH);
    hubs.send_udp(A_PUNCH, &json!({"t": -52, "mid": answered[0].1["mid"], "token": token}));
    token
}

#[test]
fn two_plain_clients_exchange_their_punching_addresses() {
    // S0-8 to S0-18.
    let mut hubs = TestHubs::new(config());
    let (token, notified) = call(&mut hubs, json!({}));
    assert_eq!(token.len(), 32);
    assert_eq!(notified.iter().map(|copy| copy.0).collect::<Vec<_>>(), [ServerPort::Aux, ServerPort::Main]);
    assert_eq!(notified[0].1, notified[1].1);
    let (mid, ltag) = (&notified[0].1["mid"], &notified[0].1["params"]["ltag"]);
    let params = json!({"ltag": ltag, "host": "192.0.2.10", "port": 1001});
    assert_eq!(notified[0].1, json!({"t": 51, "mid": mid, "token": token, "params": params}));
    hubs.send_udp_to(ServerPort::Aux, B_PUNCH, &json!({"t": -51, "mid": mid, "token": token, "code": 200}));
    hubs.send_udp(B_PUNCH, &json!({"t": -51, "mid": mid, "token": token, "code": 200}));
    let answered = hubs.take_datagrams(A_PUNCH);
    assert_eq!(answered.iter().map(|copy| copy.0).collect::<Vec<_>>(), [ServerPort::Aux, ServerPort::Main]);
    let mid = &answered[0].1["mid"];
    let extra = json!({"rhost": "192.0.2.20", "rport": 2001});
    assert_eq!(answered[0].1, json!({"t": 52, "mid": mid, "token": token, "extra": extra}));
    hubs.send_udp(A_PUNCH, &json!({"t": -52, "mid": mid, "token": token}));
    hubs.advance_ms(4900);
    assert_eq!(hubs.sent, []);
}

#[test]
fn the_same_mid_for_another_callee_is_another_call() {
    let mut hubs = TestHubs::new(config());
    let (a, b, c) = (hubs.register_udp(A), hubs.register_udp(B), hubs.register_udp("192.0.2.30:3000"));
    let mut call = |rtag: &str| {
        let answer =
            hubs.request_udp(A_PUNCH, &json!({"t": 4, "mid": 1, "params": {"tag": a, "rtag": rtag}}));
        (code(&answer), answer["extra"]["token"].as_str().unwrap().to_owned())
    };
    let (first, second, again) = (call(&b), call(&c), call(&b));
    assert_eq!((first.0, second.0), (200, 200));
    assert!(first.1 != second.1 && first == again, "only the same request gets the same answer");
    assert_eq!(hubs.cluster.calls(), 2);
    assert_eq!(
        one(hubs.take_datagrams("192.0.2.30:3000").into_iter().map(|copy| copy.1).take(1).collect())["t"],
        51
    );
}

#[test]
fn an_unproven_callee_gets_the_callers_description_after_it_has_answered() {
    let mut hubs = TestHubs::new(config());
    let a = hubs.register_udp(A);
    let b = hubs.request_udp(B, &json!({"t": 1, "mid": 1}))["extra"]["tag"].clone();
    let ice = json!({"tag": a, "rtag": b, "ufrag": "u", "pwd": "p", "laddrs": ["10.0.0.1:1001"]});
    let answer = hubs.request_udp(A_PUNCH, &json!({"t": 4, "mid": 40, "params": ice}));
    let (token, first) = (answer["extra"]["token"].clone(), hubs.take_datagrams(B).remove(0).1);
    assert_eq!(first["params"], json!({"ltag": a, "host": "192.0.2.10", "port": 1001}));
    hubs.send_udp(B_PUNCH, &json!({"t": -51, "mid": first["mid"], "token": token, "code": 200}));
    let rest = one(hubs.take_datagrams(B_PUNCH).into_iter().map(|copy| copy.1).collect());
    assert_eq!((&rest["t"], &rest["mid"], &rest["token"]), (&json!(51), &first["mid"], &token));
    assert_eq!(
        (&rest["params"]["ufrag"], &rest["params"]["laddrs"]),
        (&json!("u"), &json!(["10.0.0.1:1001"]))
    );
    assert_eq!(hubs.take_datagrams(A_PUNCH)[0].1["t"], 52);
    hubs.send_udp(B_PUNCH, &json!({"t": -51, "mid": first["mid"], "token": token, "code": 200}));
    assert_eq!(hubs.take_datagrams(B_PUNCH), [], "once");
}

#[test]
fn both_sides_are_polled_every_five_seconds_and_the_call_ends_when_neither_punches() {
    // S0-24, S0-A8, S0-A20.
    let mut hubs = TestHubs::new(config());
    let token = establish_call(&mut hubs);
    let answer = |hubs: &mut TestHubs, at: &str, punching: bool| {
        let question = hubs.take_datagrams(at);
        assert_eq!(
            question.iter().map(|copy| copy.0).collect::<Vec<_>>(),
            [ServerPort::Aux, ServerPort::Main]
        );
        assert_eq!(question[1].1["t"], 53);
        let mid = &question[1].1["mid"];
        let extra = json!({"punching": punching, "path": "direct"});
        hubs.send_udp(at, &json!({"t": -53, "mid": mid, "token": token, "code": 200, "extra": extra}));
    };
    for _ in 0..20 {
        hubs.advance_ms(5000);
        answer(&mut hubs, A_PUNCH, true);
        answer(&mut hubs, B_PUNCH, false);
        hubs.send_udp(A, &json!({"t": 2, "tag": "x"}));
        hubs.take_datagrams(A);
    }
    assert_eq!(hubs.cluster.calls(), 1);
    hubs.advance_ms(5000);
    answer(&mut hubs, A_PUNCH, false);
    assert_eq!((hubs.cluster.calls(), hubs.take_datagrams(B_PUNCH).len()), (0, 2));
    hubs.advance_ms(10_000);
    assert_eq!(hubs.sent, []);
}

#[test]
fn the_outcome_of_a_call_is_the_last_path_that_a_side_reported() {
    let count = |act: &dyn Fn(&mut TestHubs)| {
        let mut hubs = TestHubs::new(config());
        act(&mut hubs);
        hubs.advance_ms(31_000);
        assert_eq!(hubs.cluster.calls(), 0);
        let counted = |hub: &Hub| {
            let CallOutcomes { unanswered, refused, answered, direct, relayed, failed } =
                hub.counters().calls_ended;
            [unanswered, refused, answered, direct, relayed, failed]
        };
        let sums = (0..6).map(|which| hubs.cluster.0.iter().map(|hub| counted(hub)[which]).sum::<u64>());
        sums.collect::<Vec<_>>()
    };
    let report = |paths: &'static [&str]| {
        move |hubs: &mut TestHubs| {
            let token = establish_call(hubs);
            for path in paths {
                hubs.advance_ms(5000);
                let mid = hubs.take_datagrams(A_PUNCH)[0].1["mid"].clone();
                let extra = json!({"punching": true, "path": path});
                hubs.send_udp(
                    A_PUNCH,
                    &json!({"t": -53, "mid": mid, "token": token, "code": 200, "extra": extra}),
                );
            }
        }
    };
    let refuse = |hubs: &mut TestHubs| {
        let (token, notified) = call(hubs, json!({}));
        hubs.send_udp(B_PUNCH, &json!({"t": 51, "mid": notified[0].1["mid"], "token": token, "code": 204}));
    };
    assert_eq!(count(&|hubs| drop(call(hubs, json!({})))), [1, 0, 0, 0, 0, 0]);
    assert_eq!(count(&refuse), [0, 1, 0, 0, 0, 0]);
    assert_eq!(count(&|hubs| drop(establish_call(hubs))), [0, 0, 1, 0, 0, 0]);
    assert_eq!(count(&report(&["relay", "direct"])), [0, 0, 0, 1, 0, 0]);
    assert_eq!(count(&report(&["relay"])), [0, 0, 0, 0, 1, 0]);
    assert_eq!(count(&report(&["direct", "failed"])), [0, 0, 0, 0, 0, 1]);
}

#[test]
fn a_token_identifies_one_call_in_all_its_messages() {
    // S0-13.
    let mut hubs = TestHubs::new(config());
    let (a, b, c) = (hubs.register_udp(A), hubs.register_udp(B), hubs.register_udp("192.0.2.30:3000"));
    let mut tokens = Vec::new();
    for (mid, rtag) in (1..).zip([&b, &c, &b]) {
        let answer =
            hubs.request_udp(A_PUNCH, &json!({"t": 4, "mid": mid, "params": {"tag": a, "rtag": rtag}}));
        tokens.push(answer["extra"]["token"].clone());
    }
    assert!(tokens[0] != tokens[1] && tokens[0] != tokens[2] && tokens[1] != tokens[2]);
    let received: Vec<Value> =
        hubs.take_datagrams(B).into_iter().map(|copy| copy.1["token"].clone()).collect();
    assert!(received.len() == 4 && received.iter().all(|token| *token == tokens[0] || *token == tokens[2]));
    // C receives no message of the other call.
    assert!(hubs.take_datagrams("192.0.2.30:3000").iter().all(|copy| copy.1["token"] == tokens[1]));
    let end = json!({"t": 55, "mid": 9, "token": tokens[0]});
    assert_eq!(code(&hubs.request_udp("192.0.2.30:3000", &end)), 205);
}

#[test]
fn a_token_expires_after_thirty_seconds_without_an_answer() {
    let mut hubs = TestHubs::new(config());
    establish_call(&mut hubs);
    hubs.advance_ms(29_900);
    assert_eq!(hubs.cluster.calls(), 1);
    hubs.advance_ms(100);
    assert_eq!(hubs.cluster.calls(), 0);
}

#[test]
fn an_unanswered_51_is_retransmitted_after_500_ms_1_s_and_2_s_and_fails_4_s_later() {
    // S0-40, S0-A17, S0-A20.
    let mut hubs = TestHubs::new(config());
    let (token, first) = call(&mut hubs, json!({}));
    let mut elapsed = 0;
    for until in [500, 1500, 3500] {
        hubs.advance_ms(until - elapsed - 1);
        assert_eq!(hubs.take_datagrams(B), []);
        hubs.advance_ms(1);
        elapsed = until;
        assert_eq!(hubs.take_datagrams(B), [(ServerPort::Main, first[0].1.clone())]);
    }
    hubs.advance_ms(3999);
    assert_eq!(hubs.sent, []);
    hubs.advance_ms(1);
    let failure = json!({"t": 4, "mid": 40, "token": token, "code": 207, "em": "callee did not answer"});
    assert_eq!(hubs.take_datagrams(A_PUNCH), [(ServerPort::Main, failure)]);
    assert_eq!((hubs.cluster.calls(), hubs.sent.len()), (0, 0));
}

#[test]
fn a_refusal_reaches_the_caller_as_204_with_or_without_the_token() {
    // S0-A20; S0-38 has no token in a failure.
    for with_token in [true, false] {
        let mut hubs = TestHubs::new(config());
        let (token, notified) = call(&mut hubs, json!({}));
        let mut refusal = json!({"t": 51, "mid": notified[0].1["mid"], "code": 204, "em": "no"});
        if with_token {
            refusal["token"] = json!(token);
        }
        hubs.send_udp(B_PUNCH, &refusal);
        let failure = json!({"t": 4, "mid": 40, "token": token, "code": 204, "em": "not allowed"});
        assert_eq!(hubs.take_datagrams(A_PUNCH), [(ServerPort::Main, failure)]);
        assert_eq!(hubs.cluster.calls(), 0);
    }
}

#[test]
fn an_answer_with_an_unknown_token_or_a_guessed_mid_is_ignored() {
    // S0-42; the caller knows the token too, and could name a victim as the callee's address.
    let mut hubs = TestHubs::new(config());
    let (token, notified) = call(&mut hubs, json!({}));
    let mid = notified[0].1["mid"].as_i64().unwrap();
    hubs.send_udp(B_PUNCH, &json!({"t": -51, "mid": mid, "token": "other", "code": 200}));
    hubs.send_udp("203.0.113.9:9", &json!({"t": -51, "mid": mid + 1, "token": token, "code": 200}));
    hubs.send_udp("203.0.113.9:9", &json!({"t": -51, "token": token, "code": 200}));
    hubs.send_udp("203.0.113.9:9", &json!({"t": 51, "mid": mid + 1, "code": 204}));
    assert_eq!(hubs.sent, []);
    hubs.send_udp(B_PUNCH, &json!({"t": -51, "mid": mid, "token": token, "code": 200}));
    assert_eq!(hubs.take_datagrams(A_PUNCH).len(), 2);
}

#[test]
fn the_port_that_sends_51_is_configurable() {
    // S0-A10.
    use super::super::NotifyFrom;
    for (notify_from, server_port) in
        [(NotifyFrom::Aux, ServerPort::Aux), (NotifyFrom::Main, ServerPort::Main)]
    {
        let mut hubs = TestHubs::new(Config { notify_from, ..config() });
        let (_, notified) = call(&mut hubs, json!({}));
        assert_eq!(notified.len(), 1);
        hubs.advance_ms(500);
        assert!(notified.iter().chain(&hubs.take_datagrams(B)).all(|copy| copy.0 == server_port));
        let b = hubs.register_websocket(1);
        let a = hubs.register_udp(A);
        hubs.request_udp(A, &json!({"t": 4, "params": {"tag": a, "rtag": b}}));
        assert_eq!(hubs.take_texts(1).len(), 1);
    }
}

#[test]
fn a_udp_caller_and_a_websocket_callee_reach_each_other() {
    // S0-A18, S0-A23.
    let mut hubs = TestHubs::new(config());
    let (a, b) = (hubs.register_udp(A), hubs.register_websocket(1));
    let params = json!({"tag": a, "rtag": b, "ufrag": "fa", "pwd": "pa", "cands": ["candidate:a"], "nat": "hard", "tport": 80});
    let answer = hubs.request_udp(A_PUNCH, &json!({"t": 4, "mid": 1, "params": params}));
    let token = &answer["extra"]["token"];
    let notified = one(hubs.take_texts(1));
    let passed = json!({"ltag": a, "host": "192.0.2.10", "port": 1001, "ufrag": "fa", "pwd": "pa",
        "cands": ["candidate:a"], "nat": "hard", "tport": 80});
    assert_eq!(notified["params"], passed);
    hubs.advance_ms(5000);
    assert_eq!(hubs.take_texts(1), Vec::<Value>::new());
    let extra = json!({"ufrag": "fb", "tport": 81});
    hubs.send_text(
        1,
        &json!({"t": -51, "mid": notified["mid"], "token": token, "code": 200, "extra": extra}),
    );
    let answered = hubs.take_datagrams(A_PUNCH);
    assert_eq!(answered[0].1["extra"], json!({"ufrag": "fb", "rtport": 81}));
    // The callee's punching socket supplies its address afterwards.
    hubs.send_udp(B_PUNCH, &json!({"t": -51, "mid": notified["mid"], "token": token, "code": 200}));
    let answered = hubs.take_datagrams(A_PUNCH);
    assert_eq!(answered[0].1["extra"], json!({"rhost": "192.0.2.20", "rport": 2001}));
    hubs.send_udp(B_PUNCH, &json!({"t": -51, "mid": notified["mid"], "token": token, "code": 200}));
    assert_eq!(hubs.take_datagrams(A_PUNCH), []);
}

#[test]
fn a_websocket_caller_reaches_a_udp_callee() {
    let mut hubs = TestHubs::new(config());
    let (a, b) = (hubs.register_websocket(1), hubs.register_udp(B));
    let answer =
        hubs.request_websocket(1, &json!({"t": 4, "mid": 1, "params": {"tag": a, "rtag": b, "sdp": "v=0"}}));
    let notified = hubs.take_datagrams(B);
    assert_eq!(notified[0].1["params"], json!({"ltag": a, "sdp": "v=0"}));
    let token = &answer["extra"]["token"];
    hubs.send_udp(B_PUNCH, &json!({"t": -51, "mid": notified[0].1["mid"], "token": token}));
    let answered = one(hubs.take_texts(1));
    assert_eq!(answered["extra"], json!({"rhost": "192.0.2.20", "rport": 2001}));
}

#[test]
fn fields_that_do_not_fit_a_datagram_are_omitted() {
    let mut hubs = TestHubs::new(config());
    let (a, b) = (hubs.register_websocket(1), hubs.register_udp(B));
    let cands: Vec<String> = (0..20).map(|i| format!("candidate:{i:090}")).collect();
    let params = json!({"tag": a, "rtag": b, "ufrag": "u", "sdp": "s".repeat(5000), "cands": cands});
    let token =
        hubs.request_websocket(1, &json!({"t": 4, "mid": 1, "params": params}))["extra"]["token"].clone();
    let notified = hubs.take_datagrams(B)[0].1.clone();
    assert!(notified.to_string().len() <= 1200);
    assert_eq!((&notified["params"]["ufrag"], notified["params"].get("sdp")), (&json!("u"), None));
    assert!(notified["params"]["cands"].as_array().unwrap().len() > 5);
    // Trickled candidates are split instead.
    let trickle = json!({"t": 54, "mid": 2, "token": token, "params": {"cands": cands, "done": true}});
    assert_eq!(hubs.request_websocket(1, &trickle)["t"], -54);
    let parts: Vec<Value> = hubs
        .take_datagrams(B)
        .into_iter()
        .filter(|copy| copy.0 == ServerPort::Main)
        .map(|copy| copy.1)
        .collect();
    assert!(parts.len() > 1 && parts.iter().all(|part| part.to_string().len() <= 1200));
    let passed: Vec<&Value> =
        parts.iter().flat_map(|part| part["params"]["cands"].as_array().unwrap()).collect();
    assert_eq!(json!(passed), json!(cands));
    let done: Vec<bool> = parts.iter().map(|part| part["params"].get("done").is_some()).collect();
    assert_eq!(done.iter().filter(|done| **done).count(), 1);
    assert_eq!(done.last(), Some(&true));
}

#[test]
fn candidates_are_trickled_in_both_directions_until_they_are_acknowledged() {
    let mut hubs = TestHubs::new(config());
    let token = establish_call(&mut hubs);
    let params = json!({"cands": ["candidate:late"], "done": true, "nat": "easy"});
    let message = json!({"t": 54, "mid": 9, "token": token, "params": params});
    for (from, to) in [(A_PUNCH, B_PUNCH), (B_PUNCH, A_PUNCH)] {
        assert_eq!(
            hubs.request_udp(from, &message),
            json!({"t": -54, "mid": 9, "token": token, "code": 200})
        );
        let passed = hubs.take_datagrams(to);
        assert_eq!((&passed[0].1["token"], &passed[0].1["params"]), (&json!(token), &params));
        hubs.advance_ms(500);
        assert_eq!(hubs.take_datagrams(to), [(ServerPort::Main, passed[0].1.clone())]);
        hubs.send_udp(to, &json!({"t": -54, "mid": passed[0].1["mid"], "token": token, "code": 200}));
        hubs.advance_ms(1500);
        assert_eq!(hubs.take_datagrams(to), []);
    }
    assert_eq!(code(&hubs.request_udp("203.0.113.9:9", &message)), 205);
    assert_eq!(code(&hubs.request_udp(A_PUNCH, &json!({"t": 54, "mid": 10, "token": "other"}))), 205);
}

#[test]
fn the_other_side_is_notified_when_one_side_ends_the_call() {
    let mut hubs = TestHubs::new(config());
    let token = establish_call(&mut hubs);
    let end = json!({"t": 55, "mid": 9, "token": token, "params": {"reason": "done"}});
    assert_eq!(hubs.request_udp(A_PUNCH, &end)["t"], -55);
    let received = hubs.take_datagrams(B_PUNCH);
    assert_eq!((&received[0].1["t"], &received[0].1["params"]), (&json!(55), &json!({"reason": "done"})));
    hubs.send_udp(B_PUNCH, &json!({"t": -55, "mid": received[0].1["mid"], "token": token, "code": 200}));
    assert_eq!(hubs.cluster.calls(), 0);
    assert_eq!(hubs.request_udp(A_PUNCH, &end)["t"], -55);
    assert_eq!(code(&hubs.request_udp(B_PUNCH, &end)), 205);
    hubs.advance_ms(20_000);
    assert_eq!(hubs.sent, []);
}

#[test]
fn an_unacknowledged_end_of_a_call_is_given_up() {
    let mut hubs = TestHubs::new(config());
    let token = establish_call(&mut hubs);
    hubs.request_udp(A_PUNCH, &json!({"t": 55, "mid": 9, "token": token}));
    hubs.advance_ms(7499);
    assert_eq!((hubs.cluster.calls(), hubs.take_datagrams(B_PUNCH).len()), (1, 5));
    hubs.advance_ms(1);
    assert_eq!(hubs.cluster.calls(), 0);
}

#[test]
fn a_callee_whose_socket_closes_fails_the_waiting_call_at_once() {
    let mut hubs = TestHubs::new(config());
    let (a, b) = (hubs.register_udp(A), hubs.register_websocket(1));
    let answer = hubs.request_udp(A_PUNCH, &json!({"t": 4, "mid": 40, "params": {"tag": a, "rtag": b}}));
    hubs.close(1);
    let token = &answer["extra"]["token"];
    let failure = json!({"t": 4, "mid": 40, "token": token, "code": 203, "em": "callee not online"});
    assert_eq!(hubs.take_datagrams(A_PUNCH), [(ServerPort::Main, failure)]);
    assert_eq!(hubs.cluster.calls(), 0);
}

#[test]
fn a_call_to_oneself_or_to_an_unknown_tag_gets_203() {
    // S0-10, S0-A24.
    let mut hubs = TestHubs::new(config());
    let a = hubs.register_udp(A);
    for rtag in [a.as_str(), "nobody"] {
        assert_eq!(
            code(&hubs.request_udp(A_PUNCH, &json!({"t": 4, "params": {"tag": a, "rtag": rtag}}))),
            203
        );
    }
    assert_eq!(
        code(&hubs.request_udp(A_PUNCH, &json!({"t": 4, "params": {"tag": "nobody", "rtag": a}}))),
        202
    );
}
