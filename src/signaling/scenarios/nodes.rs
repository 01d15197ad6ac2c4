//! Behaviour that needs several servers. Most other scenarios also run with several.

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
    let mut hubs = TestHubs::new(config());
    let addresses: Vec<String> = (0..HUBS).map(|hub| address_at(hub, 0)).collect();
    let tags: Vec<String> = addresses.iter().map(|address| hubs.register_udp(address)).collect();
    for (hub, tag) in tags.iter().enumerate() {
        assert_eq!(NodeId::of_tag(&Tag::new(tag.as_str()).unwrap(), HUBS).index(), hub);
    }
    for (caller, at) in tags.iter().zip(&addresses) {
        for (callee, there) in tags.iter().zip(&addresses).filter(|(callee, _)| *callee != caller) {
            let answer = hubs.request_udp(at, &call(caller, callee));
            let token = answer["extra"]["token"].clone();
            let again = hubs.request_udp(at, &call(caller, callee));
            assert_eq!(
                (code(&answer), &again["extra"]["token"]),
                (200, &token),
                "a repetition is no second call"
            );
            assert!(hubs.take_datagrams(there).iter().all(|(_, received)| received["token"] == token));
            let end = json!({"t": 55, "mid": 8, "token": token});
            assert_eq!(code(&hubs.request_udp(at, &end)), 200);
            hubs.advance_ms(40_000);
            for (address, tag) in addresses.iter().zip(&tags) {
                hubs.send_udp(address, &json!({"t": 2, "tag": tag}));
            }
            hubs.sent.clear();
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
    let mut hubs = TestHubs::new(config());
    let caller = hubs.register_websocket(1);
    let callees: Vec<String> = (0..HUBS).map(|hub| hubs.register_udp(&address_at(hub, 1))).collect();
    for (mid, callee) in callees.iter().enumerate() {
        let message = json!({"t": 4, "mid": mid, "params": {"tag": caller, "rtag": callee}});
        assert_eq!(code(&hubs.request_websocket(1, &message)), 200);
    }
    assert_eq!(hubs.cluster.calls(), HUBS);
    if is_revoked {
        hubs.cluster.handle_revoked(hubs.now, &Tag::new(caller).unwrap());
        hubs.drain();
        assert!(hubs.sent.contains(&Output::Close { conn: ConnId(1) }));
    } else {
        hubs.close(1);
    }
    hubs.advance_ms(10_000);
    assert_eq!(hubs.cluster.calls(), 0);
}

#[test]
fn the_owner_of_a_tag_of_another_hub_has_only_one_tag() {
    let mut hubs = TestHubs::new(config());
    for number in 0..12 {
        let (at, secret) = (address_at(number % HUBS, 2), format!("a secret of twenty-two {number}"));
        let first = hubs.register_udp(&at);
        let owned = hubs.request_udp(&at, &json!({"t": 1, "mid": 2, "params": {"secret": secret}}))["extra"]
            ["tag"]
            .clone();
        assert_ne!(owned, json!(first));
        assert_eq!(hubs.cluster.clients(), 1, "the first one has gone");
        assert_eq!(hubs.request_udp(&at, &json!({"t": 1, "mid": 3}))["extra"]["tag"], owned);
        hubs.advance_ms(60_000);
        assert_eq!(hubs.cluster.clients(), 0);
        assert!(
            hubs.request_udp(&at, &json!({"t": 1, "mid": 4}))["extra"]["tag"] != owned,
            "its home has been received"
        );
        hubs.advance_ms(60_000);
    }
}

#[test]
fn a_message_that_the_bus_rejects_is_refused_and_leaves_no_state() {
    let mut hubs = TestHubs::new(config());
    let tag = hubs.register_websocket(1);
    let home = node_of_conn(ConnId(1), HUBS);
    let foreign: Vec<String> =
        (0..HUBS).filter(|hub| *hub != home).map(|hub| hubs.register_udp(&address_at(hub, 3))).collect();
    let requests = [
        call(&tag, &foreign[0]),
        json!({"t": 3, "mid": 8, "params": {"tag": tag}}),
        json!({"t": 60, "mid": 9, "params": {"tags": foreign}}),
        json!({"t": 2, "mid": 10, "tag": foreign[0]}),
    ];
    for message in requests {
        let hub = hubs.cluster.of_conn(ConnId(1));
        hub.handle_websocket_text(hubs.now, ConnId(1), &message.to_string());
        let mut sent = Vec::new();
        while let Some(output) = hub.poll_output() {
            match output {
                Output::Publish { message, .. } if message.starts() => {
                    hub.handle_undelivered(hubs.now, Undelivered::Overloaded(message));
                }
                Output::Publish { .. } => {}
                other => sent.push(other),
            }
        }
        hubs.sent = sent;
        let refused = hubs.take_texts(1);
        assert_eq!((refused.len(), code(&refused[0])), (1, 206), "{message}");
        // No query is pending, so that the same request starts a new one.
        let answer = hubs.request_websocket(1, &message);
        assert!(matches!(code(&answer), 200 | 202), "{answer}");
        hubs.sent.clear();
    }
}

#[test]
fn the_timers_of_a_call_from_another_hub_start_on_arrival() {
    let mut hubs = TestHubs::new(config());
    let caller = hubs.register_websocket(1);
    let there = (node_of_conn(ConnId(1), HUBS) + 1) % HUBS;
    let callee = hubs.register_udp(&address_at(there, 3));
    let home = hubs.cluster.of_conn(ConnId(1));
    home.handle_websocket_text(hubs.now, ConnId(1), &call(&caller, &callee).to_string());
    let Some(Output::Publish { message, .. }) = home.poll_output() else { panic!("nothing is sent") };
    hubs.now = hubs.now.after(Duration::from_secs(1));
    let hub = &mut hubs.cluster.0[there];
    hub.handle_hub_message(hubs.now, message);
    assert!(hub.poll_timeout().is_some_and(|due| due > hubs.now.mono), "a copy is due already");
}

#[test]
fn a_watch_that_ends_during_another_query_for_its_tag_does_not_falsify_the_answer() {
    let mut hubs = TestHubs::new(config());
    hubs.register_websocket(1);
    let home = node_of_conn(ConnId(1), HUBS);
    let others = (0..HUBS).filter(|hub| *hub != home);
    let tags: Vec<String> = others.map(|hub| hubs.register_udp(&address_at(hub, 3))).collect();
    hubs.request_websocket(1, &json!({"t": 60, "mid": 1, "params": {"tags": [tags[0]]}}));
    let hub = hubs.cluster.of_conn(ConnId(1));
    for (mid, watch, tags) in [(2, true, &tags[..]), (3, false, &tags[..1])] {
        let message = json!({"t": 60, "mid": mid, "params": {"tags": tags, "watch": watch}});
        hub.handle_websocket_text(hubs.now, ConnId(1), &message.to_string());
    }
    hubs.drain();
    let received = hubs.take_texts(1);
    let mut online = received.iter().find(|answer| answer["mid"] == 2).unwrap()["extra"]["online"].clone();
    online.as_array_mut().unwrap().sort_by_key(Value::to_string);
    let mut expected = tags.clone();
    expected.sort_unstable();
    assert_eq!(online, json!(expected));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn a_list_does_not_depend_on_the_number_of_hubs(clients in proptest::collection::btree_set(0..=255_u8, 1..40)) {
        let mut hubs = TestHubs::new(config());
        let address = |last: &u8| format!("192.0.2.{last}:1");
        let tags: Vec<String> = clients.iter().map(|last| hubs.register_udp(&address(last))).collect();
        let origin = address(clients.first().unwrap());
        let (mut listed, mut after) = (Vec::new(), Value::Null);
        loop {
            let list = json!({"t": 3, "params": {"tag": tags[0], "after": after}});
            let answer = hubs.request_udp(&origin, &list);
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
    let mut hubs = TestHubs::new(config());
    let caller = hubs.register_udp(&address_at(0, 0));
    let callee = hubs.register_udp(&address_at(1, 0));
    let hub = &mut hubs.cluster.0[0];
    let bytes = call(&caller, &callee).to_string();
    hub.handle_datagram(hubs.now, ServerPort::Main, address(&address_at(0, 0)), None, bytes.as_bytes());
    let Some(Output::Publish { to, message }) = hub.poll_output() else { panic!("nothing is sent") };
    let message = SingleServer.send(&to, message).unwrap_err();
    hub.handle_undelivered(hubs.now, message);
    let Some(Output::Datagram { payload, .. }) = hub.poll_output() else { panic!("nothing is answered") };
    assert_eq!(code(&parsed(&payload)), 203);
}

#[test]
fn an_answer_to_a_udp_client_is_sent_by_the_server_that_received_the_request() {
    let mut hubs = TestHubs::new(config());
    let (at, secret) = (address_at(0, 0), "a secret of twenty-two bytes");
    for number in 0..12 {
        let message = json!({"t": 1, "mid": number, "params": {"secret": format!("{secret} {number}")}});
        let payload = message.to_string();
        let now = hubs.now;
        hubs.cluster.0[0].handle_datagram(now, ServerPort::Main, address(&at), None, payload.as_bytes());
        while let Some((node, output)) = hubs.cluster.poll_any(now) {
            assert!(node == 0 || !matches!(output, Output::Datagram { .. }), "from another server");
        }
    }
}
