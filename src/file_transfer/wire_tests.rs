use super::*;
use proptest::prelude::*;

fn sender_messages() -> Vec<SenderMessage> {
    let root = |name: &[u8], is_folder| OfferedRoot { is_folder, name: name.to_vec() };
    let mtime = Mtime { secs: -5, nanos: 999_999_999 };
    let entry = |kind| Entry { kind, name: b"a\xffb".to_vec(), mode: 0o644, mtime };
    vec![
        SenderMessage::Offer(Offer {
            transfer: [7; 16],
            ticket: "agent:abc".to_owned(),
            sender: "laptop".to_owned(),
            files: 3,
            bytes: 1 << 40,
            is_counted: true,
            roots: vec![root(b"x", true), root(b"y", false)],
        }),
        SenderMessage::Root(9),
        SenderMessage::Entry(entry(EntryKind::File { size: u64::MAX })),
        SenderMessage::Entry(entry(EntryKind::Folder)),
        SenderMessage::Entry(entry(EntryKind::Link { target: b"../b".to_vec() })),
        SenderMessage::Leave,
        SenderMessage::Skipped { problem: EntryProblem::NotCreated, path: b"a/b".to_vec() },
        SenderMessage::Start { file: 1, group: 2 },
        SenderMessage::Hole(3),
        SenderMessage::Group([4; 32]),
        SenderMessage::FileEnd([5; 32]),
        SenderMessage::FileFailed { file: 6, problem: EntryProblem::Special },
        SenderMessage::End { files: 7, manifest: [8; 32] },
        SenderMessage::Cancel(CancelReason::Exists),
    ]
}

fn receiver_messages() -> Vec<ReceiverMessage> {
    vec![
        ReceiverMessage::Hello { receiver: [1; 16], transfer: None },
        ReceiverMessage::Hello { receiver: [1; 16], transfer: Some([2; 16]) },
        ReceiverMessage::Accept { skipped: vec![] },
        ReceiverMessage::Accept { skipped: vec![1, 5] },
        ReceiverMessage::Need { file: 1, group: 2, prefix: [3; 32] },
        ReceiverMessage::Have { file: 4 },
        ReceiverMessage::Refused { file: 5, problem: EntryProblem::Name },
        ReceiverMessage::Verified(6),
        ReceiverMessage::Finished,
        ReceiverMessage::Cancel(CancelReason::Declined),
    ]
}

/// Decodes a stream that arrives in pieces of this length; content is joined.
fn decode_all<M: Message>(bytes: &[u8], piece: usize) -> Result<(Vec<M>, Vec<u8>), WireError> {
    let (mut decoder, mut found, mut content) = (Decoder::default(), Vec::new(), Vec::new());
    for mut chunk in bytes.chunks(piece) {
        while let Some(piece) = decoder.next(&mut chunk)? {
            match piece {
                Piece::Message(message) => found.push(message),
                Piece::Data(data) => content.extend_from_slice(data),
            }
        }
        assert!(chunk.is_empty());
    }
    Ok((found, content))
}

#[test]
fn messages_and_content_arrive_whatever_the_pieces_are() {
    let mut bytes = Vec::new();
    for message in &sender_messages() {
        message.encode(&mut bytes);
        data_header(&mut bytes, 3);
        bytes.extend_from_slice(b"xyz");
    }
    for piece in [1, 2, 3, 7, 64, bytes.len()] {
        let (found, content) = decode_all::<SenderMessage>(&bytes, piece).unwrap();
        assert_eq!(found, sender_messages(), "{piece}");
        assert_eq!(content, b"xyz".repeat(found.len()));
    }
    let mut bytes = Vec::new();
    receiver_messages().iter().for_each(|message| message.encode(&mut bytes));
    for piece in [1, 5, bytes.len()] {
        assert_eq!(decode_all::<ReceiverMessage>(&bytes, piece).unwrap().0, receiver_messages());
    }
}

#[test]
fn a_frame_above_its_limit_is_refused_before_it_is_kept() {
    for kind in 0..=255_u8 {
        let header = [&[kind][..], &u32::MAX.to_be_bytes()].concat();
        let error = decode_all::<SenderMessage>(&header, 1).unwrap_err();
        let expected =
            if SenderMessage::limit(kind).is_some() { WireError::TooLong } else { WireError::Kind };
        assert_eq!(error, expected, "{kind}");
        assert!(decode_all::<ReceiverMessage>(&header, 1).is_err());
    }
}

#[test]
fn a_payload_with_a_wrong_length_or_value_is_refused() {
    for message in sender_messages() {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        let (kind, payload) = (bytes[0], &bytes[HEADER..]);
        assert!(SenderMessage::decode(kind, &[payload, b"x"].concat()).is_err(), "{message:?}");
        if !payload.is_empty() {
            assert!(SenderMessage::decode(kind, &payload[..payload.len() - 1]).is_err(), "{message:?}");
        }
    }
    for byte in [0, 100] {
        assert_eq!(SenderMessage::decode(13, &[byte]), Err(WireError::Content));
        assert_eq!(ReceiverMessage::decode(40, &[byte]), Err(WireError::Content));
    }
    let no_roots = Offer::default();
    let mut payload = Vec::new();
    no_roots.write(&mut payload);
    assert_eq!(SenderMessage::decode(1, &payload), Err(WireError::Content));
}

proptest! {
    #[test]
    fn any_bytes_are_messages_or_an_error(bytes: Vec<u8>, piece in 1_usize..40) {
        let _ = decode_all::<SenderMessage>(&bytes, piece);
        let _ = decode_all::<ReceiverMessage>(&bytes, piece);
    }

    #[test]
    fn any_payload_is_a_message_or_an_error(kind in 0_u8..45, payload: Vec<u8>) {
        let _ = SenderMessage::decode(kind, &payload);
        let _ = ReceiverMessage::decode(kind, &payload);
    }
}
