//! The server's side of WebSocket framing (RFC 6455 section 5), for messages of one kind and without extensions. Pure.
//!
//! Nothing is kept between messages: who is idle costs no buffer.

/// What a client has sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// A whole text.
    Text(String),
    /// A whole binary message.
    Binary(Vec<u8>),
    /// A ping, with what its pong must carry.
    Ping(Vec<u8>),
    /// A pong.
    Pong,
    /// A close; with the code that answers it.
    Close(Option<u16>),
}

/// Why a connection must be closed, by the code that says so (RFC 6455 section 7.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault(pub(crate) u16);

impl Fault {
    const PROTOCOL: Self = Self(1002);
    const OTHER_KIND: Self = Self(1003);
    const NOT_UTF8: Self = Self(1007);
    const TOO_LONG: Self = Self(1009);
}

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;
/// The longest payload of a control frame.
const MOST_CONTROL: usize = 125;
/// Room that may be left over behind what is kept.
const SPARE: usize = 1024;

/// Which messages a client may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Binary,
}

/// Takes frames apart as their bytes come in.
#[derive(Debug)]
pub(crate) struct Reader {
    kind: Kind,
    /// The longest message.
    longest: usize,
    /// What has come and was not yet taken.
    bytes: Vec<u8>,
    /// How much of it was.
    taken: usize,
    /// The beginning of a text that comes in several frames.
    begun: Option<Vec<u8>>,
}

/// A frame's head.
struct Head {
    is_final: bool,
    opcode: u8,
    mask: [u8; 4],
    len: usize,
    payload: usize,
}

impl Reader {
    /// Takes messages of this kind, of at most `longest` bytes.
    pub(crate) fn new(kind: Kind, longest: usize) -> Self {
        Self { kind, longest, bytes: Vec::new(), taken: 0, begun: None }
    }

    /// Takes what was read.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        // No more than is there: many may have begun a message and never end it.
        self.bytes.reserve_exact(bytes.len());
        self.bytes.extend_from_slice(bytes);
    }

    /// Sets the length of the longest message.
    pub(crate) fn set_longest(&mut self, longest: usize) {
        self.longest = longest;
    }

    /// Returns how many bytes are kept of a message that has begun; none between messages.
    pub(crate) fn held(&self) -> usize {
        self.bytes.capacity() + self.begun.as_ref().map_or(0, Vec::capacity)
    }

    /// Says whether a message, or a frame, has begun and is not whole.
    pub(crate) fn is_within_message(&self) -> bool {
        self.begun.is_some() || !self.bytes.is_empty()
    }

    /// Returns the next thing that is whole; none where more must be read first.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, Fault> {
        while let Some(head) = head(&self.bytes[self.taken..], self.longest)? {
            let so_far = self.begun.as_ref().map_or(0, Vec::len);
            if head.opcode < CLOSE && so_far + head.payload > self.longest {
                return Err(Fault::TOO_LONG);
            }
            let begin = self.taken + head.len;
            let Some(payload) = self.bytes.get_mut(begin..begin + head.payload) else { break };
            unmask(payload, head.mask);
            self.taken = begin + head.payload;
            let payload = begin..self.taken;
            if let Some(frame) = self.frame(&head, payload)? {
                return Ok(Some(frame));
            }
        }
        self.bytes.drain(..self.taken);
        self.taken = 0;
        if self.bytes.is_empty() {
            self.bytes = Vec::new();
        } else if self.bytes.capacity() > 2 * self.bytes.len() + SPARE {
            self.bytes.shrink_to_fit();
        }
        Ok(None)
    }

    fn frame(&mut self, head: &Head, payload: std::ops::Range<usize>) -> Result<Option<Frame>, Fault> {
        let payload = &self.bytes[payload];
        let (own, other) = match self.kind {
            Kind::Text => (TEXT, BINARY),
            Kind::Binary => (BINARY, TEXT),
        };
        let whole = match (head.opcode, self.begun.is_some()) {
            (opcode, false) if opcode == own && head.is_final => payload.to_vec(),
            (opcode, begun) if (opcode == own && !begun) || (opcode == CONTINUATION && begun) => {
                let mut begun = self.begun.take().unwrap_or_default();
                begun.reserve_exact(payload.len());
                begun.extend_from_slice(payload);
                if !head.is_final {
                    self.begun = Some(begun);
                    return Ok(None);
                }
                begun
            }
            (opcode, _) if opcode == other => return Err(Fault::OTHER_KIND),
            (PING, _) => return Ok(Some(Frame::Ping(payload.to_vec()))),
            (PONG, _) => return Ok(Some(Frame::Pong)),
            (CLOSE, _) => return closing(payload).map(|code| Some(Frame::Close(code))),
            _ => return Err(Fault::PROTOCOL),
        };
        match self.kind {
            Kind::Text => String::from_utf8(whole).map(Frame::Text).map(Some).map_err(|_| Fault::NOT_UTF8),
            Kind::Binary => Ok(Some(Frame::Binary(whole))),
        }
    }
}

/// Reads a frame's head; none where it is not whole.
fn head(bytes: &[u8], longest: usize) -> Result<Option<Head>, Fault> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    let (opcode, is_final) = (first & 0x0F, first & FINAL != 0);
    let is_control = opcode >= CLOSE;
    let short = usize::from(second & !MASKED);
    let is_known = matches!(opcode, CONTINUATION | TEXT | BINARY | CLOSE | PING | PONG);
    // A client masks, and no extension was agreed on that would use the reserved bits.
    let is_plain = first & 0x70 == 0 && second & MASKED != 0;
    if !is_known || !is_plain || (is_control && (!is_final || short > MOST_CONTROL)) {
        return Err(Fault::PROTOCOL);
    }
    let (payload, rest) = match (short, rest) {
        (126, [a, b, rest @ ..]) => (u64::from(u16::from_be_bytes([*a, *b])), rest),
        (127, [a, b, c, d, e, f, g, h, rest @ ..]) => {
            (u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]), rest)
        }
        (126 | 127, _) => return Ok(None),
        (short, rest) => (short as u64, rest),
    };
    let payload = usize::try_from(payload).ok().filter(|payload| opcode >= CLOSE || *payload <= longest);
    let payload = payload.ok_or(Fault::TOO_LONG)?;
    let [a, b, c, d, rest @ ..] = rest else { return Ok(None) };
    Ok(Some(Head { is_final, opcode, mask: [*a, *b, *c, *d], len: bytes.len() - rest.len(), payload }))
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let wide = u64::from_ne_bytes([mask, mask].concat().try_into().unwrap_or_default());
    let (chunks, rest) = payload.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= mask;
    }
}

/// Returns the code that answers a close: the client's own.
fn closing(payload: &[u8]) -> Result<Option<u16>, Fault> {
    let [a, b, reason @ ..] = payload else {
        return if payload.is_empty() { Ok(None) } else { Err(Fault::PROTOCOL) };
    };
    let code = u16::from_be_bytes([*a, *b]);
    match code {
        _ if std::str::from_utf8(reason).is_err() => Err(Fault::NOT_UTF8),
        1000..=1003 | 1007..=1014 | 3000..=4999 => Ok(Some(code)),
        _ => Err(Fault::PROTOCOL),
    }
}

/// Appends a text to what is to be sent.
pub(crate) fn write_text(text: &str, out: &mut Vec<u8>) {
    write(TEXT, text.as_bytes(), out);
}

/// Appends a binary message.
pub(crate) fn write_binary(payload: &[u8], out: &mut Vec<u8>) {
    write(BINARY, payload, out);
}

/// Appends a ping.
pub(crate) fn write_ping(out: &mut Vec<u8>) {
    write(PING, &[], out);
}

/// Appends the answer to a ping.
pub(crate) fn write_pong(payload: &[u8], out: &mut Vec<u8>) {
    write(PONG, payload, out);
}

/// Appends a close.
pub(crate) fn write_close(code: Option<u16>, out: &mut Vec<u8>) {
    match code {
        Some(code) => write(CLOSE, &code.to_be_bytes(), out),
        None => write(CLOSE, &[], out),
    }
}

/// Appends a close with a reason, which is cut to what a control frame holds; it must be ASCII.
pub(crate) fn write_close_for(code: u16, reason: &str, out: &mut Vec<u8>) {
    let reason = &reason.as_bytes()[..reason.len().min(MOST_CONTROL - 2)];
    write(CLOSE, &[&code.to_be_bytes(), reason].concat(), out);
}

fn write(opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
    out.reserve(payload.len() + 10);
    out.push(FINAL | opcode);
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(short @ 0..=125), _) => out.push(short),
        (_, Ok(long)) => {
            out.push(126);
            out.extend_from_slice(&long.to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_TEXT: usize = 65_535;

    fn reader() -> Reader {
        Reader::new(Kind::Text, MAX_TEXT)
    }
    use proptest::prelude::*;
    use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocket};

    fn framed(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(first & 0x0F, payload, &mut bytes);
        bytes[0] = first;
        bytes[1] |= MASKED;
        let head = bytes.len() - payload.len();
        let mask = [7, 0, 255, 3];
        unmask(&mut bytes[head..], mask);
        bytes.splice(head..head, mask);
        bytes
    }

    fn read(bytes: &[u8], step: usize) -> (Vec<Frame>, Option<Fault>) {
        let (mut reader, mut frames) = (reader(), Vec::new());
        for bytes in bytes.chunks(step) {
            reader.push(bytes);
            loop {
                match reader.next() {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => break,
                    Err(fault) => return (frames, Some(fault)),
                }
            }
        }
        (frames, None)
    }

    #[test]
    fn texts_whole_and_in_pieces_are_read_however_they_arrive() {
        let long = "ü".repeat(300);
        let bytes = [
            framed(0x81, b"one"),
            framed(0x01, "t\u{fc}".as_bytes()[..2].as_ref()),
            framed(0x89, b"ping"),
            framed(0x00, &[0xBC]),
            framed(0x80, b"o"),
            framed(0x8A, b""),
            framed(0x81, long.as_bytes()),
            framed(0x88, &1000_u16.to_be_bytes()),
        ]
        .concat();
        for step in [1, 2, 7, bytes.len()] {
            let text = |text: &str| Frame::Text(text.to_owned());
            let expected = vec![
                text("one"),
                Frame::Ping(b"ping".to_vec()),
                text("tüo"),
                Frame::Pong,
                text(&long),
                Frame::Close(Some(1000)),
            ];
            assert_eq!(read(&bytes, step), (expected, None), "{step}");
        }
    }

    #[test]
    fn what_the_rfc_forbids_ends_with_its_code() {
        let mut unmasked = framed(0x81, b"a");
        unmasked[1] &= !MASKED;
        for (bytes, code) in [
            (framed(0x82, b"binary"), 1003),
            (framed(0x81, &[0xFF, 0xFE]), 1007),
            (framed(0x81, &vec![b'x'; MAX_TEXT + 1]), 1009),
            ([framed(0x01, &vec![b'x'; MAX_TEXT]), framed(0x80, b"x")].concat(), 1009),
            (vec![0x81, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0], 1009),
            (framed(0xC1, b"a"), 1002),
            (framed(0x83, b"a"), 1002),
            (framed(0x80, b"a"), 1002),
            ([framed(0x01, b"a"), framed(0x81, b"b")].concat(), 1002),
            (framed(0x09, b"a"), 1002),
            (framed(0x89, &[0; 126]), 1002),
            (framed(0x88, &[1]), 1002),
            (framed(0x88, &1005_u16.to_be_bytes()), 1002),
            (framed(0x88, &[3, 232, 0xFF]), 1007),
            (unmasked, 1002),
        ] {
            let head = &bytes[..bytes.len().min(8)];
            assert_eq!(read(&bytes, bytes.len()), (Vec::new(), Some(Fault(code))), "{head:x?}");
        }
    }

    #[test]
    fn the_longest_text_is_taken_and_nothing_is_kept_behind_it() {
        let longest = "x".repeat(MAX_TEXT);
        let mut reader = reader();
        reader.push(&framed(0x81, longest.as_bytes()));
        assert_eq!(reader.next(), Ok(Some(Frame::Text(longest))));
        assert_eq!((reader.next(), reader.bytes.capacity()), (Ok(None), 0));
    }

    #[test]
    fn binary_messages_are_taken_where_texts_are_not() {
        let mut reader = Reader::new(Kind::Binary, 100);
        reader.push(&[framed(0x02, b"one "), framed(0x80, b"message")].concat());
        assert_eq!(reader.next(), Ok(Some(Frame::Binary(b"one message".to_vec()))));
        reader.push(&framed(0x81, b"text"));
        assert_eq!(reader.next(), Err(Fault(1003)));
        let mut reader = Reader::new(Kind::Binary, 100);
        reader.push(&framed(0x82, &[7; 101])[..8]);
        assert_eq!(reader.next(), Err(Fault(1009)), "told by the head alone");
        reader.set_longest(101);
        assert_eq!(reader.next(), Ok(None));
    }

    #[test]
    fn no_more_is_kept_of_a_begun_message_than_has_come() {
        let mut reader = reader();
        let long = [framed(0x01, &vec![b'x'; 60_000]), framed(0x80, &[b'y'; 500])[..100].to_vec()].concat();
        for bytes in long.chunks(8192) {
            reader.push(bytes);
            assert_eq!(reader.next(), Ok(None));
            assert!(reader.is_within_message() && reader.held() <= 69_000, "{}", reader.held());
        }
        assert!(reader.held() <= 60_000 + 200 + SPARE);
        reader.push(&framed(0x80, &[b'y'; 500])[100..]);
        assert!(matches!(reader.next(), Ok(Some(Frame::Text(_)))));
        assert_eq!((reader.next(), reader.held(), reader.is_within_message()), (Ok(None), 0, false));
    }

    #[test]
    fn another_implementation_reads_what_is_written() {
        let texts = ["", "short", &"x".repeat(126), &"ü".repeat(40_000)];
        let mut bytes = Vec::new();
        texts.iter().for_each(|text| write_text(text, &mut bytes));
        write_ping(&mut bytes);
        write_pong(b"yes", &mut bytes);
        write_close(Some(1001), &mut bytes);
        let stream = std::io::Cursor::new(bytes);
        let mut judge = WebSocket::from_raw_socket(stream, Role::Client, None);
        for text in texts {
            assert_eq!(judge.read().unwrap(), Message::text(text));
        }
        assert!(matches!(judge.read().unwrap(), Message::Ping(_)));
        assert_eq!(judge.read().unwrap(), Message::Pong("yes".into()));
        assert!(
            matches!(judge.read().unwrap(), Message::Close(Some(frame)) if u16::from(frame.code) == 1001)
        );
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
}
