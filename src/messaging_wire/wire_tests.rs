//! Each object as `docs/wire/messages.md` shows it, and what is refused.

use super::*;

fn key(byte: u8) -> Key {
    FixedBytes([byte; 32])
}

/// What is written is what is expected, and is read back.
#[track_caller]
fn assert_request(json: &str, request: &Request) {
    assert_eq!(request.to_frame(7), json);
    assert_eq!(Request::parse(json), Ok((7, request.clone())));
}

#[test]
fn requests_are_written_and_read_back() {
    let k = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE";
    let s = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg";
    let signature = FixedBytes([2; 64]);
    let device = NewDevice { label: "pc".into(), signing_key: key(1), encryption_key: key(1), signature };
    let device_json = format!(r#""label":"pc","signing_key":"{k}","encryption_key":"{k}","signature":"{s}""#);
    assert_request(
        &format!(
            r#"{{"id":7,"type":"register","user":"al","identity_key":"{k}","proof":"{s}","device":{{{device_json}}}}}"#
        ),
        &Request::Register(Register {
            user: "al".into(),
            password: None,
            identity_key: Some(key(1)),
            proof: Some(signature),
            device: Some(device.clone()),
        }),
    );
    let login = |proof| Request::Login(Login { user: "al".into(), proof });
    assert_request(
        &format!(r#"{{"id":7,"type":"login","user":"al","device_key":"{k}","signature":"{s}"}}"#),
        &login(LoginProof::Device { reads_mailbox: true, key: key(1), signature }),
    );
    assert_request(
        &format!(
            r#"{{"id":7,"type":"login","user":"al","device_key":"{k}","signature":"{s}","mailbox":false}}"#
        ),
        &login(LoginProof::Device { reads_mailbox: false, key: key(1), signature }),
    );
    assert_request(
        &format!(r#"{{"id":7,"type":"login","user":"al","identity_signature":"{s}"}}"#),
        &login(LoginProof::Identity(signature)),
    );
    assert_request(
        r#"{"id":7,"type":"login","user":"al","password":"p"}"#,
        &login(LoginProof::Password("p".into())),
    );
    assert_request(
        &format!(r#"{{"id":7,"type":"set_identity","identity_key":"{k}","proof":"{s}"}}"#),
        &Request::SetIdentity(SetIdentity { identity_key: key(1), proof: signature }),
    );
    assert_request(
        r#"{"id":7,"type":"set_password","password":"p"}"#,
        &Request::SetPassword(SetPassword { password: "p".into() }),
    );
    assert_request(&format!(r#"{{"id":7,"type":"add_device",{device_json}}}"#), &Request::AddDevice(device));
    assert_request(
        r#"{"id":7,"type":"remove_device","device":3}"#,
        &Request::RemoveDevice(DeviceNumber { device: 3 }),
    );
    assert_request(
        r#"{"id":7,"type":"rename_device","device":3,"label":"pc"}"#,
        &Request::RenameDevice(DeviceName { device: 3, label: "pc".into() }),
    );
}

#[test]
fn requests_of_a_session_are_written_and_read_back() {
    let party = || OtherParty { party: "user:bob".into() };
    assert_request(r#"{"id":7,"type":"devices","party":"user:bob"}"#, &Request::Devices(party()));
    assert_request(r#"{"id":7,"type":"contacts"}"#, &Request::Contacts(Empty {}));
    assert_request(r#"{"id":7,"type":"add_contact","party":"user:bob"}"#, &Request::AddContact(party()));
    assert_request(
        r#"{"id":7,"type":"remove_contact","party":"user:bob"}"#,
        &Request::RemoveContact(party()),
    );
    let send = |content| Request::Send(Send { to: "user:bob".into(), message_id: "m".into(), content });
    assert_request(
        r#"{"id":7,"type":"send","to":"user:bob","message_id":"m","copies":[{"device":3,"body":"-_8"}]}"#,
        &send(Content::Encrypted(vec![DeviceCopy { device: 3, body: Body(vec![0xfb, 0xff]) }])),
    );
    assert_request(
        r#"{"id":7,"type":"send","to":"user:bob","message_id":"m","text":"hi"}"#,
        &send(Content::Text("hi".into())),
    );
    assert_request(
        r#"{"id":7,"type":"fetch","after":5,"limit":100}"#,
        &Request::Fetch(Fetch { after: 5, limit: 100 }),
    );
    assert_request(r#"{"id":7,"type":"follow","after":5}"#, &Request::Follow(Follow { after: 5 }));
    assert_request(r#"{"id":7,"type":"unfollow"}"#, &Request::Unfollow(Empty {}));
    assert_request(r#"{"id":7,"type":"ack","up_to":6}"#, &Request::Ack(Ack { up_to: 6 }));
    assert_request(r#"{"id":7,"type":"watch"}"#, &Request::Watch(Empty {}));
    assert_request(r#"{"id":7,"type":"ping"}"#, &Request::Ping(Empty {}));
    assert_request(r#"{"id":7,"type":"logout"}"#, &Request::Logout(Empty {}));
}

#[test]
fn what_is_no_request_is_refused_with_its_id_where_it_has_one() {
    for text in ["", "7", "[]", "{}", r#"{"id":7}"#, r#"{"type":"ping"}"#, r#"{"id":-1,"type":"ping"}"#, "{"]
    {
        assert_eq!(Request::parse(text), Err(RequestError::Malformed), "{text}");
    }
    let deep = format!(r#"{{"id":7,"type":"ping","x":{}}}"#, "[".repeat(100_000));
    assert_eq!(Request::parse(&deep), Err(RequestError::Malformed));
    assert_eq!(Request::parse(r#"{"id":7,"type":"dance"}"#), Err(RequestError::UnknownType { id: 7 }));
    for fields in [
        r#""type":"login","user":"al""#,
        r#""type":"login","user":"al","password":"p","device_key":"AQ","signature":"AQ""#,
        r#""type":"send","to":"user:bob","message_id":"m""#,
        r#""type":"send","to":"user:bob","message_id":"m","text":"a","copies":[]"#,
        r#""type":"send","to":"user:bob","message_id":"m","copies":[{"device":1,"body":"AQ=="}]"#,
        r#""type":"set_identity","identity_key":"AQ","proof":"AQ""#,
        r#""type":"fetch","after":-1,"limit":1"#,
    ] {
        let parsed = Request::parse(&format!(r#"{{"id":7,{fields}}}"#));
        assert!(matches!(parsed, Err(RequestError::Invalid { id: 7, .. })), "{fields}: {parsed:?}");
    }
}

#[test]
fn the_field_that_is_wrong_is_named() {
    for (fields, named) in [
        (r#""type":"ack","up_to":"x""#, "up_to: "),
        (r#""type":"ack","x":{"up_to":[",\"y"]},"up_to":-1,"z":1"#, "up_to: "),
        ("\n\"type\":\"fetch\",\n\"after\":1,\n\"limit\":true\n", "limit: "),
        (r#""type":"set_identity","identity_key":"AQ","proof":"AQ""#, "identity_key: "),
        (r#""type":"send","to":"user:bob","message_id":"m","copies":[{"device":1,"body":"?"}]"#, "copies: "),
        (r#""type":"ack""#, "missing field `up_to`"),
        (r#""type":"send","to":"user:bob","message_id":"m""#, "either copies or text"),
    ] {
        let parsed = Request::parse(&format!(r#"{{"id":7,{fields}}}"#));
        let Err(RequestError::Invalid { message, .. }) = parsed else { panic!("{fields}: {parsed:?}") };
        assert!(message.starts_with(named), "{fields}: {message}");
    }
}

#[test]
fn unknown_fields_are_ignored() {
    let (id, request) = Request::parse(r#"{"x":[{"id":1}],"type":"ack","up_to":6,"id":9,"y":null}"#).unwrap();
    assert_eq!((id, request), (9, Request::Ack(Ack { up_to: 6 })));
}

#[test]
fn answers_are_written_and_read_back() {
    let frame = ok_frame(7, &Empty {});
    assert_eq!(frame, r#"{"id":7,"type":"ok"}"#);
    assert!(matches!(ServerFrame::parse(&frame), Ok(ServerFrame::Ok { id: 7, .. })));

    let stored = Stored { messages: 2, bytes: 9 };
    let certificate = Some(FixedBytes([2; 64]));
    let mailbox =
        MailboxState { device: 3, epoch: 15, last_sequence: 8, stored, certificate, other_devices: 1 };
    for (logged_in, json) in [
        (
            LoggedIn { mailbox: Some(mailbox) },
            r#"{"id":7,"type":"ok","device":3,"epoch":15,"last_sequence":8,"stored":{"messages":2,"bytes":9},"certificate":"AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg","other_devices":1}"#,
        ),
        (LoggedIn { mailbox: None }, r#"{"id":7,"type":"ok"}"#),
    ] {
        let frame = ok_frame(7, &logged_in);
        assert_eq!(frame, json);
        let Ok(ServerFrame::Ok { fields, .. }) = ServerFrame::parse(&frame) else { panic!("{frame}") };
        assert_eq!(answer_fields::<LoggedIn>(fields).unwrap(), logged_in);
    }
    let sent = |duplicate| ok_frame(7, &Sent { state: SentState::Stored, duplicate });
    assert_eq!(sent(false), r#"{"id":7,"type":"ok","state":"stored"}"#);
    assert_eq!(sent(true), r#"{"id":7,"type":"ok","state":"stored","duplicate":true}"#);
}

#[test]
fn errors_are_written_and_read_back() {
    let plain = ErrorBody::new(ErrorCode::TlsRequired, "no");
    let frame = error_frame(7, &plain);
    assert_eq!(frame, r#"{"id":7,"type":"error","code":"tls_required","message":"no"}"#);
    assert_eq!(ServerFrame::parse(&frame).unwrap(), ServerFrame::Error { id: 7, error: plain });

    let device = Device {
        device: 3,
        label: None,
        signing_key: key(1),
        encryption_key: key(2),
        signature: FixedBytes([3; 64]),
        created_at: 5,
    };
    let devices = Devices { identity_key: Some(key(4)), devices: vec![device], legacy: false };
    let changed =
        ErrorBody { devices: Some(devices), ..ErrorBody::new(ErrorCode::DevicesChanged, "other devices") };
    let frame = error_frame(7, &changed);
    assert_eq!(ServerFrame::parse(&frame).unwrap(), ServerFrame::Error { id: 7, error: changed });

    let later = r#"{"id":7,"type":"error","code":"later","message":"x"}"#;
    let ServerFrame::Error { error, .. } = ServerFrame::parse(later).unwrap() else { panic!() };
    assert_eq!(error.code, ErrorCode::Unknown);
}

#[test]
fn events_are_written_and_read_back() {
    let message = Message {
        sequence: 4,
        from: "user:al".into(),
        device: Some(3),
        message_id: "m".into(),
        encrypted: true,
        body: Some(Body(vec![1])),
        text: None,
        stored_at: 1,
        expires_at: 2,
    };
    let receipt = Receipt {
        sequence: 5,
        state: SentState::Delivered,
        message_id: "m".into(),
        from: "user:al".into(),
        device: Some(3),
    };
    for (event, json) in [
        (
            Event::Hello { version: VERSION, challenge: key(0) },
            r#"{"type":"hello","version":1,"challenge":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}"#,
        ),
        (
            Event::Message(message),
            r#"{"type":"message","sequence":4,"from":"user:al","device":3,"message_id":"m","encrypted":true,"body":"AQ","stored_at":1,"expires_at":2}"#,
        ),
        (
            Event::Receipt(receipt),
            r#"{"type":"receipt","sequence":5,"state":"delivered","message_id":"m","from":"user:al","device":3}"#,
        ),
        (
            Event::Presence { party: "dev:d".into(), online: true },
            r#"{"type":"presence","party":"dev:d","online":true}"#,
        ),
        (
            Event::Closing { reason: ClosingReason::DeviceRemoved },
            r#"{"type":"closing","reason":"device_removed"}"#,
        ),
        (
            Event::Error(ErrorBody::new(ErrorCode::Malformed, "x")),
            r#"{"type":"error","code":"malformed","message":"x"}"#,
        ),
    ] {
        assert_eq!(event.to_frame(), json);
        assert_eq!(ServerFrame::parse(json).unwrap(), ServerFrame::Event(event));
    }
    assert_eq!(ServerFrame::parse(r#"{"type":"later"}"#).unwrap(), ServerFrame::UnknownEvent);
    assert!(ServerFrame::parse("{}").is_err());
}
