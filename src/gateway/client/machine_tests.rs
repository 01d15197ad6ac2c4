//! The state machine: bytes in, frames and events out.

use super::{EndReason, Mux, MuxEvent, MuxLimits, ProtocolError, ReceiveOutcome, SendOutcome};
use crate::gateway::wire::{self, Command, ConnId, Frame, HEADER_LEN, MAX_PACKET};
use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

fn limits() -> MuxLimits {
    MuxLimits {
        max_packet: MAX_PACKET,
        receive_messages: 4,
        receive_bytes: 1000,
        send_messages: 4,
        send_bytes: 1000,
        backlog: 2,
        incoming: 3,
    }
}

/// A frame that an endpoint has sent.
#[derive(Debug, PartialEq, Eq)]
enum SentFrame {
    New,
    Dial(u32, u32),
    Close(u32),
    Ping,
    Credit(u32, u32),
    Data(u32, Vec<u8>),
    GatewayToken(Vec<u8>),
}

fn sent(mux: &mut Mux) -> Vec<SentFrame> {
    let mut bytes = Vec::new();
    loop {
        let mut batch = Vec::new();
        mux.poll_transmit(&mut batch);
        if batch.is_empty() {
            break;
        }
        for frame in &batch {
            assert_eq!(frame.len(), frame.pieces().concat().len());
            bytes.extend(frame.pieces().concat());
        }
    }
    let mut rest = &bytes[..];
    let mut all = Vec::new();
    while let Some((frame, len)) = wire::frame(rest, MAX_PACKET).unwrap() {
        all.push(match frame {
            Frame::Data { conn, message } => SentFrame::Data(conn.0, message.to_vec()),
            Frame::Command(command) => match command {
                Command::New => SentFrame::New,
                Command::Dial { conn, remote } => SentFrame::Dial(conn.0, remote),
                Command::Close(conn) => SentFrame::Close(conn.0),
                Command::Ping => SentFrame::Ping,
                Command::Credit { conn, bytes } => SentFrame::Credit(conn.0, bytes),
                Command::Token(token) => SentFrame::GatewayToken(token.to_vec()),
                other => panic!("no endpoint sends {other:?}"),
            },
        });
        rest = &rest[len..];
    }
    assert!(rest.is_empty());
    all
}

fn events(mux: &mut Mux) -> Vec<MuxEvent> {
    std::iter::from_fn(|| mux.poll_event()).filter(|event| *event != MuxEvent::Transmit).collect()
}

fn command(command: Command<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    command.emit(&mut bytes);
    bytes
}

fn data(conn: u32, message: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    wire::emit_header(&mut bytes, ConnId(conn), message.len());
    bytes.extend_from_slice(message);
    bytes
}

fn receive(mux: &mut Mux, bytes: &[u8]) -> Result<(), ProtocolError> {
    let mut bytes = BytesMut::from(bytes);
    mux.handle_bytes(&mut bytes)?;
    assert!(bytes.is_empty(), "all bytes were read");
    Ok(())
}

fn accept(conn: u32, remote: u32) -> Vec<u8> {
    command(Command::Accept { conn: ConnId(conn), remote })
}

/// An endpoint that the gateway has accepted.
fn endpoint(credit: bool) -> Mux {
    let mut mux = Mux::new(limits(), credit, None);
    assert_eq!(sent(&mut mux), [SentFrame::New]);
    receive(&mut mux, &command(Command::Open(ConnId(99)))).unwrap();
    assert_eq!(sent(&mut mux), [SentFrame::Close(99)]);
    assert_eq!(events(&mut mux), [MuxEvent::Ready]);
    mux
}

/// An endpoint with the virtual connection `conn` to 7.
fn connected(credit: bool, conn: u32) -> Mux {
    let mut mux = endpoint(credit);
    receive(&mut mux, &accept(conn, 7)).unwrap();
    assert_eq!(events(&mut mux), [MuxEvent::Incoming]);
    assert_eq!(mux.accept(), Some((ConnId(conn), 7)));
    if credit {
        assert_eq!(sent(&mut mux), [SentFrame::Credit(conn, 1000)]);
    }
    mux
}

fn offer(mux: &mut Mux, conn: u32, message: &[u8]) -> SendOutcome {
    mux.offer(ConnId(conn), message.len(), || Bytes::copy_from_slice(message))
}

fn message(text: &'static str) -> ReceiveOutcome {
    ReceiveOutcome::Message(Bytes::from(text))
}

#[test]
fn a_token_is_the_first_frame() {
    let mut mux = Mux::new(limits(), false, Some(b"let me in"));
    assert_eq!(sent(&mut mux), [SentFrame::GatewayToken(b"let me in".to_vec()), SentFrame::New]);
}

/// The result does not depend on how the received bytes are split.
#[test]
fn a_dial_gives_the_same_frames_and_events_under_every_split() {
    let (conn, server) = (ConnId(1), 1);
    let script = [
        command(Command::Open(conn)),
        accept(1, server),
        data(1, b"Hello"),
        command(Command::Ping),
        data(1, b""),
        command(Command::Close(conn)),
    ]
    .concat();
    for split in 1..script.len() {
        let mut mux = endpoint(false);
        let key = mux.dial(server);
        let mut input = BytesMut::new();
        let mut all = Vec::new();
        for piece in [&script[..split], &script[split..]] {
            for byte in piece.chunks(split) {
                input.extend_from_slice(byte);
                mux.handle_bytes(&mut input).unwrap();
                all.extend(events(&mut mux));
            }
        }
        assert_eq!(sent(&mut mux), [SentFrame::New, SentFrame::Dial(1, server), SentFrame::Ping], "{split}");
        let expected = [
            MuxEvent::DialDone(key, Some(conn)),
            MuxEvent::Readable(conn),
            MuxEvent::Readable(conn),
            MuxEvent::Writable(conn),
        ];
        assert_eq!(all, expected, "{split}");
        assert_eq!([mux.take(conn), mux.take(conn)], [message("Hello"), message("")]);
        assert_eq!(mux.take(conn), ReceiveOutcome::Closed(EndReason::Closed));
        mux.close(conn);
        assert_eq!(sent(&mut mux), [], "the other end has closed already");
    }
}

#[test]
fn a_refused_dial_completes_and_its_id_is_forgotten() {
    let mut mux = endpoint(false);
    let key = mux.dial(8);
    receive(&mut mux, &[command(Command::Open(ConnId(2))), command(Command::Refuse(ConnId(2)))].concat())
        .unwrap();
    assert_eq!(events(&mut mux), [MuxEvent::DialDone(key, None)]);
    assert_eq!(sent(&mut mux), [SentFrame::New, SentFrame::Dial(2, 8)]);
    receive(&mut mux, &command(Command::Refuse(ConnId(2)))).unwrap();
    assert_eq!(events(&mut mux), []);
}

/// A gateway closes the oldest of more than 64 ids that were opened and not dialled.
#[test]
fn few_ids_are_requested_at_a_time_and_all_dials_complete() {
    let mut mux = endpoint(false);
    let keys: Vec<_> = (0..100).map(|_| mux.dial(5)).collect();
    assert_eq!(sent(&mut mux).len(), 32);
    for conn in 1..=100 {
        receive(&mut mux, &command(Command::Open(ConnId(conn)))).unwrap();
        let frames = sent(&mut mux);
        assert_eq!(frames[0], SentFrame::Dial(conn, 5), "before another id is requested");
        assert_eq!(frames.len(), if conn <= 68 { 2 } else { 1 });
    }
    for conn in 1..=100 {
        receive(&mut mux, &accept(conn, 5)).unwrap();
        assert_eq!(events(&mut mux), [MuxEvent::DialDone(keys[conn as usize - 1], Some(ConnId(conn)))]);
    }
}

#[test]
fn a_cancelled_dial_releases_its_id_and_is_not_taken_for_an_incoming_connection() {
    let mut mux = endpoint(false);
    let (waits, requested) = (mux.dial(5), mux.dial(5));
    mux.cancel_dial(waits);
    receive(&mut mux, &command(Command::Open(ConnId(1)))).unwrap();
    receive(&mut mux, &command(Command::Open(ConnId(2)))).unwrap();
    assert_eq!(sent(&mut mux), [SentFrame::New, SentFrame::New, SentFrame::Close(1), SentFrame::Dial(2, 5)]);
    mux.cancel_dial(requested);
    assert_eq!(sent(&mut mux), [SentFrame::Close(2)]);
    receive(&mut mux, &accept(2, 5)).unwrap();
    receive(&mut mux, &data(2, b"too late")).unwrap();
    receive(&mut mux, &command(Command::Close(ConnId(2)))).unwrap();
    assert_eq!((events(&mut mux), sent(&mut mux), mux.accept()), (vec![], vec![], None));
}

#[test]
fn incoming_connections_wait_in_the_backlog_and_only_those_beyond_it_are_closed() {
    let mut mux = endpoint(false);
    for conn in 1..=3 {
        receive(&mut mux, &accept(conn, 40 + conn)).unwrap();
    }
    receive(&mut mux, &data(1, b"early")).unwrap();
    assert_eq!(sent(&mut mux), [SentFrame::Close(3)]);
    assert_eq!(mux.accept(), Some((ConnId(1), 41)));
    assert_eq!(mux.accept(), Some((ConnId(2), 42)));
    assert_eq!(mux.accept(), None);
    assert_eq!(mux.take(ConnId(1)), message("early"));
    for conn in 4..=5 {
        receive(&mut mux, &accept(conn, 9)).unwrap();
    }
    assert_eq!(sent(&mut mux), [SentFrame::Close(5)], "three at a time");
    mux.close(ConnId(1));
    receive(&mut mux, &accept(6, 9)).unwrap();
    assert_eq!(sent(&mut mux), [SentFrame::Close(1)]);
}

#[test]
fn incoming_connections_are_closed_after_accepting_has_stopped() {
    let mut mux = connected(false, 1);
    receive(&mut mux, &accept(2, 7)).unwrap();
    mux.stop_accepting();
    receive(&mut mux, &accept(3, 7)).unwrap();
    assert_eq!(sent(&mut mux), [SentFrame::Close(2), SentFrame::Close(3)]);
    assert_eq!(offer(&mut mux, 1, b"goes on"), SendOutcome::Queued);
}

#[test]
fn unknown_ids_are_ignored() {
    let mut mux = endpoint(true);
    for bytes in [
        data(5, b"whose?"),
        command(Command::Close(ConnId(5))),
        command(Command::Refuse(ConnId(5))),
        command(Command::Credit { conn: ConnId(5), bytes: 7 }),
    ] {
        receive(&mut mux, &bytes).unwrap();
    }
    assert_eq!((events(&mut mux), sent(&mut mux)), (vec![], vec![]));
    receive(&mut mux, &command(Command::Open(ConnId(5)))).unwrap();
    assert_eq!(sent(&mut mux), [SentFrame::Close(5)], "an id that was not requested is released");
}

#[test]
fn what_a_gateway_does_not_send_is_an_error() {
    for bytes in [
        command(Command::New),
        command(Command::Dial { conn: ConnId(1), remote: 1 }),
        command(Command::Token(b"?")),
        command(Command::Open(ConnId(0))),
        accept(0, 1),
    ] {
        assert_eq!(receive(&mut endpoint(false), &bytes), Err(ProtocolError::UnexpectedCommand));
    }
    let long = u32::try_from(MAX_PACKET + 1).unwrap().to_le_bytes();
    assert!(matches!(receive(&mut endpoint(false), &long), Err(ProtocolError::Wire(_))));
    let two = [command(Command::Ping), command(Command::Ping)].concat();
    assert_eq!(endpoint(false).handle_frame(two.into()), Err(ProtocolError::NotOneFrame));
    assert_eq!(
        endpoint(false).handle_frame(Bytes::from_static(b"\x05\0\0\0\0\0")),
        Err(ProtocolError::NotOneFrame)
    );
    assert_eq!(endpoint(false).handle_frame(command(Command::Ping).into()), Ok(()));
}

#[test]
fn a_gateway_that_commands_and_never_reads_is_an_error() {
    let mut mux = endpoint(false);
    let pings = command(Command::Ping).repeat(20_000);
    assert_eq!(mux.handle_bytes(&mut BytesMut::from(&pings[..])), Err(ProtocolError::TooManyCommands));
}

/// The packet limit includes the connection id.
#[test]
fn a_message_that_does_not_fit_into_a_packet_is_an_error_before_it_leaves() {
    let mut mux = connected(false, 1);
    let longest = MAX_PACKET - 4;
    assert_eq!(mux.max_message(), longest);
    assert_eq!(offer(&mut mux, 1, &vec![0; longest + 1]), SendOutcome::TooLong);
    assert_eq!(sent(&mut mux), []);
    assert_eq!(offer(&mut mux, 1, &vec![0; longest]), SendOutcome::Queued);
    assert_eq!(sent(&mut mux), [SentFrame::Data(1, vec![0; longest])]);
}

#[test]
fn a_full_outbox_makes_senders_wait_until_a_batch_has_left() {
    let mut mux = connected(false, 1);
    for _ in 0..4 {
        assert_eq!(offer(&mut mux, 1, b"x"), SendOutcome::Queued);
    }
    assert_eq!([offer(&mut mux, 1, b"x"), offer(&mut mux, 1, b"x")], [SendOutcome::Full, SendOutcome::Full]);
    assert_eq!(events(&mut mux), []);
    let mut batch = Vec::new();
    mux.poll_transmit(&mut batch);
    assert_eq!(
        (batch.len(), events(&mut mux)),
        (4, vec![MuxEvent::Writable(ConnId(1))]),
        "all leaves at once"
    );
}

#[test]
fn a_close_follows_what_was_sent_and_ends_only_its_own_connection() {
    let mut mux = connected(false, 1);
    receive(&mut mux, &accept(2, 7)).unwrap();
    assert_eq!(offer(&mut mux, 1, b"last words"), SendOutcome::Queued);
    mux.close(ConnId(1));
    assert_eq!(offer(&mut mux, 1, b"?"), SendOutcome::Closed);
    assert_eq!(offer(&mut mux, 2, b"still here"), SendOutcome::Queued);
    let frames = [
        SentFrame::Data(1, b"last words".to_vec()),
        SentFrame::Close(1),
        SentFrame::Data(2, b"still here".to_vec()),
    ];
    assert_eq!(sent(&mut mux), frames);
    receive(&mut mux, &[data(1, b"crossed"), command(Command::Close(ConnId(1)))].concat()).unwrap();
    mux.close_all();
    assert_eq!(sent(&mut mux), [SentFrame::Close(2)]);
}

#[test]
fn a_full_receive_queue_stops_reading_until_a_message_is_taken() {
    let mut mux = connected(false, 1);
    let mut input = BytesMut::from(&data(1, b"m").repeat(6)[..]);
    mux.handle_bytes(&mut input).unwrap();
    assert_eq!(
        (mux.blocked(), input.len()),
        (Some(ConnId(1)), HEADER_LEN + 1),
        "the fifth message is blocked, the sixth was not read"
    );
    events(&mut mux);
    assert_eq!(mux.take(ConnId(1)), message("m"));
    assert_eq!((mux.blocked(), events(&mut mux)), (None, vec![MuxEvent::Resume]));
    mux.handle_bytes(&mut input).unwrap();
    assert_eq!((mux.blocked(), input.len()), (Some(ConnId(1)), 0));
    for _ in 0..5 {
        assert_eq!(mux.take(ConnId(1)), message("m"), "none is lost");
    }
    assert_eq!(mux.take(ConnId(1)), ReceiveOutcome::Pending);
}

#[test]
fn a_receive_queue_that_stays_full_closes_only_its_own_connection() {
    let mut mux = connected(false, 1);
    receive(&mut mux, &accept(2, 7)).unwrap();
    let mut input = BytesMut::from(&[data(1, b"m").repeat(5), data(2, b"mine")].concat()[..]);
    mux.handle_bytes(&mut input).unwrap();
    assert_eq!(mux.blocked(), Some(ConnId(1)));
    mux.close_blocked();
    mux.handle_bytes(&mut input).unwrap();
    assert_eq!(sent(&mut mux), [SentFrame::Close(1)]);
    assert_eq!(mux.take(ConnId(2)), message("mine"));
    for _ in 0..4 {
        assert_eq!(mux.take(ConnId(1)), message("m"));
    }
    assert_eq!(mux.take(ConnId(1)), ReceiveOutcome::Closed(EndReason::Overflow));
    mux.close(ConnId(1));
    assert_eq!(sent(&mut mux), []);
}

#[test]
fn a_blocked_message_is_dropped_with_its_connection() {
    let mut mux = connected(false, 1);
    receive(&mut mux, &data(1, b"m").repeat(5)).unwrap();
    events(&mut mux);
    mux.close(ConnId(1));
    assert_eq!((mux.blocked(), events(&mut mux)), (None, vec![MuxEvent::Resume]));
}

#[test]
fn nothing_is_sent_without_credit_and_a_message_may_exceed_it() {
    let mut mux = connected(true, 1);
    assert_eq!(offer(&mut mux, 1, b"x"), SendOutcome::Full);
    receive(&mut mux, &command(Command::Credit { conn: ConnId(1), bytes: 10 })).unwrap();
    assert_eq!(events(&mut mux), [MuxEvent::Writable(ConnId(1))]);
    assert_eq!(offer(&mut mux, 1, b"x"), SendOutcome::Queued);
    assert_eq!(offer(&mut mux, 1, b"longer than what is left"), SendOutcome::Queued);
    assert_eq!(offer(&mut mux, 1, b"x"), SendOutcome::Full);
    receive(&mut mux, &command(Command::Credit { conn: ConnId(1), bytes: 31 })).unwrap();
    assert_eq!(
        (offer(&mut mux, 1, b"x"), events(&mut mux)),
        (SendOutcome::Full, vec![]),
        "the excess is subtracted first"
    );
    receive(&mut mux, &command(Command::Credit { conn: ConnId(1), bytes: 1 })).unwrap();
    assert_eq!(
        (offer(&mut mux, 1, b"x"), events(&mut mux)),
        (SendOutcome::Queued, vec![MuxEvent::Writable(ConnId(1))])
    );
}

#[test]
fn credit_is_granted_again_as_messages_are_taken_and_reading_never_stops() {
    let mut mux = connected(true, 1);
    receive(&mut mux, &data(1, &[0; 92]).repeat(10)).unwrap();
    assert_eq!(mux.blocked(), None, "its number of messages does not count");
    for taken in 1..=10 {
        assert!(matches!(mux.take(ConnId(1)), ReceiveOutcome::Message(_)));
        let granted = if taken % 5 == 0 { vec![SentFrame::Credit(1, 500)] } else { vec![] };
        assert_eq!(sent(&mut mux), granted, "{taken}");
    }
    receive(&mut mux, &data(1, &[0; 2000])).unwrap();
    assert_eq!(sent(&mut mux), []);
    receive(&mut mux, &data(1, b"")).unwrap();
    assert_eq!(sent(&mut mux), [SentFrame::Close(1)], "the gateway has sent more than was granted");
}

proptest! {
    #[test]
    fn any_bytes_give_the_same_result_under_every_split(
        bytes in proptest::collection::vec(prop_oneof![3 => Just(0_u8), 2 => 1_u8..14, 1 => any::<u8>()], 0..120),
        split in 0_usize..120,
    ) {
        let run = |pieces: &[&[u8]]| {
            let mut mux = connected(false, 1);
            let mut input = BytesMut::new();
            let mut result = Ok(());
            for piece in pieces {
                input.extend_from_slice(piece);
                result = result.and_then(|()| mux.handle_bytes(&mut input));
            }
            (result, events(&mut mux), sent(&mut mux), mux.take(ConnId(1)))
        };
        let split = split.min(bytes.len());
        prop_assert_eq!(run(&[&bytes]), run(&[&bytes[..split], &bytes[split..]]));
    }
}
