//! Local and server-reflexive addresses: in registrations and in calls (S1-2 to S1-6).

use super::*;

const A: &str = "192.0.2.10:1000";
const A_PUNCH: &str = "192.0.2.10:1001";
const B: &str = "192.0.2.20:2000";
const B_PUNCH: &str = "192.0.2.20:2001";
const A_INNER: [&str; 2] = ["10.0.0.10:1001", "[fd00::10]:1001"];
const B_INNER: [&str; 1] = ["10.0.0.20:2001"];
/// Makes a request long enough for any answer.
const PADDING: &str = "a longer request has room for more";

/// Registers by UDP with local addresses and proves the address.
fn client(hubs: &mut TestHubs, from: &str, laddrs: &[&str]) -> String {
    let params = json!({"laddrs": laddrs});
    let answer = hubs.request_udp(from, &json!({"t": 1, "mid": 1, "params": params}));
    let tag = answer["extra"]["tag"].as_str().unwrap().to_owned();
    assert_eq!(hubs.request_udp(from, &json!({"t": 2, "tag": tag}))["t"], -2);
    tag
}

/// A client with a signalling and a punching socket.
struct Side {
    tag: String,
    main: &'static str,
    punch: &'static str,
}

/// Registers two clients with these local addresses.
fn register_two(hubs: &mut TestHubs, local_addresses: [&[&str]; 2]) -> [Side; 2] {
    let (a, b) = (client(hubs, A, local_addresses[0]), client(hubs, B, local_addresses[1]));
    [Side { tag: a, main: A, punch: A_PUNCH }, Side { tag: b, main: B, punch: B_PUNCH }]
}

/// Lets the caller call the callee with these fields, and returns what the callee and the caller receive about each other.
fn exchange_addresses(
    hubs: &mut TestHubs,
    [caller, callee]: [&Side; 2],
    [offer, answer]: [Value; 2],
) -> [Value; 2] {
    let mut params = json!({"tag": caller.tag, "rtag": callee.tag});
    params.as_object_mut().unwrap().extend(offer.as_object().unwrap().clone());
    let calling = hubs.request_udp(caller.punch, &json!({"t": 4, "mid": 4, "params": params}));
    let token = &calling["extra"]["token"];
    let notified = hubs.take_datagrams(callee.main).remove(0).1;
    let mid = &notified["mid"];
    hubs.send_udp(callee.punch, &json!({"t": -51, "mid": mid, "token": token, "code": 200, "extra": answer}));
    let answered = hubs.take_datagrams(caller.punch).remove(0).1;
    [notified["params"].clone(), answered["extra"].clone()]
}

#[test]
fn a_client_gets_its_reflexive_address_and_whether_it_is_behind_a_nat() {
    // S1-2 to S1-4.
    let mut hubs = TestHubs::new(config());
    let mut register = |mid: i64, params: Value| {
        let answer = hubs.request_udp(A, &json!({"t": 1, "mid": mid, "params": params, "pad": PADDING}));
        assert_eq!(answer["extra"]["addr"], A);
        answer["extra"]["nat"].clone()
    };
    assert_eq!(register(1, json!({})), Value::Null);
    assert_eq!(register(2, json!({"laddrs": A_INNER})), true);
    // The reported addresses stay until others are reported.
    assert_eq!(register(3, json!({})), true);
    assert_eq!(register(4, json!({"laddrs": ["10.0.0.10:1001", A_PUNCH]})), false);
    assert_eq!(register(5, json!({"laddrs": []})), Value::Null);
    hubs.open(1);
    let answer = hubs.request_websocket(1, &json!({"t": 1, "mid": 1, "params": {"laddrs": A_INNER}}));
    assert_eq!((code(&answer), &answer["extra"]["addr"]), (200, &Value::Null));
}

#[test]
fn the_reflexive_address_is_omitted_if_it_does_not_fit() {
    let mut hubs = TestHubs::new(config());
    let answer = hubs.request_udp("[2001:db8:1:2:3:4:5:6]:50000", &json!({"t": 1, "mid": 1}));
    assert_eq!((code(&answer), &answer["extra"]["addr"]), (200, &Value::Null));
    let answer = hubs.request_udp(B, &json!({"t": 1, "mid": 1, "pad": "a few"}));
    assert_eq!((&answer["extra"]["addr"], &answer["extra"]["stun2"]), (&json!(B), &Value::Null));
}

#[test]
fn each_side_gets_the_local_and_reflexive_addresses_of_the_other() {
    // S1-5, S1-6.
    for a_calls in [true, false] {
        let mut hubs = TestHubs::new(config());
        let [a, b] = register_two(&mut hubs, [&A_INNER, &B_INNER]);
        let (a, b) = ((&a, json!(A_INNER)), (&b, json!(B_INNER)));
        let [caller, callee] = if a_calls { [a, b] } else { [b, a] };
        let [received, back] = exchange_addresses(&mut hubs, [caller.0, callee.0], [json!({}), json!({})]);
        let outer = |ip: &Value, port: &Value| format!("{}:{port}", ip.as_str().unwrap());
        assert_eq!(outer(&received["host"], &received["port"]), caller.0.punch);
        assert_eq!(outer(&back["rhost"], &back["rport"]), callee.0.punch);
        assert_eq!((&received["laddrs"], &back["laddrs"]), (&caller.1, &callee.1));
    }
}

#[test]
fn addresses_in_a_call_override_registered_ones() {
    let mut hubs = TestHubs::new(config());
    let [a, b] = register_two(&mut hubs, [&A_INNER, &B_INNER]);
    let now = |address: &str| json!({"laddrs": [address]});
    let sent = [now("10.9.0.1:1"), now("10.9.0.2:2")];
    let [received, back] = exchange_addresses(&mut hubs, [&a, &b], sent);
    assert_eq!((&received["laddrs"], &back["laddrs"]), (&json!(["10.9.0.1:1"]), &json!(["10.9.0.2:2"])));
}

#[test]
fn registered_addresses_are_not_sent_to_unproven_addresses() {
    let secret = |of: &str| format!("{of}, a secret that is long enough");
    for proven in [0, 1] {
        let mut hubs = TestHubs::new(config());
        let clients = [(A, A_PUNCH, &A_INNER[..]), (B, B_PUNCH, &B_INNER)];
        let mut sides = Vec::new();
        for (index, (main, punch, local_addresses)) in clients.into_iter().enumerate() {
            let tag = if index == proven {
                client(&mut hubs, main, local_addresses)
            } else {
                // The owner of a secret can compute the tag from any address.
                let params = json!({"secret": secret(main), "laddrs": local_addresses});
                let answer = hubs.request_udp(main, &json!({"t": 1, "mid": 1, "params": params}));
                answer["extra"]["tag"].as_str().unwrap().to_owned()
            };
            sides.push(Side { tag, main, punch });
        }
        let [received, back] = exchange_addresses(&mut hubs, [&sides[0], &sides[1]], [json!({}), json!({})]);
        let expected = [(json!(A_INNER), Value::Null), (Value::Null, json!(B_INNER))];
        let sent_on = (received["laddrs"].clone(), back["laddrs"].clone());
        assert_eq!(sent_on, expected[1 - proven], "the proven one is {proven}");
    }
}

#[test]
fn malformed_local_addresses_are_refused() {
    let mut hubs = TestHubs::new(config());
    for (mid, laddrs) in (1..).zip([
        json!(["here"]),
        json!(["10.0.0.1"]),
        json!(["10.0.0.1:0"]),
        json!(vec![A; 17]),
        json!("x"),
    ]) {
        let answer = hubs.request_udp(A, &json!({"t": 1, "mid": mid, "params": {"laddrs": laddrs}}));
        assert_eq!(code(&answer), 201, "{laddrs}");
    }
}
