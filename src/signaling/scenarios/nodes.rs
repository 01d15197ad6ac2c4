//! What only several servers show. Most other scenarios run with several of them too.

use super::*;
use proptest::prelude::*;

/// The UDP address of a client that reaches this server.
fn address_at(node: usize, nth: u8) -> String {
    let mut ips =
        (0..=255).map(|last| IpAddr::from([192, 0, 2, last])).filter(|ip| node_of(*ip, HUBS) == node);
    format!("{}:1000", ips.nth(nth.into()).unwrap())
}

fn call(tag: &str, rtag: &str) -> Value {
    json!({"t": 4, "mid": 7, "params": {"tag": tag, "rtag": rtag}})
}

#[test]
fn every_client_gets_a_tag_of_its_node_and_reaches_every_other_client() {
    let mut world = World::new(config());
    let addresses: Vec<String> = (0..HUBS).map(|hub| address_at(hub, 0)).collect();
    let tags: Vec<String> = addresses.iter().map(|address| world.client(address)).collect();
    for (hub, tag) in tags.iter().enumerate() {
        assert_eq!(NodeId::of_tag(&Tag::new(tag.as_str()).unwrap(), HUBS).index(), hub);
    }
    for (caller, at) in tags.iter().zip(&addresses) {
        for (callee, there) in tags.iter().zip(&addresses).filter(|(callee, _)| *callee != caller) {
            let answer = world.ask(at, &call(caller, callee));
            let token = answer["extra"]["token"].clone();
            let again = world.ask(at, &call(caller, callee));
            assert_eq!(
                (code(&answer), &again["extra"]["token"]),
                (200, &token),
                "a repetition is no second call"
            );
            assert!(world.at(there).iter().all(|(_, heard)| heard["token"] == token));
            let end = json!({"t": 55, "mid": 8, "token": token});
            assert_eq!(code(&world.ask(at, &end)), 200);
            world.wait_ms(40_000);
            for (address, tag) in addresses.iter().zip(&tags) {
                world.udp(address, &json!({"t": 2, "tag": tag}));
            }
            world.sent.clear();
        }
    }
}

#[test]
fn calls_of_a_caller_whose_connection_or_tag_ends_end_at_every_hub() {
    for is_revoked in [false, true] {
        calls_end_everywhere(is_revoked);
    }
}

fn calls_end_everywhere(is_revoked: bool) {
    let mut world = World::new(config());
    let caller = world.web_client(1);
    let callees: Vec<String> = (0..HUBS).map(|hub| world.client(&address_at(hub, 1))).collect();
    for (mid, callee) in callees.iter().enumerate() {
        let message = json!({"t": 4, "mid": mid, "params": {"tag": caller, "rtag": callee}});
        assert_eq!(code(&world.ask_web(1, &message)), 200);
    }
    assert_eq!(world.hub.calls(), HUBS);
    if is_revoked {
        world.hub.handle_revoked(world.now, &Tag::new(caller).unwrap());
        world.drain();
        assert!(world.sent.contains(&Output::Close { conn: ConnId(1) }));
    } else {
        world.close(1);
    }
    world.wait_ms(10_000);
    assert_eq!(world.hub.calls(), 0);
}

#[test]
fn who_owns_a_tag_of_another_hub_has_one_tag_all_the_same() {
    let mut world = World::new(config());
    for number in 0..12 {
        let (at, secret) = (address_at(number % HUBS, 2), format!("a secret of twenty-two {number}"));
        let first = world.client(&at);
        let owned =
            world.ask(&at, &json!({"t": 1, "mid": 2, "params": {"secret": secret}}))["extra"]["tag"].clone();
        assert_ne!(owned, json!(first));
        assert_eq!(world.hub.clients(), 1, "the first one has gone");
        assert_eq!(world.ask(&at, &json!({"t": 1, "mid": 3}))["extra"]["tag"], owned);
        world.wait_ms(60_000);
        assert_eq!(world.hub.clients(), 0);
        assert!(
            world.ask(&at, &json!({"t": 1, "mid": 4}))["extra"]["tag"] != owned,
            "its home has been told"
        );
        world.wait_ms(60_000);
    }
}

#[test]
fn what_the_bus_has_no_room_for_is_refused_and_leaves_nothing_behind() {
    let mut world = World::new(config());
    let tag = world.web_client(1);
    let home = node_of_conn(ConnId(1), HUBS);
    let foreign: Vec<String> =
        (0..HUBS).filter(|hub| *hub != home).map(|hub| world.client(&address_at(hub, 3))).collect();
    let asked = [
        call(&tag, &foreign[0]),
        json!({"t": 3, "mid": 8, "params": {"tag": tag}}),
        json!({"t": 60, "mid": 9, "params": {"tags": foreign}}),
        json!({"t": 2, "mid": 10, "tag": foreign[0]}),
    ];
    for message in asked {
        let hub = world.hub.of_conn(ConnId(1));
        hub.handle_websocket_text(world.now, ConnId(1), &message.to_string());
        let mut said = Vec::new();
        while let Some(output) = hub.poll_output() {
            match output {
                Output::Publish { message, .. } if message.starts() => {
                    hub.handle_undelivered(world.now, Undelivered::Overloaded(message));
                }
                Output::Publish { .. } => {}
                other => said.push(other),
            }
        }
        world.sent = said;
        let refused = world.on(1);
        assert_eq!((refused.len(), code(&refused[0])), (1, 206), "{message}");
        // Nobody waits any more, so that the same question is asked anew.
        let answer = world.ask_web(1, &message);
        assert!(matches!(code(&answer), 200 | 202), "{answer}");
        world.sent.clear();
    }
}

#[test]
fn a_call_that_was_on_its_way_for_a_while_has_its_whole_time_from_its_arrival() {
    let mut world = World::new(config());
    let caller = world.web_client(1);
    let there = (node_of_conn(ConnId(1), HUBS) + 1) % HUBS;
    let callee = world.client(&address_at(there, 3));
    let home = world.hub.of_conn(ConnId(1));
    home.handle_websocket_text(world.now, ConnId(1), &call(&caller, &callee).to_string());
    let Some(Output::Publish { message, .. }) = home.poll_output() else { panic!("nothing is said") };
    world.now = world.now.after(Duration::from_secs(1));
    let hub = &mut world.hub.0[there];
    hub.handle_hub_message(world.now, message);
    assert!(hub.poll_timeout().is_some_and(|due| due > world.now.mono), "a copy is due already");
}

#[test]
fn a_watch_that_ends_while_another_question_about_its_tag_waits_makes_nothing_of_it_untrue() {
    let mut world = World::new(config());
    world.web_client(1);
    let home = node_of_conn(ConnId(1), HUBS);
    let others = (0..HUBS).filter(|hub| *hub != home);
    let tags: Vec<String> = others.map(|hub| world.client(&address_at(hub, 3))).collect();
    world.ask_web(1, &json!({"t": 60, "mid": 1, "params": {"tags": [tags[0]]}}));
    let hub = world.hub.of_conn(ConnId(1));
    for (mid, watch, asked) in [(2, true, &tags[..]), (3, false, &tags[..1])] {
        let message = json!({"t": 60, "mid": mid, "params": {"tags": asked, "watch": watch}});
        hub.handle_websocket_text(world.now, ConnId(1), &message.to_string());
    }
    world.drain();
    let told = world.on(1);
    let mut online = told.iter().find(|answer| answer["mid"] == 2).unwrap()["extra"]["online"].clone();
    online.as_array_mut().unwrap().sort_by_key(Value::to_string);
    let mut expected = tags.clone();
    expected.sort_unstable();
    assert_eq!(online, json!(expected));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn a_list_is_the_same_however_many_hubs_make_it(clients in proptest::collection::btree_set(0..=255_u8, 1..40)) {
        let mut world = World::new(config());
        let address = |last: &u8| format!("192.0.2.{last}:1");
        let tags: Vec<String> = clients.iter().map(|last| world.client(&address(last))).collect();
        let origin = address(clients.first().unwrap());
        let (mut listed, mut after) = (Vec::new(), Value::Null);
        loop {
            let list = json!({"t": 3, "params": {"tag": tags[0], "after": after}});
            let answer = world.ask(&origin, &list);
            let page = answer["extra"]["tags"].as_array().unwrap().clone();
            after = page.last().cloned().unwrap_or_default();
            listed.extend(page.iter().map(|tag| tag.as_str().unwrap().to_owned()));
            if answer["extra"]["more"] != true {
                break;
            }
        }
        let mut others = tags[1..].to_vec();
        others.sort_unstable();
        prop_assert_eq!(listed, others);
    }
}

#[test]
fn a_call_to_a_tag_of_a_node_that_cannot_be_reached_is_refused() {
    let mut world = World::new(config());
    let caller = world.client(&address_at(0, 0));
    let callee = world.client(&address_at(1, 0));
    let hub = &mut world.hub.0[0];
    let bytes = call(&caller, &callee).to_string();
    hub.handle_datagram(world.now, ServerPort::Main, address(&address_at(0, 0)), None, bytes.as_bytes());
    let Some(Output::Publish { to, message }) = hub.poll_output() else { panic!("nothing is sent") };
    let message = SingleServer.send(&to, message).unwrap_err();
    hub.handle_undelivered(world.now, message);
    let Some(Output::Datagram { payload, .. }) = hub.poll_output() else { panic!("nothing is answered") };
    assert_eq!(code(&parsed(&payload)), 203);
}

#[test]
fn an_answer_to_a_udp_client_leaves_from_the_server_that_it_has_reached() {
    let mut world = World::new(config());
    let (at, secret) = (address_at(0, 0), "a secret of twenty-two bytes");
    for number in 0..12 {
        let message = json!({"t": 1, "mid": number, "params": {"secret": format!("{secret} {number}")}});
        let payload = message.to_string();
        let now = world.now;
        world.hub.0[0].handle_datagram(now, ServerPort::Main, address(&at), None, payload.as_bytes());
        while let Some((node, output)) = world.hub.poll_any(now) {
            assert!(node == 0 || !matches!(output, Output::Datagram { .. }), "from another server");
        }
    }
}
