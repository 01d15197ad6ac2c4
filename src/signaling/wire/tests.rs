use super::*;
use proptest::prelude::*;

fn tag(text: &str) -> Tag {
    Tag::new(text).unwrap()
}

fn token() -> Token {
    Token::new("tok").unwrap()
}

#[test]
fn a_code_of_0_counts_as_absent() {
    let with = decode(br#"{"t":1,"mid":5,"code":0}"#);
    assert!(matches!(&with, Ok(Message::Request(_))) && with == decode(br#"{"t":1,"mid":5}"#));
    let answer = decode(br#"{"t":-2,"mid":5,"code":0}"#);
    assert!(matches!(answer, Ok(Message::Response(Response { body: ResponseBody::Alive, .. }))));
    let wrong = decode(br#"{"t":1,"mid":5,"code":0,"params":{"key":7}}"#);
    assert_eq!(wrong, Err(DecodeError::Malformed { t: Some(MessageType::Register), mid: Some(5) }));
}

fn request(text: &str) -> RequestBody {
    match decode(text.as_bytes()) {
        Ok(Message::Request(request)) => request.body,
        other => panic!("{other:?}"),
    }
}

fn response(text: &str) -> ResponseBody {
    match decode(text.as_bytes()) {
        Ok(Message::Response(response)) => response.body,
        other => panic!("{other:?}"),
    }
}

fn full_ice() -> IceDescription {
    IceDescription {
        opts: vec!["trickle".into()],
        ufrag: Some("u".into()),
        pwd: Some("p".into()),
        cands: vec!["candidate:1 1 udp 1 192.0.2.1 9 typ host lane direct".into()],
        role: Some("controlling".into()),
        laddrs: vec!["10.0.0.2:9".into()],
        nat: Some(NatType::Hard),
        tport: Some(80),
        sdp: Some("v=0\r\n".into()),
    }
}

fn every_message() -> Vec<Message> {
    let from = Some("[2001:db8::1]:9".parse().unwrap());
    let asks = vec![
        RequestBody::Register {
            key: Some("k".into()),
            secret: Some("s".repeat(MIN_SECRET)),
            epoch: Some(0),
            proof: None,
            laddrs: from.map(|address| vec![address]),
        },
        RequestBody::Register {
            key: None,
            secret: None,
            epoch: None,
            proof: Some(Proof { public: [7; 32], nonce: "n".into(), signature: vec![8; 64] }),
            laddrs: None,
        },
        RequestBody::Challenge,
        RequestBody::Heartbeat { tag: tag("a") },
        RequestBody::List { tag: tag("a"), after: Some(tag("b")) },
        RequestBody::Call { tag: tag("a"), rtag: tag("b"), ice: full_ice() },
        RequestBody::Notify { token: token(), ltag: tag("a"), from, ice: full_ice() },
        RequestBody::Answered { token: token(), from: None, ice: full_ice() },
        RequestBody::Status { token: token() },
        RequestBody::Trickle {
            token: token(),
            cands: vec!["c".into()],
            done: true,
            nat: Some(NatType::Easy),
        },
        RequestBody::End { token: token(), reason: Some("bye".into()) },
        RequestBody::Watch { tags: vec![tag("a")], watch: false },
        RequestBody::Presence { online: vec![tag("a")], offline: vec![tag("b")] },
        RequestBody::Locator { tag: tag("a"), release: false },
        RequestBody::Locator { tag: tag("a"), release: true },
        RequestBody::Locate { tag: tag("a"), locator: 7 },
        RequestBody::Open,
        RequestBody::Punch { token: token() },
    ];
    let server =
        IceServer { urls: vec!["turn:x".into()], username: Some("u".into()), credential: Some("c".into()) };
    let answers = vec![
        ResponseBody::Registered {
            tag: tag("a"),
            ice_servers: vec![server],
            stun2: Some("x:3479".into()),
            spray: false,
            epoch: Some(1),
            seen: from.map(|addr| ReflexiveAddress { addr, nat: Some(true) }),
        },
        ResponseBody::Alive,
        ResponseBody::Listed { tags: vec![tag("a")], more: true },
        ResponseBody::Calling { token: token() },
        ResponseBody::Challenged { nonce: "n".into() },
        ResponseBody::Accepted { token: token(), ice: full_ice() },
        ResponseBody::Noted { token: token() },
        ResponseBody::Status { token: token(), punching: false, path: Some(ReportedPath::Relay) },
        ResponseBody::Trickled { token: token() },
        ResponseBody::Ended { token: token() },
        ResponseBody::Watching { online: vec![tag("a")], offline: vec![tag("b")] },
        ResponseBody::Locator { locator: Some(7), ttl: Some(600) },
        ResponseBody::Locator { locator: None, ttl: None },
        ResponseBody::Located { tag: tag("a") },
        ResponseBody::Punched { token: token() },
        ResponseBody::Failed {
            t: MessageType::Call,
            token: Some(token()),
            code: ErrorCode::NoAnswer,
            em: "e".into(),
        },
    ];
    let asks = asks.into_iter().map(|body| Message::Request(Request { mid: Some(i64::MAX), body }));
    asks.chain(answers.into_iter().map(|body| Message::Response(Response { mid: None, body }))).collect()
}

#[test]
fn every_message_is_decoded_as_it_was_encoded() {
    for message in every_message() {
        assert_eq!(decode(message.encode().as_bytes()), Ok(message));
    }
}

#[test]
fn tag_and_token_are_read_at_either_level() {
    for text in [r#"{"t":2,"tag":"a"}"#, r#"{"t":2,"params":{"tag":"a"}}"#] {
        assert_eq!(request(text), RequestBody::Heartbeat { tag: tag("a") });
    }
    for text in [r#"{"t":102,"token":"tok"}"#, r#"{"t":102,"params":{"token":"tok"}}"#] {
        assert_eq!(request(text), RequestBody::Punch { token: token() });
    }
    for text in [r#"{"t":-4,"extra":{"token":"tok"}}"#, r#"{"t":-4,"token":"tok","code":200}"#] {
        assert_eq!(response(text), ResponseBody::Calling { token: token() });
    }
}

#[test]
fn a_52_may_use_params_and_a_minus_51_too() {
    let from = Some("192.0.2.7:23456".parse().unwrap());
    for place in ["extra", "params"] {
        let text =
            format!(r#"{{"t":52,"token":"tok","{place}":{{"rhost":"192.0.2.7","rport":23456,"rtport":7}}}}"#);
        let ice = IceDescription { tport: Some(7), ..IceDescription::default() };
        assert_eq!(request(&text), RequestBody::Answered { token: token(), from, ice });
        let text = format!(r#"{{"t":-51,"token":"tok","code":200,"{place}":{{"tport":7}}}}"#);
        let ice = IceDescription { tport: Some(7), ..IceDescription::default() };
        assert_eq!(response(&text), ResponseBody::Accepted { token: token(), ice });
    }
}

#[test]
fn failures_are_decoded_with_either_sign_and_encoded_with_the_requests_type() {
    for text in [r#"{"t":4,"code":203,"em":"x"}"#, r#"{"t":-4,"code":203,"em":"x"}"#] {
        let failed = ResponseBody::Failed {
            t: MessageType::Call,
            token: None,
            code: ErrorCode::NotOnline,
            em: "x".into(),
        };
        assert_eq!(response(text), failed);
    }
    let written = Response::failure(MessageType::Call, Some(7), ErrorCode::NotOnline).encode();
    assert_eq!(written, r#"{"t":4,"mid":7,"code":203,"em":"callee not online"}"#);
    assert_eq!(
        response(r#"{"t":4,"code":200,"extra":{"token":"tok"}}"#),
        ResponseBody::Calling { token: token() }
    );
}

#[test]
fn wrong_types_are_malformed_and_other_input_is_dropped() {
    let error = |text: &str| decode(text.as_bytes()).unwrap_err();
    let malformed = |t: Option<i64>, mid| DecodeError::Malformed { t: t.map(MessageType::from_number), mid };
    assert_eq!(error(r#"{"t":"1","mid":7}"#), malformed(None, Some(7)));
    assert_eq!(error(r#"{"t":1.0,"mid":7}"#), malformed(None, Some(7)));
    assert_eq!(error(r#"{"t":1,"mid":"7"}"#), malformed(Some(1), None));
    assert_eq!(error(r#"{"t":1,"mid":9223372036854775808}"#), malformed(Some(1), None));
    assert_eq!(error(r#"{"mid":7}"#), malformed(None, Some(7)));
    assert_eq!(error(r#"{"t":4,"mid":7,"params":{"tag":"a"}}"#), malformed(Some(4), Some(7)));
    assert_eq!(error(r#"{"t":1,"params":{"secret":"short"}}"#), malformed(Some(1), None));
    for epoch in ["-1", "9007199254740992", "1.5", "\"1\""] {
        let text = format!(r#"{{"t":1,"params":{{"epoch":{epoch}}}}}"#);
        assert_eq!(error(&text), malformed(Some(1), None), "{epoch}");
    }
    assert_eq!(error(r#"{"t":51,"token":"x","params":{"ltag":"a","host":"h"}}"#), malformed(Some(51), None));
    assert_eq!(
        error(r#"{"t":99,"mid":7}"#),
        DecodeError::Unsupported { t: MessageType::Other(99), mid: Some(7) }
    );
    for proof in [r#""pub":"a""#, r#""pub":"a","nonce":"n","sig":"*""#, r#""nonce":"n","sig":"AA""#] {
        assert_eq!(error(&format!(r#"{{"t":1,"params":{{{proof}}}}}"#)), malformed(Some(1), None));
    }
    assert_eq!(error(r#"{"t":60,"mid":7,"params":{}}"#), malformed(Some(60), Some(7)));
    for text in ["", "{", "[]", "null", r#"{"t":2,}"#, r#"{"t":-1,"mid":"x"}"#, r#"{"t":1,"code":"x"}"#] {
        assert_eq!(error(text), DecodeError::Undecodable, "{text}");
    }
    assert_eq!(error(&format!("{}{{}}", " ".repeat(MAX_TEXT))), DecodeError::Undecodable);
}

#[test]
fn the_largest_and_smallest_mid_are_echoed_exactly() {
    for mid in [i64::MAX, i64::MIN, (1 << 53) + 1] {
        let Ok(Message::Request(request)) = decode(format!(r#"{{"t":101,"mid":{mid}}}"#).as_bytes()) else {
            panic!("no request");
        };
        assert_eq!(request.mid, Some(mid));
    }
}

#[test]
fn null_and_unknown_names_count_as_absent() {
    let text = r#"{"t":-2,"mid":null,"code":200,"em":null,"extra":null}"#;
    assert_eq!(response(text), ResponseBody::Alive);
    assert_eq!(
        request(r#"{"t":1,"code":null}"#),
        RequestBody::Register { key: None, secret: None, epoch: None, proof: None, laddrs: None }
    );
    let text = r#"{"t":-53,"token":"tok","extra":{"path":"warp"}}"#;
    assert_eq!(response(text), ResponseBody::Status { token: token(), punching: true, path: None });
}

#[test]
fn every_example_of_the_wire_page_is_a_message_and_every_message_has_one() {
    let page = include_str!("../../../docs/wire/signaling.md");
    let examples = page.split("```json\n").skip(1).filter_map(|rest| rest.split("\n```").next());
    let mut seen = std::collections::BTreeSet::new();
    for example in examples {
        match decode(example.as_bytes()) {
            Ok(Message::Request(request)) => seen.insert(request.body.message_type().number()),
            Ok(Message::Response(_)) => {
                let t = serde_json::from_str::<serde_json::Value>(example).unwrap()["t"].as_i64();
                seen.insert(t.unwrap())
            }
            Err(error) => panic!("{error}: {example}"),
        };
    }
    let all = [
        -103, -62, -61, -60, -55, -54, -53, -52, -51, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 51, 52, 53, 54, 55,
        60, 61, 62, 101, 102,
    ];
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), all);
}

proptest! {
    #[test]
    fn decoding_does_not_panic_on_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(&bytes);
    }

    #[test]
    fn decoding_does_not_panic_on_message_like_text(
        text in r#"\{"t":-?[0-9]{1,3}(,"(mid|code|tag|token|params|extra)":(1|"a"|null|\{\}|\{"tag":"a"\}|\[\])){0,4}\}"#
    ) {
        if let Ok(message) = decode(text.as_bytes()) {
            prop_assert_eq!(decode(message.encode().as_bytes()), Ok(message));
        }
    }
}
