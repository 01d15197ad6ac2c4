use super::super::frame::{
    CloseCode, MessageType, masked_frame, write_close, write_ping, write_pong, write_text,
};
use super::*;

const MAX_TEXT: usize = 65_535;

fn reader() -> MessageReader {
    MessageReader::new(MessageType::Text, MAX_TEXT)
}
use proptest::prelude::*;
use tokio_tungstenite::tungstenite::Message as Judged;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocket};

fn read(bytes: &[u8], step: usize) -> (Vec<Message>, Option<CloseCode>) {
    let (mut reader, mut frames) = (reader(), Vec::new());
    for bytes in bytes.chunks(step) {
        reader.push(bytes);
        loop {
            match reader.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(code) => return (frames, Some(code)),
            }
        }
    }
    (frames, None)
}

#[test]
fn texts_whole_and_in_pieces_are_read_however_they_arrive() {
    let long = "ü".repeat(300);
    let bytes = [
        masked_frame(0x81, b"one"),
        masked_frame(0x01, "t\u{fc}".as_bytes()[..2].as_ref()),
        masked_frame(0x89, b"ping"),
        masked_frame(0x00, &[0xBC]),
        masked_frame(0x80, b"o"),
        masked_frame(0x8A, b""),
        masked_frame(0x81, long.as_bytes()),
        masked_frame(0x88, &1000_u16.to_be_bytes()),
    ]
    .concat();
    for step in [1, 2, 7, bytes.len()] {
        let text = |text: &str| Message::Text(text.to_owned());
        let expected = vec![
            text("one"),
            Message::Ping(b"ping".to_vec()),
            text("tüo"),
            Message::Pong,
            text(&long),
            Message::Close(Some(CloseCode::NORMAL)),
        ];
        assert_eq!(read(&bytes, step), (expected, None), "{step}");
    }
}

#[test]
fn what_the_rfc_forbids_ends_with_its_code() {
    let mut unmasked = masked_frame(0x81, b"a");
    unmasked[1] &= !0x80;
    for (bytes, code) in [
        (masked_frame(0x82, b"binary"), 1003),
        (masked_frame(0x81, &[0xFF, 0xFE]), 1007),
        (masked_frame(0x81, &vec![b'x'; MAX_TEXT + 1]), 1009),
        ([masked_frame(0x01, &vec![b'x'; MAX_TEXT]), masked_frame(0x80, b"x")].concat(), 1009),
        (vec![0x81, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0], 1009),
        (masked_frame(0xC1, b"a"), 1002),
        (masked_frame(0x83, b"a"), 1002),
        (masked_frame(0x80, b"a"), 1002),
        ([masked_frame(0x01, b"a"), masked_frame(0x81, b"b")].concat(), 1002),
        (masked_frame(0x09, b"a"), 1002),
        (masked_frame(0x89, &[0; 126]), 1002),
        (masked_frame(0x88, &[1]), 1002),
        (masked_frame(0x88, &1005_u16.to_be_bytes()), 1002),
        (masked_frame(0x88, &[3, 232, 0xFF]), 1007),
        (unmasked, 1002),
    ] {
        let head = &bytes[..bytes.len().min(8)];
        assert_eq!(read(&bytes, bytes.len()), (Vec::new(), Some(CloseCode(code))), "{head:x?}");
    }
}

#[test]
fn the_longest_text_is_taken_and_nothing_is_kept_behind_it() {
    let longest = "x".repeat(MAX_TEXT);
    let mut reader = reader();
    reader.push(&masked_frame(0x81, longest.as_bytes()));
    assert_eq!(reader.next(), Ok(Some(Message::Text(longest))));
    assert_eq!((reader.next(), reader.buffered()), (Ok(None), 0));
}

#[test]
fn binary_messages_are_taken_where_texts_are_not() {
    let mut reader = MessageReader::new(MessageType::Binary, 100);
    reader.push(&[masked_frame(0x02, b"one "), masked_frame(0x80, b"message")].concat());
    assert_eq!(reader.next(), Ok(Some(Message::Binary(b"one message".to_vec()))));
    reader.push(&masked_frame(0x81, b"text"));
    assert_eq!(reader.next(), Err(CloseCode(1003)));
    let mut reader = MessageReader::new(MessageType::Binary, 100);
    reader.push(&masked_frame(0x82, &[7; 101])[..8]);
    assert_eq!(reader.next(), Err(CloseCode(1009)), "told by the head alone");
    reader.set_max_len(101);
    assert_eq!(reader.next(), Ok(None));
}

#[test]
fn no_more_is_kept_of_a_begun_message_than_has_come() {
    let mut reader = reader();
    let long =
        [masked_frame(0x01, &vec![b'x'; 60_000]), masked_frame(0x80, &[b'y'; 500])[..100].to_vec()].concat();
    for bytes in long.chunks(8192) {
        reader.push(bytes);
        assert_eq!(reader.next(), Ok(None));
        assert!(reader.is_within_message() && reader.buffered() <= 69_000, "{}", reader.buffered());
    }
    assert!(reader.buffered() <= 60_000 + 200 + 1024);
    reader.push(&masked_frame(0x80, &[b'y'; 500])[100..]);
    assert!(matches!(reader.next(), Ok(Some(Message::Text(_)))));
    assert_eq!((reader.next(), reader.buffered(), reader.is_within_message()), (Ok(None), 0, false));
}

#[test]
fn another_implementation_reads_what_is_written() {
    let texts = ["", "short", &"x".repeat(126), &"ü".repeat(40_000)];
    let mut bytes = Vec::new();
    texts.iter().for_each(|text| write_text(text, &mut bytes));
    write_ping(&mut bytes);
    write_pong(b"yes", &mut bytes);
    write_close(Some(CloseCode::GOING_AWAY), &mut bytes);
    let stream = std::io::Cursor::new(bytes);
    let mut judge = WebSocket::from_raw_socket(stream, Role::Client, None);
    for text in texts {
        assert_eq!(judge.read().unwrap(), Judged::text(text));
    }
    assert!(matches!(judge.read().unwrap(), Judged::Ping(_)));
    assert_eq!(judge.read().unwrap(), Judged::Pong("yes".into()));
    assert!(matches!(judge.read().unwrap(), Judged::Close(Some(frame)) if u16::from(frame.code) == 1001));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic_or_keep_more_than_a_message(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        step in 1..50_usize,
    ) {
        let _ = read(&bytes, step);
    }
}

/// What each of many idle connections costs.
#[test]
fn an_idle_reader_owns_no_buffer_and_is_small() {
    let reader = reader();
    assert_eq!(reader.buffered(), 0);
    assert!(size_of::<MessageReader>() <= 80, "{} bytes", size_of::<MessageReader>());
}
