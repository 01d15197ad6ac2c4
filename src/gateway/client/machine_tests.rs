//! The machine by itself: bytes in, frames and news out.

use super::{CloseReason, Event, Mux, MuxLimits, ProtocolError, Received, SendOutcome};
use crate::gateway::wire::{self, Command, ConnId, Frame, HEAD, MAX_PACKET};
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

/// What an endpoint has sent, as a gateway reads it.
#[derive(Debug, PartialEq, Eq)]
enum Sent {
    New,
    Dial(u32, u32),
    Close(u32),
    Ping,
    Credit(u32, u32),
    Data(u32, Vec<u8>),
    GatewayToken(Vec<u8>),
}

fn sent(mux: &mut Mux) -> Vec<Sent> {
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
            Frame::Data { conn, message } => Sent::Data(conn.0, message.to_vec()),
            Frame::Command(command) => match command {
                Command::New => Sent::New,
                Command::Dial { conn, remote } => Sent::Dial(conn.0, remote),
                Command::Close(conn) => Sent::Close(conn.0),
                Command::Ping => Sent::Ping,
                Command::Credit { conn, bytes } => Sent::Credit(conn.0, bytes),
                Command::Token(token) => Sent::GatewayToken(token.to_vec()),
                other => panic!("no endpoint sends {other:?}"),
            },
        });
        rest = &rest[len..];
    }
    assert!(rest.is_empty());
    all
}

fn news(mux: &mut Mux) -> Vec<Event> {
    std::iter::from_fn(|| mux.poll_event()).filter(|event| *event != Event::Transmit).collect()
}

fn command(command: Command<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    command.emit(&mut bytes);
    bytes
}

fn data(conn: u32, message: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    wire::head(&mut bytes, ConnId(conn), message.len());
    bytes.extend_from_slice(message);
    bytes
}

fn hear(mux: &mut Mux, bytes: &[u8]) -> Result<(), ProtocolError> {
    let mut bytes = BytesMut::from(bytes);
    mux.handle_bytes(&mut bytes)?;
    assert!(bytes.is_empty(), "all was received_count");
    Ok(())
}

fn accept(conn: u32, remote: u32) -> Vec<u8> {
    command(Command::Accept { conn: ConnId(conn), remote })
}

/// An endpoint that the gateway has let in.
fn endpoint(credit: bool) -> Mux {
    let mut mux = Mux::new(limits(), credit, None);
    assert_eq!(sent(&mut mux), [Sent::New]);
    hear(&mut mux, &command(Command::Open(ConnId(99)))).unwrap();
    assert_eq!(sent(&mut mux), [Sent::Close(99)]);
    assert_eq!(news(&mut mux), [Event::Ready]);
    mux
}

/// One with a virtual connection of this number to 7.
fn connected(credit: bool, conn: u32) -> Mux {
    let mut mux = endpoint(credit);
    hear(&mut mux, &accept(conn, 7)).unwrap();
    assert_eq!(news(&mut mux), [Event::Incoming]);
    assert_eq!(mux.accept(), Some((ConnId(conn), 7)));
    if credit {
        assert_eq!(sent(&mut mux), [Sent::Credit(conn, 1000)]);
    }
    mux
}

fn offer(mux: &mut Mux, conn: u32, message: &[u8]) -> SendOutcome {
    mux.offer(ConnId(conn), message.len(), || Bytes::copy_from_slice(message))
}

fn message(text: &'static str) -> Received {
    Received::Message(Bytes::from(text))
}

#[test]
fn a_token_is_the_first_frame() {
    let mut mux = Mux::new(limits(), false, Some(b"let me in"));
    assert_eq!(sent(&mut mux), [Sent::GatewayToken(b"let me in".to_vec()), Sent::New]);
}

/// The transcript of section 3.1, whatever the splits of what comes.
#[test]
fn a_dial_goes_by_the_transcript_under_every_split() {
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
        let mut came = BytesMut::new();
        let mut events = Vec::new();
        for read_handshake in [&script[..split], &script[split..]] {
            for byte in read_handshake.chunks(split) {
                came.extend_from_slice(byte);
                mux.handle_bytes(&mut came).unwrap();
                events.extend(news(&mut mux));
            }
        }
        assert_eq!(sent(&mut mux), [Sent::New, Sent::Dial(1, server), Sent::Ping], "{split}");
        let state_sender = [
            Event::DialDone(key, Some(conn)),
            Event::Readable(conn),
            Event::Readable(conn),
            Event::Writable(conn),
        ];
        assert_eq!(events, state_sender, "{split}");
        assert_eq!([mux.take(conn), mux.take(conn)], [message("Hello"), message("")]);
        assert_eq!(mux.take(conn), Received::Closed(CloseReason::Closed));
        mux.close(conn);
        assert_eq!(sent(&mut mux), [], "the other end has closed already");
    }
}

#[test]
fn a_refused_dial_is_told_and_its_id_forgotten() {
    let mut mux = endpoint(false);
    let key = mux.dial(8);
    hear(&mut mux, &[command(Command::Open(ConnId(2))), command(Command::Refuse(ConnId(2)))].concat())
        .unwrap();
    assert_eq!(news(&mut mux), [Event::DialDone(key, None)]);
    assert_eq!(sent(&mut mux), [Sent::New, Sent::Dial(2, 8)]);
    hear(&mut mux, &command(Command::Refuse(ConnId(2)))).unwrap();
    assert_eq!(news(&mut mux), []);
}

/// A gateway closes the oldest of more than 64 ids that were opened and not dialled.
#[test]
fn few_ids_are_asked_for_at_a_time_and_all_dials_come_to_something() {
    let mut mux = endpoint(false);
    let keys: Vec<_> = (0..100).map(|_| mux.dial(5)).collect();
    assert_eq!(sent(&mut mux).len(), 32);
    for conn in 1..=100 {
        hear(&mut mux, &command(Command::Open(ConnId(conn)))).unwrap();
        let frames = sent(&mut mux);
        assert_eq!(frames[0], Sent::Dial(conn, 5), "before another id is requested for");
        assert_eq!(frames.len(), if conn <= 68 { 2 } else { 1 });
    }
    for conn in 1..=100 {
        hear(&mut mux, &accept(conn, 5)).unwrap();
        assert_eq!(news(&mut mux), [Event::DialDone(keys[conn as usize - 1], Some(ConnId(conn)))]);
    }
}

#[test]
fn an_abandoned_dial_gives_its_id_back_and_is_not_taken_for_a_call_from_outside() {
    let mut mux = endpoint(false);
    let (waits, requested) = (mux.dial(5), mux.dial(5));
    mux.cancel_dial(waits);
    hear(&mut mux, &command(Command::Open(ConnId(1)))).unwrap();
    hear(&mut mux, &command(Command::Open(ConnId(2)))).unwrap();
    assert_eq!(sent(&mut mux), [Sent::New, Sent::New, Sent::Close(1), Sent::Dial(2, 5)]);
    mux.cancel_dial(requested);
    assert_eq!(sent(&mut mux), [Sent::Close(2)]);
    hear(&mut mux, &accept(2, 5)).unwrap();
    hear(&mut mux, &data(2, b"too late")).unwrap();
    hear(&mut mux, &command(Command::Close(ConnId(2)))).unwrap();
    assert_eq!((news(&mut mux), sent(&mut mux), mux.accept()), (vec![], vec![], None));
}

/// The reference's bug (e).
#[test]
fn calls_from_outside_wait_in_the_backlog_and_only_those_beyond_it_are_closed() {
    let mut mux = endpoint(false);
    for conn in 1..=3 {
        hear(&mut mux, &accept(conn, 40 + conn)).unwrap();
    }
    hear(&mut mux, &data(1, b"early")).unwrap();
    assert_eq!(sent(&mut mux), [Sent::Close(3)]);
    assert_eq!(mux.accept(), Some((ConnId(1), 41)));
    assert_eq!(mux.accept(), Some((ConnId(2), 42)));
    assert_eq!(mux.accept(), None);
    assert_eq!(mux.take(ConnId(1)), message("early"));
    for conn in 4..=5 {
        hear(&mut mux, &accept(conn, 9)).unwrap();
    }
    assert_eq!(sent(&mut mux), [Sent::Close(5)], "three at a time");
    mux.close(ConnId(1));
    hear(&mut mux, &accept(6, 9)).unwrap();
    assert_eq!(sent(&mut mux), [Sent::Close(1)]);
}

#[test]
fn nobody_is_left_waiting_where_nobody_accepts_any_more() {
    let mut mux = connected(false, 1);
    hear(&mut mux, &accept(2, 7)).unwrap();
    mux.stop_accepting();
    hear(&mut mux, &accept(3, 7)).unwrap();
    assert_eq!(sent(&mut mux), [Sent::Close(2), Sent::Close(3)]);
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
        hear(&mut mux, &bytes).unwrap();
    }
    assert_eq!((news(&mut mux), sent(&mut mux)), (vec![], vec![]));
    hear(&mut mux, &command(Command::Open(ConnId(5)))).unwrap();
    assert_eq!(sent(&mut mux), [Sent::Close(5)], "an id that nobody requested for is given back");
}

#[test]
fn what_no_gateway_sends_is_a_fault() {
    for bytes in [
        command(Command::New),
        command(Command::Dial { conn: ConnId(1), remote: 1 }),
        command(Command::Token(b"?")),
        command(Command::Open(ConnId(0))),
        accept(0, 1),
    ] {
        assert_eq!(hear(&mut endpoint(false), &bytes), Err(ProtocolError::UnexpectedCommand));
    }
    let long = u32::try_from(MAX_PACKET + 1).unwrap().to_le_bytes();
    assert!(matches!(hear(&mut endpoint(false), &long), Err(ProtocolError::Wire(_))));
    let two = [command(Command::Ping), command(Command::Ping)].concat();
    assert_eq!(endpoint(false).handle_frame(two.into()), Err(ProtocolError::NotOneFrame));
    assert_eq!(
        endpoint(false).handle_frame(Bytes::from_static(b"\x05\0\0\0\0\0")),
        Err(ProtocolError::NotOneFrame)
    );
    assert_eq!(endpoint(false).handle_frame(command(Command::Ping).into()), Ok(()));
}

#[test]
fn a_gateway_that_asks_and_never_reads_is_a_fault() {
    let mut mux = endpoint(false);
    let pings = command(Command::Ping).repeat(20_000);
    assert_eq!(mux.handle_bytes(&mut BytesMut::from(&pings[..])), Err(ProtocolError::TooManyCommands));
}

/// The reference's sender forgets the four bytes of the connection.
#[test]
fn a_message_that_does_not_fit_into_a_packet_is_an_error_before_it_leaves() {
    let mut mux = connected(false, 1);
    let longest = MAX_PACKET - 4;
    assert_eq!(mux.max_message(), longest);
    assert_eq!(offer(&mut mux, 1, &vec![0; longest + 1]), SendOutcome::TooLong);
    assert_eq!(sent(&mut mux), []);
    assert_eq!(offer(&mut mux, 1, &vec![0; longest]), SendOutcome::Queued);
    assert_eq!(sent(&mut mux), [Sent::Data(1, vec![0; longest])]);
}

#[test]
fn a_full_outbox_makes_senders_wait_until_a_batch_has_left() {
    let mut mux = connected(false, 1);
    for _ in 0..4 {
        assert_eq!(offer(&mut mux, 1, b"x"), SendOutcome::Queued);
    }
    assert_eq!([offer(&mut mux, 1, b"x"), offer(&mut mux, 1, b"x")], [SendOutcome::Full, SendOutcome::Full]);
    assert_eq!(news(&mut mux), []);
    let mut batch = Vec::new();
    mux.poll_transmit(&mut batch);
    assert_eq!((batch.len(), news(&mut mux)), (4, vec![Event::Writable(ConnId(1))]), "all leaves at once");
}

#[test]
fn a_close_leaves_behind_what_was_sent_and_ends_only_its_own() {
    let mut mux = connected(false, 1);
    hear(&mut mux, &accept(2, 7)).unwrap();
    assert_eq!(offer(&mut mux, 1, b"last words"), SendOutcome::Queued);
    mux.close(ConnId(1));
    assert_eq!(offer(&mut mux, 1, b"?"), SendOutcome::Closed);
    assert_eq!(offer(&mut mux, 2, b"still here"), SendOutcome::Queued);
    let frames =
        [Sent::Data(1, b"last words".to_vec()), Sent::Close(1), Sent::Data(2, b"still here".to_vec())];
    assert_eq!(sent(&mut mux), frames);
    hear(&mut mux, &[data(1, b"crossed"), command(Command::Close(ConnId(1)))].concat()).unwrap();
    mux.close_all();
    assert_eq!(sent(&mut mux), [Sent::Close(2)]);
}

#[test]
fn a_full_inbox_holds_the_reading_until_something_is_taken() {
    let mut mux = connected(false, 1);
    let mut came = BytesMut::from(&data(1, b"m").repeat(6)[..]);
    mux.handle_bytes(&mut came).unwrap();
    assert_eq!(
        (mux.held(), came.len()),
        (Some(ConnId(1)), HEAD + 1),
        "the fifth is held, the sixth was not read"
    );
    news(&mut mux);
    assert_eq!(mux.take(ConnId(1)), message("m"));
    assert_eq!((mux.held(), news(&mut mux)), (None, vec![Event::Resume]));
    mux.handle_bytes(&mut came).unwrap();
    assert_eq!((mux.held(), came.len()), (Some(ConnId(1)), 0));
    for _ in 0..5 {
        assert_eq!(mux.take(ConnId(1)), message("m"), "none is error");
    }
    assert_eq!(mux.take(ConnId(1)), Received::Pending);
}

#[test]
fn an_inbox_that_stays_full_costs_its_own_connection_alone() {
    let mut mux = connected(false, 1);
    hear(&mut mux, &accept(2, 7)).unwrap();
    let mut came = BytesMut::from(&[data(1, b"m").repeat(5), data(2, b"mine")].concat()[..]);
    mux.handle_bytes(&mut came).unwrap();
    assert_eq!(mux.held(), Some(ConnId(1)));
    mux.close_held();
    mux.handle_bytes(&mut came).unwrap();
    assert_eq!(sent(&mut mux), [Sent::Close(1)]);
    assert_eq!(mux.take(ConnId(2)), message("mine"));
    for _ in 0..4 {
        assert_eq!(mux.take(ConnId(1)), message("m"));
    }
    assert_eq!(mux.take(ConnId(1)), Received::Closed(CloseReason::Overflow));
    mux.close(ConnId(1));
    assert_eq!(sent(&mut mux), []);
}

#[test]
fn a_held_message_goes_with_the_connection_that_is_closed() {
    let mut mux = connected(false, 1);
    hear(&mut mux, &data(1, b"m").repeat(5)).unwrap();
    news(&mut mux);
    mux.close(ConnId(1));
    assert_eq!((mux.held(), news(&mut mux)), (None, vec![Event::Resume]));
}

#[test]
fn with_credit_nothing_is_sent_before_it_comes_and_a_message_may_exceed_it() {
    let mut mux = connected(true, 1);
    assert_eq!(offer(&mut mux, 1, b"x"), SendOutcome::Full);
    hear(&mut mux, &command(Command::Credit { conn: ConnId(1), bytes: 10 })).unwrap();
    assert_eq!(news(&mut mux), [Event::Writable(ConnId(1))]);
    assert_eq!(offer(&mut mux, 1, b"x"), SendOutcome::Queued);
    assert_eq!(offer(&mut mux, 1, b"longer than what is left"), SendOutcome::Queued);
    assert_eq!(offer(&mut mux, 1, b"x"), SendOutcome::Full);
    hear(&mut mux, &command(Command::Credit { conn: ConnId(1), bytes: 31 })).unwrap();
    assert_eq!(
        (offer(&mut mux, 1, b"x"), news(&mut mux)),
        (SendOutcome::Full, vec![]),
        "a debt is paid first"
    );
    hear(&mut mux, &command(Command::Credit { conn: ConnId(1), bytes: 1 })).unwrap();
    assert_eq!(
        (offer(&mut mux, 1, b"x"), news(&mut mux)),
        (SendOutcome::Queued, vec![Event::Writable(ConnId(1))])
    );
}

#[test]
fn with_credit_the_window_is_granted_again_as_messages_are_taken_and_never_holds() {
    let mut mux = connected(true, 1);
    hear(&mut mux, &data(1, &[0; 92]).repeat(10)).unwrap();
    assert_eq!(mux.held(), None, "its number of messages does not count");
    for taken in 1..=10 {
        assert!(matches!(mux.take(ConnId(1)), Received::Message(_)));
        let granted = if taken % 5 == 0 { vec![Sent::Credit(1, 500)] } else { vec![] };
        assert_eq!(sent(&mut mux), granted, "{taken}");
    }
    hear(&mut mux, &data(1, &[0; 2000])).unwrap();
    assert_eq!(sent(&mut mux), []);
    hear(&mut mux, &data(1, b"")).unwrap();
    assert_eq!(sent(&mut mux), [Sent::Close(1)], "the gateway has sent more than was granted");
}

proptest! {
    #[test]
    fn any_bytes_are_heard_or_refused_alike_whatever_their_splits(
        bytes in proptest::collection::vec(prop_oneof![3 => Just(0_u8), 2 => 1_u8..14, 1 => any::<u8>()], 0..120),
        split in 0_usize..120,
    ) {
        let run = |pieces: &[&[u8]]| {
            let mut mux = connected(false, 1);
            let mut came = BytesMut::new();
            let mut result = Ok(());
            for read_handshake in pieces {
                came.extend_from_slice(read_handshake);
                result = result.and_then(|()| mux.handle_bytes(&mut came));
            }
            (result, news(&mut mux), sent(&mut mux), mux.take(ConnId(1)))
        };
        let split = split.min(bytes.len());
        prop_assert_eq!(run(&[&bytes]), run(&[&bytes[..split], &bytes[split..]]));
    }
}
