//! What is written can be read, and no bytes break the parser.

use super::*;
use proptest::prelude::*;

fn targets() -> impl Strategy<Value = Target> {
    let host = ("[a-z0-9.-]{1,255}", 1..=u16::MAX).prop_map(|(host, port)| HostPort { host, port });
    prop_oneof![
        "[^\\p{C}]{1,16}".prop_map(Target::Service),
        host.clone().prop_map(Target::Tcp),
        host.prop_map(Target::Udp),
        "/[^\\p{C}]{0,20}".prop_map(Target::Unix),
    ]
}

fn requests() -> impl Strategy<Value = Request> {
    prop_oneof![
        targets().prop_map(Request::Query),
        targets().prop_map(Request::Connect),
        (any::<u32>(), targets()).prop_map(|(id, target)| Request::Flow { id, target }),
        (any::<u32>(), "[a-z0-9.:]{0,255}", any::<u16>())
            .prop_map(|(listener, host, port)| Request::Listen { listener, host, port }),
        any::<u32>().prop_map(|listener| Request::Incoming { listener }),
    ]
}

fn replies() -> impl Strategy<Value = Reply> {
    let transport = prop_oneof![Just(Transport::Tcp), Just(Transport::Udp), Just(Transport::Unix)];
    prop_oneof![
        (transport, any::<u16>()).prop_map(|(transport, port)| Reply::Accepted { transport, port }),
        (0..9_usize, ".{0,300}")
            .prop_map(|(code, detail)| Reply::Refused(Refusal::new(RefusalCode::ALL[code], detail))),
    ]
}

/// Returns the frame without its length, which is checked.
fn body(frame: &[u8]) -> &[u8] {
    let (length, body) = frame.split_first_chunk::<2>().unwrap();
    assert_eq!(usize::from(u16::from_be_bytes(*length)), body.len());
    assert!(body.len() <= MAX_FRAME);
    body
}

proptest! {
    #[test]
    fn what_is_written_is_read(request in requests(), reply in replies()) {
        prop_assert_eq!(Request::parse(body(&request.emit())), Ok(request));
        prop_assert_eq!(Reply::parse(body(&reply.emit())), Ok(reply));
    }

    #[test]
    fn any_bytes_are_a_frame_that_is_written_as_it_was_read_or_an_error(
        kind in 0_u8..12, target in 0_u8..5, rest in prop::collection::vec(any::<u8>(), 0..600)
    ) {
        for bytes in [[&[kind, target][..], &rest].concat(), [&[kind, 0, 0, 0, 0, target][..], &rest].concat()] {
            if let Ok(request) = Request::parse(&bytes) {
                let frame = request.emit();
                prop_assert_eq!(body(&frame), &bytes[..]);
            }
            match Reply::parse(&bytes) {
                Ok(Reply::Refused(refusal)) if bytes[0] > 9 => {
                    prop_assert_eq!(refusal.code, RefusalCode::Failed);
                }
                Ok(reply) => {
                    let frame = reply.emit();
                    prop_assert_eq!(body(&frame), &bytes[..]);
                }
                Err(_) => {}
            }
        }
        if let Some((flow, payload)) = parse_datagram(&rest) {
            prop_assert_eq!(emit_datagram(flow, payload), rest);
        }
    }
}

#[test]
fn fields_that_are_too_long_or_not_valid_are_refused() {
    let tcp = |host: &str, port: u16| {
        Request::parse(&[&[CONNECT, 1][..], &port.to_be_bytes(), host.as_bytes()].concat())
    };
    assert!(tcp(&"h".repeat(MAX_HOST), 1).is_ok());
    assert_eq!(tcp(&"h".repeat(MAX_HOST + 1), 1), Err(WireError::Malformed));
    for (host, port) in [("h", 0), ("", 1), ("a b", 1), ("a\nb", 1), ("a/b", 1), ("a\u{85}b", 1)] {
        assert_eq!(tcp(host, port), Err(WireError::Malformed), "{host:?}");
    }
    let text = |kind: u8, text: &str| Request::parse(&[&[CONNECT, kind][..], text.as_bytes()].concat());
    assert!(text(0, &"n".repeat(MAX_NAME)).is_ok());
    for (kind, field) in [(0, "n".repeat(MAX_NAME + 1)), (0, String::new()), (3, "relative".to_owned())] {
        assert_eq!(text(kind, &field), Err(WireError::Malformed), "{field:?}");
    }
    assert_eq!(text(3, "/a\0b"), Err(WireError::Malformed));
    assert_eq!(text(3, &format!("/{}", "p".repeat(MAX_PATH))), Err(WireError::Malformed));
    assert_eq!(Request::parse(&[99]), Err(WireError::UnknownRequest));
    assert_eq!(Request::parse(&[INCOMING, 0, 0, 0, 0, 0]), Err(WireError::Malformed));
    assert_eq!(Request::parse(&[]), Err(WireError::Malformed));
}

#[test]
fn a_long_refusal_is_cut_between_characters() {
    let refusal = Refusal::new(RefusalCode::Busy, "ü".repeat(MAX_DETAIL));
    assert_eq!(refusal.detail.len(), MAX_DETAIL);
    assert_eq!(Refusal::new(RefusalCode::Busy, format!("a{}", "ü".repeat(MAX_DETAIL))).detail.len(), 511);
    assert_eq!(Reply::parse(body(&Reply::Refused(refusal.clone()).emit())), Ok(Reply::Refused(refusal)));
}

#[test]
fn a_host_and_a_port_are_read_as_they_are_shown() {
    for text in ["h:1", "10.0.0.5:80", "[::1]:22", "a.example:65535"] {
        assert_eq!(text.parse::<HostPort>().unwrap().to_string(), text);
    }
    for text in ["h", "h:", ":1", "h:0", "::1", "[::1]", "h:70000", "h h:1", "h:1:2"] {
        assert_eq!(text.parse::<HostPort>(), Err(HostPortError), "{text}");
    }
}
