//! Punching acts from t=4 to their end.

use super::super::call_table::CallOutcomes;
use super::*;

/// Two plain clients, each with a signalling and a punching socket (S0-28), A's being the caller.
const A: &str = "192.0.2.10:1000";
const A_PUNCH: &str = "192.0.2.10:1001";
const B: &str = "192.0.2.20:2000";
const B_PUNCH: &str = "192.0.2.20:2001";

/// Has A call B and returns the token and the 51s that B was sent.
fn called(world: &mut World, params: Value) -> (String, Vec<(ServerPort, Value)>) {
    let (a, b) = (world.client(A), world.client(B));
    let mut all = json!({"tag": a, "rtag": b});
    all.as_object_mut().unwrap().extend(params.as_object().unwrap().clone());
    let answer = world.ask(A_PUNCH, &json!({"t": 4, "mid": 40, "params": all}));
    assert_eq!((code(&answer), &answer["t"]), (200, &json!(-4)));
    (answer["extra"]["token"].as_str().unwrap().to_owned(), world.at(B))
}

/// Has B answer and A acknowledge.
fn live(world: &mut World) -> String {
    let (token, notified) = called(world, json!({}));
    world.udp(B_PUNCH, &json!({"t": -51, "mid": notified[0].1["mid"], "token": token, "code": 200}));
    let answered = world.at(A_PUNCH);
    world.udp(A_PUNCH, &json!({"t": -52, "mid": answered[0].1["mid"], "token": token}));
    token
}

#[test]
fn two_clients_of_document_000_learn_each_others_punching_addresses() {
    // S0-8 to S0-18.
    let mut world = World::new(config());
    let (token, notified) = called(&mut world, json!({}));
    assert_eq!(token.len(), 32);
    assert_eq!(notified.iter().map(|copy| copy.0).collect::<Vec<_>>(), [ServerPort::Aux, ServerPort::Main]);
    assert_eq!(notified[0].1, notified[1].1);
    let (mid, ltag) = (&notified[0].1["mid"], &notified[0].1["params"]["ltag"]);
    let params = json!({"ltag": ltag, "host": "192.0.2.10", "port": 1001});
    assert_eq!(notified[0].1, json!({"t": 51, "mid": mid, "token": token, "params": params}));
    world.udp_at(ServerPort::Aux, B_PUNCH, &json!({"t": -51, "mid": mid, "token": token, "code": 200}));
    world.udp(B_PUNCH, &json!({"t": -51, "mid": mid, "token": token, "code": 200}));
    let answered = world.at(A_PUNCH);
    assert_eq!(answered.iter().map(|copy| copy.0).collect::<Vec<_>>(), [ServerPort::Aux, ServerPort::Main]);
    let mid = &answered[0].1["mid"];
    let extra = json!({"rhost": "192.0.2.20", "rport": 2001});
    assert_eq!(answered[0].1, json!({"t": 52, "mid": mid, "token": token, "extra": extra}));
    world.udp(A_PUNCH, &json!({"t": -52, "mid": mid, "token": token}));
    world.wait_ms(4900);
    assert_eq!(world.sent, []);
}

#[test]
fn the_same_mid_for_somebody_else_is_another_call() {
    let mut world = World::new(config());
    let (a, b, c) = (world.client(A), world.client(B), world.client("192.0.2.30:3000"));
    let mut call = |rtag: &str| {
        let answer = world.ask(A_PUNCH, &json!({"t": 4, "mid": 1, "params": {"tag": a, "rtag": rtag}}));
        (code(&answer), answer["extra"]["token"].as_str().unwrap().to_owned())
    };
    let (first, second, again) = (call(&b), call(&c), call(&b));
    assert_eq!((first.0, second.0), (200, 200));
    assert!(first.1 != second.1 && first == again, "only the same request gets the same answer");
    assert_eq!(world.hub.calls(), 2);
    assert_eq!(one(world.at("192.0.2.30:3000").into_iter().map(|copy| copy.1).take(1).collect())["t"], 51);
}

#[test]
fn a_callee_that_was_not_proven_is_told_what_the_caller_told_once_it_has_answered() {
    let mut world = World::new(config());
    let a = world.client(A);
    let b = world.ask(B, &json!({"t": 1, "mid": 1}))["extra"]["tag"].clone();
    let ice = json!({"tag": a, "rtag": b, "ufrag": "u", "pwd": "p", "laddrs": ["10.0.0.1:1001"]});
    let answer = world.ask(A_PUNCH, &json!({"t": 4, "mid": 40, "params": ice}));
    let (token, first) = (answer["extra"]["token"].clone(), world.at(B).remove(0).1);
    assert_eq!(first["params"], json!({"ltag": a, "host": "192.0.2.10", "port": 1001}));
    world.udp(B_PUNCH, &json!({"t": -51, "mid": first["mid"], "token": token, "code": 200}));
    let rest = one(world.at(B_PUNCH).into_iter().map(|copy| copy.1).collect());
    assert_eq!((&rest["t"], &rest["mid"], &rest["token"]), (&json!(51), &first["mid"], &token));
    assert_eq!(
        (&rest["params"]["ufrag"], &rest["params"]["laddrs"]),
        (&json!("u"), &json!(["10.0.0.1:1001"]))
    );
    assert_eq!(world.at(A_PUNCH)[0].1["t"], 52);
    world.udp(B_PUNCH, &json!({"t": -51, "mid": first["mid"], "token": token, "code": 200}));
    assert_eq!(world.at(B_PUNCH), [], "once");
}

#[test]
fn both_are_asked_every_five_seconds_and_the_act_ends_when_neither_goes_on() {
    // S0-24, S0-A8, S0-A20.
    let mut world = World::new(config());
    let token = live(&mut world);
    let answer = |world: &mut World, at: &str, punching: bool| {
        let question = world.at(at);
        assert_eq!(
            question.iter().map(|copy| copy.0).collect::<Vec<_>>(),
            [ServerPort::Aux, ServerPort::Main]
        );
        assert_eq!(question[1].1["t"], 53);
        let mid = &question[1].1["mid"];
        let extra = json!({"punching": punching, "path": "direct"});
        world.udp(at, &json!({"t": -53, "mid": mid, "token": token, "code": 200, "extra": extra}));
    };
    for _ in 0..20 {
        world.wait_ms(5000);
        answer(&mut world, A_PUNCH, true);
        answer(&mut world, B_PUNCH, false);
        world.udp(A, &json!({"t": 2, "tag": "x"}));
        world.at(A);
    }
    assert_eq!(world.hub.calls(), 1);
    world.wait_ms(5000);
    answer(&mut world, A_PUNCH, false);
    assert_eq!((world.hub.calls(), world.at(B_PUNCH).len()), (0, 2));
    world.wait_ms(10_000);
    assert_eq!(world.sent, []);
}

#[test]
fn what_came_of_a_call_is_counted_by_the_last_path_that_a_side_has_told() {
    let count = |act: &dyn Fn(&mut World)| {
        let mut world = World::new(config());
        act(&mut world);
        world.wait_ms(31_000);
        assert_eq!(world.hub.calls(), 0);
        let counted = |hub: &Hub| {
            let CallOutcomes { unanswered, refused, answered, direct, relayed, failed } =
                hub.counters().calls_ended;
            [unanswered, refused, answered, direct, relayed, failed]
        };
        let sums = (0..6).map(|which| world.hub.0.iter().map(|hub| counted(hub)[which]).sum::<u64>());
        sums.collect::<Vec<_>>()
    };
    let tell = |paths: &'static [&str]| {
        move |world: &mut World| {
            let token = live(world);
            for path in paths {
                world.wait_ms(5000);
                let mid = world.at(A_PUNCH)[0].1["mid"].clone();
                let extra = json!({"punching": true, "path": path});
                world.udp(
                    A_PUNCH,
                    &json!({"t": -53, "mid": mid, "token": token, "code": 200, "extra": extra}),
                );
            }
        }
    };
    let refuse = |world: &mut World| {
        let (token, notified) = called(world, json!({}));
        world.udp(B_PUNCH, &json!({"t": 51, "mid": notified[0].1["mid"], "token": token, "code": 204}));
    };
    assert_eq!(count(&|world| drop(called(world, json!({})))), [1, 0, 0, 0, 0, 0]);
    assert_eq!(count(&refuse), [0, 1, 0, 0, 0, 0]);
    assert_eq!(count(&|world| drop(live(world))), [0, 0, 1, 0, 0, 0]);
    assert_eq!(count(&tell(&["relay", "direct"])), [0, 0, 0, 1, 0, 0]);
    assert_eq!(count(&tell(&["relay"])), [0, 0, 0, 0, 1, 0]);
    assert_eq!(count(&tell(&["direct", "failed"])), [0, 0, 0, 0, 0, 1]);
}

#[test]
fn a_token_is_of_one_act_and_accompanies_all_of_it() {
    // S0-13.
    let mut world = World::new(config());
    let (a, b, c) = (world.client(A), world.client(B), world.client("192.0.2.30:3000"));
    let mut tokens = Vec::new();
    for (mid, rtag) in (1..).zip([&b, &c, &b]) {
        let answer = world.ask(A_PUNCH, &json!({"t": 4, "mid": mid, "params": {"tag": a, "rtag": rtag}}));
        tokens.push(answer["extra"]["token"].clone());
    }
    assert!(tokens[0] != tokens[1] && tokens[0] != tokens[2] && tokens[1] != tokens[2]);
    let told: Vec<Value> = world.at(B).into_iter().map(|copy| copy.1["token"].clone()).collect();
    assert!(told.len() == 4 && told.iter().all(|token| *token == tokens[0] || *token == tokens[2]));
    // That of another act is none of C's business.
    assert!(world.at("192.0.2.30:3000").iter().all(|copy| copy.1["token"] == tokens[1]));
    let end = json!({"t": 55, "mid": 9, "token": tokens[0]});
    assert_eq!(code(&world.ask("192.0.2.30:3000", &end)), 205);
}

#[test]
fn a_token_dies_after_thirty_seconds_without_an_answer() {
    let mut world = World::new(config());
    live(&mut world);
    world.wait_ms(29_900);
    assert_eq!(world.hub.calls(), 1);
    world.wait_ms(100);
    assert_eq!(world.hub.calls(), 0);
}

#[test]
fn an_unanswered_51_is_repeated_after_half_one_two_seconds_and_given_up_after_four_more() {
    // S0-40, S0-A17, S0-A20.
    let mut world = World::new(config());
    let (token, first) = called(&mut world, json!({}));
    let mut elapsed = 0;
    for until in [500, 1500, 3500] {
        world.wait_ms(until - elapsed - 1);
        assert_eq!(world.at(B), []);
        world.wait_ms(1);
        elapsed = until;
        assert_eq!(world.at(B), [(ServerPort::Main, first[0].1.clone())]);
    }
    world.wait_ms(3999);
    assert_eq!(world.sent, []);
    world.wait_ms(1);
    let failure = json!({"t": 4, "mid": 40, "token": token, "code": 207, "em": "callee did not answer"});
    assert_eq!(world.at(A_PUNCH), [(ServerPort::Main, failure)]);
    assert_eq!((world.hub.calls(), world.sent.len()), (0, 0));
}

#[test]
fn a_refusal_reaches_the_caller_as_204_with_or_without_the_token() {
    // S0-A20; S0-38 has no token in a failure.
    for with_token in [true, false] {
        let mut world = World::new(config());
        let (token, notified) = called(&mut world, json!({}));
        let mut refusal = json!({"t": 51, "mid": notified[0].1["mid"], "code": 204, "em": "no"});
        if with_token {
            refusal["token"] = json!(token);
        }
        world.udp(B_PUNCH, &refusal);
        let failure = json!({"t": 4, "mid": 40, "token": token, "code": 204, "em": "not allowed"});
        assert_eq!(world.at(A_PUNCH), [(ServerPort::Main, failure)]);
        assert_eq!(world.hub.calls(), 0);
    }
}

#[test]
fn an_answer_with_an_unknown_token_or_a_guessed_mid_is_ignored() {
    // S0-42; the caller knows the token too, and could name a victim as the callee's address.
    let mut world = World::new(config());
    let (token, notified) = called(&mut world, json!({}));
    let mid = notified[0].1["mid"].as_i64().unwrap();
    world.udp(B_PUNCH, &json!({"t": -51, "mid": mid, "token": "other", "code": 200}));
    world.udp("203.0.113.9:9", &json!({"t": -51, "mid": mid + 1, "token": token, "code": 200}));
    world.udp("203.0.113.9:9", &json!({"t": -51, "token": token, "code": 200}));
    world.udp("203.0.113.9:9", &json!({"t": 51, "mid": mid + 1, "code": 204}));
    assert_eq!(world.sent, []);
    world.udp(B_PUNCH, &json!({"t": -51, "mid": mid, "token": token, "code": 200}));
    assert_eq!(world.at(A_PUNCH).len(), 2);
}

#[test]
fn the_port_that_speaks_first_can_be_chosen() {
    // S0-A10.
    use super::super::NotifyFrom;
    for (notify_from, door) in [(NotifyFrom::Aux, ServerPort::Aux), (NotifyFrom::Main, ServerPort::Main)] {
        let mut world = World::new(Config { notify_from, ..config() });
        let (_, notified) = called(&mut world, json!({}));
        assert_eq!(notified.len(), 1);
        world.wait_ms(500);
        assert!(notified.iter().chain(&world.at(B)).all(|copy| copy.0 == door));
        let b = world.web_client(1);
        let a = world.client(A);
        world.ask(A, &json!({"t": 4, "params": {"tag": a, "rtag": b}}));
        assert_eq!(world.on(1).len(), 1);
    }
}

#[test]
fn a_udp_caller_and_a_websocket_callee_reach_each_other() {
    // S0-A18, S0-A23.
    let mut world = World::new(config());
    let (a, b) = (world.client(A), world.web_client(1));
    let params = json!({"tag": a, "rtag": b, "ufrag": "fa", "pwd": "pa", "cands": ["candidate:a"], "nat": "hard", "tport": 80});
    let answer = world.ask(A_PUNCH, &json!({"t": 4, "mid": 1, "params": params}));
    let token = &answer["extra"]["token"];
    let notified = one(world.on(1));
    let passed = json!({"ltag": a, "host": "192.0.2.10", "port": 1001, "ufrag": "fa", "pwd": "pa",
        "cands": ["candidate:a"], "nat": "hard", "tport": 80});
    assert_eq!(notified["params"], passed);
    world.wait_ms(5000);
    assert_eq!(world.on(1), Vec::<Value>::new());
    let extra = json!({"ufrag": "fb", "tport": 81});
    world.web(1, &json!({"t": -51, "mid": notified["mid"], "token": token, "code": 200, "extra": extra}));
    let answered = world.at(A_PUNCH);
    assert_eq!(answered[0].1["extra"], json!({"ufrag": "fb", "rtport": 81}));
    // The callee's punching socket supplies its address afterwards.
    world.udp(B_PUNCH, &json!({"t": -51, "mid": notified["mid"], "token": token, "code": 200}));
    let answered = world.at(A_PUNCH);
    assert_eq!(answered[0].1["extra"], json!({"rhost": "192.0.2.20", "rport": 2001}));
    world.udp(B_PUNCH, &json!({"t": -51, "mid": notified["mid"], "token": token, "code": 200}));
    assert_eq!(world.at(A_PUNCH), []);
}

#[test]
fn a_websocket_caller_reaches_a_udp_callee() {
    let mut world = World::new(config());
    let (a, b) = (world.web_client(1), world.client(B));
    let answer = world.ask_web(1, &json!({"t": 4, "mid": 1, "params": {"tag": a, "rtag": b, "sdp": "v=0"}}));
    let notified = world.at(B);
    assert_eq!(notified[0].1["params"], json!({"ltag": a, "sdp": "v=0"}));
    let token = &answer["extra"]["token"];
    world.udp(B_PUNCH, &json!({"t": -51, "mid": notified[0].1["mid"], "token": token}));
    let answered = one(world.on(1));
    assert_eq!(answered["extra"], json!({"rhost": "192.0.2.20", "rport": 2001}));
}

#[test]
fn what_a_datagram_has_no_room_for_is_left_out_of_it() {
    let mut world = World::new(config());
    let (a, b) = (world.web_client(1), world.client(B));
    let cands: Vec<String> = (0..20).map(|i| format!("candidate:{i:090}")).collect();
    let params = json!({"tag": a, "rtag": b, "ufrag": "u", "sdp": "s".repeat(5000), "cands": cands});
    let token = world.ask_web(1, &json!({"t": 4, "mid": 1, "params": params}))["extra"]["token"].clone();
    let notified = world.at(B)[0].1.clone();
    assert!(notified.to_string().len() <= 1200);
    assert_eq!((&notified["params"]["ufrag"], notified["params"].get("sdp")), (&json!("u"), None));
    assert!(notified["params"]["cands"].as_array().unwrap().len() > 5);
    // Trickled candidates are split instead.
    let trickle = json!({"t": 54, "mid": 2, "token": token, "params": {"cands": cands, "done": true}});
    assert_eq!(world.ask_web(1, &trickle)["t"], -54);
    let parts: Vec<Value> =
        world.at(B).into_iter().filter(|copy| copy.0 == ServerPort::Main).map(|copy| copy.1).collect();
    assert!(parts.len() > 1 && parts.iter().all(|part| part.to_string().len() <= 1200));
    let passed: Vec<&Value> =
        parts.iter().flat_map(|part| part["params"]["cands"].as_array().unwrap()).collect();
    assert_eq!(json!(passed), json!(cands));
    let done: Vec<bool> = parts.iter().map(|part| part["params"].get("done").is_some()).collect();
    assert_eq!(done.iter().filter(|done| **done).count(), 1);
    assert_eq!(done.last(), Some(&true));
}

#[test]
fn candidates_trickle_both_ways_until_they_are_acknowledged() {
    let mut world = World::new(config());
    let token = live(&mut world);
    let params = json!({"cands": ["candidate:late"], "done": true, "nat": "easy"});
    let message = json!({"t": 54, "mid": 9, "token": token, "params": params});
    for (from, to) in [(A_PUNCH, B_PUNCH), (B_PUNCH, A_PUNCH)] {
        assert_eq!(world.ask(from, &message), json!({"t": -54, "mid": 9, "token": token, "code": 200}));
        let passed = world.at(to);
        assert_eq!((&passed[0].1["token"], &passed[0].1["params"]), (&json!(token), &params));
        world.wait_ms(500);
        assert_eq!(world.at(to), [(ServerPort::Main, passed[0].1.clone())]);
        world.udp(to, &json!({"t": -54, "mid": passed[0].1["mid"], "token": token, "code": 200}));
        world.wait_ms(1500);
        assert_eq!(world.at(to), []);
    }
    assert_eq!(code(&world.ask("203.0.113.9:9", &message)), 205);
    assert_eq!(code(&world.ask(A_PUNCH, &json!({"t": 54, "mid": 10, "token": "other"}))), 205);
}

#[test]
fn one_side_ends_the_act_and_the_other_hears_of_it() {
    let mut world = World::new(config());
    let token = live(&mut world);
    let end = json!({"t": 55, "mid": 9, "token": token, "params": {"reason": "done"}});
    assert_eq!(world.ask(A_PUNCH, &end)["t"], -55);
    let heard = world.at(B_PUNCH);
    assert_eq!((&heard[0].1["t"], &heard[0].1["params"]), (&json!(55), &json!({"reason": "done"})));
    world.udp(B_PUNCH, &json!({"t": -55, "mid": heard[0].1["mid"], "token": token, "code": 200}));
    assert_eq!(world.hub.calls(), 0);
    assert_eq!(world.ask(A_PUNCH, &end)["t"], -55);
    assert_eq!(code(&world.ask(B_PUNCH, &end)), 205);
    world.wait_ms(20_000);
    assert_eq!(world.sent, []);
}

#[test]
fn an_end_that_nobody_acknowledges_is_forgotten() {
    let mut world = World::new(config());
    let token = live(&mut world);
    world.ask(A_PUNCH, &json!({"t": 55, "mid": 9, "token": token}));
    world.wait_ms(7499);
    assert_eq!((world.hub.calls(), world.at(B_PUNCH).len()), (1, 5));
    world.wait_ms(1);
    assert_eq!(world.hub.calls(), 0);
}

#[test]
fn a_callee_whose_socket_closes_fails_the_waiting_call_at_once() {
    let mut world = World::new(config());
    let (a, b) = (world.client(A), world.web_client(1));
    let answer = world.ask(A_PUNCH, &json!({"t": 4, "mid": 40, "params": {"tag": a, "rtag": b}}));
    world.close(1);
    let token = &answer["extra"]["token"];
    let failure = json!({"t": 4, "mid": 40, "token": token, "code": 203, "em": "callee not online"});
    assert_eq!(world.at(A_PUNCH), [(ServerPort::Main, failure)]);
    assert_eq!(world.hub.calls(), 0);
}

#[test]
fn calling_oneself_or_nobody_gets_203() {
    // S0-10, S0-A24.
    let mut world = World::new(config());
    let a = world.client(A);
    for rtag in [a.as_str(), "nobody"] {
        assert_eq!(code(&world.ask(A_PUNCH, &json!({"t": 4, "params": {"tag": a, "rtag": rtag}}))), 203);
    }
    assert_eq!(code(&world.ask(A_PUNCH, &json!({"t": 4, "params": {"tag": "nobody", "rtag": a}}))), 202);
}
