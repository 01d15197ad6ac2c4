//! The gateway's frames inside WebSocket (RFC 6455 section 5): one binary message is one frame, and is passed on as its bytes come, so that
//! nobody keeps what the gateway has no memory for. Pure.

/// Why a connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WebSocketError {
    /// No frame as clients send them, or one that has no place here.
    #[error("not a WebSocket frame of a client")]
    Protocol,
    /// A text.
    #[error("a text")]
    Text,
    /// A message that is not exactly one frame, or one that is too long.
    #[error("a message that is not one frame")]
    NotOneFrame,
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
/// Bytes of a frame's length.
const LENGTH: usize = 4;

/// What a message must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whole {
    /// A frame of the gateway's, which says how long it is.
    Frame,
    /// So many bytes.
    Exactly(usize),
}

/// A frame of WebSocket's whose payload has not come whole.
#[derive(Debug, Clone, Copy)]
struct Payload {
    opcode: u8,
    is_final: bool,
    mask: [u8; 4],
    /// Which byte of the mask is next.
    turn: usize,
    left: usize,
}

/// A message that has not come whole.
#[derive(Debug, Clone, Copy, Default)]
struct Message {
    came: usize,
    length: [u8; LENGTH],
}

/// What a client sends, taken apart as its bytes come.
#[derive(Debug)]
pub(crate) struct Inflow {
    whole: Whole,
    longest: usize,
    head: Vec<u8>,
    payload: Option<Payload>,
    message: Option<Message>,
    control: Vec<u8>,
    /// What the newest ping has to be answered with.
    pub(crate) pong: Option<Vec<u8>>,
    /// The client has said that it is over.
    pub(crate) is_closed: bool,
}

impl Inflow {
    /// Begins with messages that are `whole`, of at most `longest` bytes.
    pub(crate) fn new(whole: Whole, longest: usize) -> Self {
        Self {
            whole,
            longest,
            head: Vec::new(),
            payload: None,
            message: None,
            control: Vec::new(),
            pong: None,
            is_closed: false,
        }
    }

    /// Says what messages must be from now on.
    pub(crate) fn expect(&mut self, whole: Whole) {
        self.whole = whole;
    }

    /// Takes bytes, and appends what of them belongs to messages. Returns how many it has taken: all, or those up to the end of a message
    /// that was expected alone.
    ///
    /// # Errors
    /// [`WebSocketError`]: nothing more is to be taken.
    pub(crate) fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize, WebSocketError> {
        let mut at = 0;
        while at < bytes.len() && !self.is_closed {
            let ended = match self.payload.as_mut() {
                None => {
                    self.head.push(bytes[at]);
                    at += 1;
                    self.begin()?
                }
                Some(payload) => {
                    let is_data = payload.opcode < CLOSE;
                    let some = payload.left.min(bytes.len() - at);
                    let plain = |(index, byte): (usize, &u8)| byte ^ payload.mask[(payload.turn + index) % 4];
                    let to = if is_data { &mut *out } else { &mut self.control };
                    let before = to.len();
                    to.extend(bytes[at..at + some].iter().enumerate().map(plain));
                    (payload.turn, payload.left) = ((payload.turn + some) % 4, payload.left - some);
                    let is_whole = payload.left == 0;
                    if is_data {
                        self.note(&out[before..])?;
                    }
                    at += some;
                    is_whole && self.end()?
                }
            };
            if ended && self.whole != Whole::Frame {
                break;
            }
        }
        Ok(at)
    }

    /// Reads a head, once it is whole; says whether that was the end of a message.
    fn begin(&mut self) -> Result<bool, WebSocketError> {
        let Some(payload) = head(&self.head)? else { return Ok(false) };
        self.head = Vec::new();
        if payload.opcode < CLOSE {
            if (payload.opcode == CONTINUATION) != self.message.is_some() {
                return Err(WebSocketError::Protocol);
            }
            let came = self.message.get_or_insert_default().came;
            if payload.left > self.longest - came.min(self.longest) {
                return Err(WebSocketError::NotOneFrame);
            }
        }
        self.payload = Some(payload);
        if payload.left == 0 { self.end() } else { Ok(false) }
    }

    /// Counts bytes of a message.
    fn note(&mut self, bytes: &[u8]) -> Result<(), WebSocketError> {
        let message = self.message.get_or_insert_default();
        for (to, byte) in message.length.iter_mut().skip(message.came).zip(bytes) {
            *to = *byte;
        }
        message.came += bytes.len();
        let came = message.came;
        match self.expected() {
            Some(expected) if came > expected || expected > self.longest => Err(WebSocketError::NotOneFrame),
            _ => Ok(()),
        }
    }

    /// Returns how long the message is, once that is known.
    fn expected(&self) -> Option<usize> {
        match (self.whole, self.message) {
            (Whole::Exactly(len), _) => Some(len),
            (Whole::Frame, Some(message)) if message.came >= LENGTH => {
                Some((u32::from_le_bytes(message.length) as usize).saturating_add(LENGTH))
            }
            _ => None,
        }
    }

    /// A payload has come whole; says whether a message has.
    fn end(&mut self) -> Result<bool, WebSocketError> {
        let Some(payload) = self.payload.take() else { return Ok(false) };
        match payload.opcode {
            CLOSE => self.is_closed = true,
            PING => self.pong = Some(std::mem::take(&mut self.control)),
            PONG => self.control = Vec::new(),
            _ if payload.is_final => {
                let expected = self.expected();
                let came = self.message.take().map(|message| message.came);
                return if came == expected { Ok(true) } else { Err(WebSocketError::NotOneFrame) };
            }
            _ => {}
        }
        Ok(false)
    }
}

/// Reads a frame's head; none where it is not whole.
fn head(bytes: &[u8]) -> Result<Option<Payload>, WebSocketError> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    let (opcode, is_final, short) = (first & 0x0F, first & FINAL != 0, usize::from(second & !MASKED));
    // A client masks, and no extension was agreed on that would use the reserved bits.
    let is_plain = first & 0x70 == 0 && second & MASKED != 0;
    let is_control = opcode >= CLOSE;
    match opcode {
        TEXT if is_plain => return Err(WebSocketError::Text),
        CONTINUATION | BINARY | CLOSE | PING | PONG if is_plain => {}
        _ => return Err(WebSocketError::Protocol),
    }
    if is_control && (!is_final || short > MOST_CONTROL) {
        return Err(WebSocketError::Protocol);
    }
    let (left, rest) = match (short, rest) {
        (126, [a, b, rest @ ..]) => (u64::from(u16::from_be_bytes([*a, *b])), rest),
        (127, [a, b, c, d, e, f, g, h, rest @ ..]) => {
            (u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]), rest)
        }
        (126 | 127, _) => return Ok(None),
        (short, rest) => (short as u64, rest),
    };
    let [a, b, c, d, ..] = rest else { return Ok(None) };
    let left = usize::try_from(left).map_err(|_| WebSocketError::NotOneFrame)?;
    Ok(Some(Payload { opcode, is_final, mask: [*a, *b, *c, *d], turn: 0, left }))
}

/// What the gateway sends: frames, each of which becomes a message.
#[derive(Debug, Default)]
pub(crate) struct Outflow {
    length: Vec<u8>,
    left: usize,
}

impl Outflow {
    /// Says whether nothing of a message has been written that is not whole.
    pub(crate) fn is_between(&self) -> bool {
        self.left == 0
    }

    /// Takes bytes of frames, and appends what is to be written.
    pub(crate) fn take(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            let wanted = if self.left == 0 { LENGTH - self.length.len() } else { self.left };
            let (some, rest) = bytes.split_at(wanted.min(bytes.len()));
            bytes = rest;
            if self.left > 0 {
                out.extend_from_slice(some);
                self.left -= some.len();
                continue;
            }
            self.length.extend_from_slice(some);
            if let Ok(length) = <[u8; LENGTH]>::try_from(&self.length[..]) {
                let length = u32::from_le_bytes(length) as usize;
                write_head(BINARY, length + LENGTH, out);
                out.append(&mut self.length);
                self.left = length;
            }
        }
    }
}

fn write_head(opcode: u8, len: usize, out: &mut Vec<u8>) {
    out.push(FINAL | opcode);
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(short), _) if short < 126 => out.push(short),
        (_, Ok(medium)) => {
            out.push(126);
            out.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
}

/// Appends a message.
pub(crate) fn write_message(message: &[u8], out: &mut Vec<u8>) {
    write_head(BINARY, message.len(), out);
    out.extend_from_slice(message);
}

/// Appends the answer to a ping.
pub(crate) fn write_pong(pong: &[u8], out: &mut Vec<u8>) {
    write_head(PONG, pong.len(), out);
    out.extend_from_slice(pong);
}

/// Appends a close without a reason.
pub(crate) fn write_close(out: &mut Vec<u8>) {
    write_head(CLOSE, 0, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};
    use tokio_tungstenite::tungstenite::protocol::frame::{Frame, FrameHeader};

    const LONGEST: usize = 70_000;

    /// A frame as a client sends it.
    fn sent(opcode: OpCode, is_final: bool, payload: &[u8]) -> Vec<u8> {
        let header = FrameHeader { is_final, opcode, mask: Some([1, 2, 3, 250]), ..FrameHeader::default() };
        let mut bytes = Vec::new();
        Frame::from_payload(header, payload.to_vec().into()).format(&mut bytes).unwrap();
        bytes
    }

    fn frame(len: usize) -> Vec<u8> {
        let length = u32::try_from(len).unwrap().to_le_bytes();
        [&length[..], &(0..len).map(|byte| byte as u8).collect::<Vec<u8>>()].concat()
    }

    fn taken(bytes: &[u8]) -> Result<Vec<u8>, WebSocketError> {
        let (mut inflow, mut out) = (Inflow::new(Whole::Frame, LONGEST), Vec::new());
        inflow.take(bytes, &mut out).map(|_| out)
    }

    #[test]
    fn a_message_is_one_frame_in_however_many_pieces() {
        let binary = OpCode::Data(Data::Binary);
        for len in [4, 5, 200, 65_000] {
            let frame = frame(len);
            assert_eq!(taken(&sent(binary, true, &frame)), Ok(frame.clone()));
            let (first, second) = frame.split_at(3);
            let ping = sent(OpCode::Control(Control::Ping), true, b"?");
            let rest = sent(OpCode::Data(Data::Continue), true, second);
            assert_eq!(taken(&[sent(binary, false, first), ping, rest].concat()), Ok(frame));
        }
        for wrong in
            [frame(9)[..12].to_vec(), [frame(9), vec![0]].concat(), vec![1, 0], vec![], frame(LONGEST)]
        {
            assert_eq!(taken(&sent(binary, true, &wrong)), Err(WebSocketError::NotOneFrame));
        }
    }

    #[test]
    fn what_has_no_place_here_is_refused() {
        let binary = OpCode::Data(Data::Binary);
        assert_eq!(taken(&sent(OpCode::Data(Data::Text), true, b"t")), Err(WebSocketError::Text));
        assert_eq!(taken(&sent(OpCode::Data(Data::Continue), true, b"t")), Err(WebSocketError::Protocol));
        let begun = sent(binary, false, &frame(9)[..5]);
        assert_eq!(taken(&[begun.clone(), begun].concat()), Err(WebSocketError::Protocol));
        assert_eq!(taken(b"\x82\x04aaaa"), Err(WebSocketError::Protocol), "without a mask");
        assert_eq!(taken(b"\x89\xfe\x00\xff1234"), Err(WebSocketError::Protocol), "a long ping");
        assert_eq!(taken(b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff1234"), Err(WebSocketError::NotOneFrame));
    }

    #[test]
    fn an_answer_of_a_known_length_comes_alone_and_what_follows_is_left() {
        let (mut inflow, mut out) = (Inflow::new(Whole::Exactly(3), LONGEST), Vec::new());
        let binary = OpCode::Data(Data::Binary);
        let (answer, next) = (sent(binary, true, b"abc"), sent(binary, true, &frame(9)));
        let count = inflow.take(&[answer.clone(), next.clone()].concat(), &mut out).unwrap();
        assert_eq!((count, &out[..]), (answer.len(), &b"abc"[..]));
        inflow.expect(Whole::Frame);
        out.clear();
        assert_eq!((inflow.take(&next, &mut out), &out), (Ok(next.len()), &frame(9)));
        inflow.take(&sent(OpCode::Control(Control::Ping), true, b"hi"), &mut out).unwrap();
        assert_eq!(inflow.pong.as_deref(), Some(&b"hi"[..]));
        inflow.take(&sent(OpCode::Control(Control::Close), true, b""), &mut out).unwrap();
        assert!(inflow.is_closed);
    }

    proptest! {
        #[test]
        fn nothing_depends_on_how_bytes_are_cut(
            lens in proptest::collection::vec(4_usize..300, 1..6),
            cuts in proptest::collection::vec(1_usize..50, 1..80),
        ) {
            let frames: Vec<u8> = lens.iter().flat_map(|len| frame(*len)).collect();
            let mut sent: Vec<u8> =
                lens.iter().flat_map(|len| sent(OpCode::Data(Data::Binary), true, &frame(*len))).collect();
            let (mut inflow, mut outflow) = (Inflow::new(Whole::Frame, LONGEST), Outflow::default());
            let (mut came, mut written, mut cuts) = (Vec::new(), Vec::new(), cuts.into_iter().cycle());
            while !sent.is_empty() {
                let rest = sent.split_off(cuts.next().unwrap().min(sent.len()));
                prop_assert_eq!(inflow.take(&sent, &mut came), Ok(sent.len()));
                sent = rest;
            }
            prop_assert_eq!(&came, &frames);
            let mut left = &frames[..];
            while !left.is_empty() {
                let (some, rest) = left.split_at(cuts.next().unwrap().min(left.len()));
                outflow.take(some, &mut written);
                left = rest;
            }
            prop_assert!(outflow.is_between());
            let mut expected = Vec::new();
            lens.iter().for_each(|len| write_message(&frame(*len), &mut expected));
            prop_assert_eq!(written, expected);
        }

        #[test]
        fn any_bytes_are_taken_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut out = Vec::new();
            let _ = Inflow::new(Whole::Frame, 100).take(&bytes, &mut out);
            prop_assert!(out.len() <= bytes.len());
        }
    }
}
