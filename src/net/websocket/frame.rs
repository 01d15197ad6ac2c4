//! Frames ([RFC 6455 section 5](https://www.rfc-editor.org/rfc/rfc6455#section-5)). Pure.

/// Why a server closes a connection ([RFC 6455 section 7.4.1](https://www.rfc-editor.org/rfc/rfc6455#section-7.4.1)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("WebSocket close code {0}")]
pub(crate) struct CloseCode(pub(crate) u16);

impl CloseCode {
    pub(crate) const NORMAL: Self = Self(1000);
    pub(crate) const GOING_AWAY: Self = Self(1001);
    const PROTOCOL_ERROR: Self = Self(1002);
    const UNSUPPORTED_DATA: Self = Self(1003);
    pub(crate) const INVALID_DATA: Self = Self(1007);
    pub(crate) const POLICY_VIOLATION: Self = Self(1008);
    const MESSAGE_TOO_BIG: Self = Self(1009);
    /// [IANA's registry](https://www.iana.org/assignments/websocket/websocket.xhtml#close-code-number).
    pub(crate) const TRY_AGAIN_LATER: Self = Self(1013);
}

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const FIN: u8 = 0x80;
const MASK: u8 = 0x80;
const RSV: u8 = 0x70;
/// The longest payload of a control frame.
const MAX_CONTROL: usize = 125;
/// Unused capacity above which a partly filled buffer is shrunk.
const SPARE: usize = 1024;

/// The type of message that an endpoint accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MessageType {
    Text,
    Binary,
}

/// What ends at a position of the received stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The payload of a message is complete.
    MessageEnd,
    /// A ping with the payload that its pong repeats.
    Ping(Vec<u8>),
    Pong,
    /// A close with the code that answers it.
    Close(Option<CloseCode>),
}

/// The rest of a data frame.
#[derive(Debug, Clone, Copy)]
struct PartialPayload {
    remaining: u32,
    /// Rotated so that its first byte applies to the next byte.
    mask: [u8; 4],
    is_final: bool,
}

/// Reads frames as their bytes arrive and unmasks the payload of messages.
#[derive(Debug)]
pub(crate) struct FrameReader {
    /// Received bytes; those before `consumed` are read.
    input: Vec<u8>,
    consumed: usize,
    payload: Option<PartialPayload>,
    /// The longest message.
    max_len: u32,
    /// Bytes of the current message that its frames have announced.
    announced: u32,
    message_type: MessageType,
    is_within_message: bool,
}

struct WebSocketHeader {
    is_final: bool,
    opcode: u8,
    mask: [u8; 4],
    /// Bytes of the header.
    len: usize,
    payload_len: usize,
}

impl FrameReader {
    /// Accepts messages of this type, of at most `max_len` bytes.
    pub(crate) fn new(message_type: MessageType, max_len: usize) -> Self {
        Self {
            input: Vec::new(),
            consumed: 0,
            payload: None,
            max_len: clamp(max_len),
            announced: 0,
            message_type,
            is_within_message: false,
        }
    }

    pub(crate) fn message_type(&self) -> MessageType {
        self.message_type
    }

    /// Sets the length of the longest message.
    pub(crate) fn set_max_len(&mut self, max_len: usize) {
        self.max_len = clamp(max_len);
    }

    /// Appends received bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        // Exactly: many clients may have begun a message that they never end.
        self.input.reserve_exact(bytes.len());
        self.input.extend_from_slice(bytes);
    }

    /// Returns the bytes of memory that an incomplete frame occupies.
    pub(crate) fn buffered(&self) -> usize {
        self.input.capacity()
    }

    /// Returns whether a message has begun and is not complete.
    pub(crate) fn is_within_message(&self) -> bool {
        self.is_within_message
    }

    /// Appends payload to `message` up to the next event; `None` where more bytes are needed.
    ///
    /// # Errors
    /// The code to close the connection with.
    pub(crate) fn next(&mut self, message: &mut Vec<u8>) -> Result<Option<Event>, CloseCode> {
        loop {
            if let Some(payload) = self.payload.as_mut() {
                let received = &self.input[self.consumed..];
                let len = received.len().min(payload.remaining as usize);
                append_unmasked(&received[..len], payload.mask, message);
                self.consumed += len;
                payload.remaining -= clamp(len);
                payload.mask.rotate_left(len % 4);
                if payload.remaining > 0 {
                    break;
                }
                let is_final = payload.is_final;
                self.payload = None;
                if is_final {
                    (self.is_within_message, self.announced) = (false, 0);
                    return Ok(Some(Event::MessageEnd));
                }
            }
            let max_payload = self.max_len as usize;
            let Some(header) = header(&self.input[self.consumed..], max_payload)? else { break };
            let start = self.consumed + header.len;
            if header.opcode < CLOSE {
                self.start_data_frame(&header)?;
                self.consumed = start;
            } else {
                let Some(payload) = self.input.get(start..start + header.payload_len) else { break };
                let mut control = Vec::new();
                append_unmasked(payload, header.mask, &mut control);
                self.consumed = start + header.payload_len;
                return match header.opcode {
                    PING => Ok(Some(Event::Ping(control))),
                    PONG => Ok(Some(Event::Pong)),
                    _ => close_code(&control).map(|code| Some(Event::Close(code))),
                };
            }
        }
        self.discard_consumed();
        Ok(None)
    }

    /// Checks that a data frame may come here, and that its message is not too long.
    fn start_data_frame(&mut self, header: &WebSocketHeader) -> Result<(), CloseCode> {
        let (expected, other) = match self.message_type {
            _ if self.is_within_message => (CONTINUATION, 0xFF),
            MessageType::Text => (TEXT, BINARY),
            MessageType::Binary => (BINARY, TEXT),
        };
        if header.opcode == other {
            return Err(CloseCode::UNSUPPORTED_DATA);
        }
        if header.opcode != expected {
            return Err(CloseCode::PROTOCOL_ERROR);
        }
        let remaining = clamp(header.payload_len);
        let announced = self.announced.saturating_add(remaining);
        if announced > self.max_len {
            return Err(CloseCode::MESSAGE_TOO_BIG);
        }
        (self.announced, self.is_within_message) = (announced, true);
        self.payload = Some(PartialPayload { remaining, mask: header.mask, is_final: header.is_final });
        Ok(())
    }

    fn discard_consumed(&mut self) {
        self.input.drain(..self.consumed);
        self.consumed = 0;
        if self.input.is_empty() {
            self.input = Vec::new();
        } else if self.input.capacity() > 2 * self.input.len() + SPARE {
            self.input.shrink_to_fit();
        }
    }
}

fn clamp(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// Parses a frame's header; `None` where it is incomplete.
fn header(bytes: &[u8], max_payload: usize) -> Result<Option<WebSocketHeader>, CloseCode> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    let (opcode, is_final) = (first & 0x0F, first & FIN != 0);
    let is_control = opcode >= CLOSE;
    let short_len = usize::from(second & !MASK);
    let is_known = matches!(opcode, CONTINUATION | TEXT | BINARY | CLOSE | PING | PONG);
    // Section 5.1: a client masks. Section 5.2: no extension was negotiated that uses the reserved bits.
    let is_plain = first & RSV == 0 && second & MASK != 0;
    if !is_known || !is_plain || (is_control && (!is_final || short_len > MAX_CONTROL)) {
        return Err(CloseCode::PROTOCOL_ERROR);
    }
    let (payload_len, rest) = match (short_len, rest) {
        (126, [a, b, rest @ ..]) => (u64::from(u16::from_be_bytes([*a, *b])), rest),
        (127, [a, b, c, d, e, f, g, h, rest @ ..]) => {
            (u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]), rest)
        }
        (126 | 127, _) => return Ok(None),
        (short_len, rest) => (short_len as u64, rest),
    };
    let payload_len = usize::try_from(payload_len).ok().filter(|len| is_control || *len <= max_payload);
    let payload_len = payload_len.ok_or(CloseCode::MESSAGE_TOO_BIG)?;
    let [a, b, c, d, rest @ ..] = rest else { return Ok(None) };
    let len = bytes.len() - rest.len();
    Ok(Some(WebSocketHeader { is_final, opcode, mask: [*a, *b, *c, *d], len, payload_len }))
}

fn append_unmasked(masked: &[u8], mask: [u8; 4], out: &mut Vec<u8>) {
    let start = out.len();
    out.reserve_exact(masked.len());
    out.extend_from_slice(masked);
    unmask(&mut out[start..], mask);
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
fn close_code(payload: &[u8]) -> Result<Option<CloseCode>, CloseCode> {
    let [a, b, reason @ ..] = payload else {
        return if payload.is_empty() { Ok(None) } else { Err(CloseCode::PROTOCOL_ERROR) };
    };
    let code = u16::from_be_bytes([*a, *b]);
    match code {
        _ if std::str::from_utf8(reason).is_err() => Err(CloseCode::INVALID_DATA),
        1000..=1003 | 1007..=1014 | 3000..=4999 => Ok(Some(CloseCode(code))),
        _ => Err(CloseCode::PROTOCOL_ERROR),
    }
}

/// Appends a text message.
pub(crate) fn write_text(text: &str, out: &mut Vec<u8>) {
    write(TEXT, text.as_bytes(), out);
}

/// Appends a binary message.
pub(crate) fn write_binary(payload: &[u8], out: &mut Vec<u8>) {
    write(BINARY, payload, out);
}

/// Appends the header of a binary message whose `len` bytes follow.
pub(crate) fn write_binary_header(len: usize, out: &mut Vec<u8>) {
    write_header(BINARY, len, out);
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
pub(crate) fn write_close(code: Option<CloseCode>, out: &mut Vec<u8>) {
    match code {
        Some(code) => write(CLOSE, &code.0.to_be_bytes(), out),
        None => write(CLOSE, &[], out),
    }
}

/// Appends a close with a reason in ASCII, which is cut to what a control frame holds.
pub(crate) fn write_close_reason(code: CloseCode, reason: &str, out: &mut Vec<u8>) {
    let reason = &reason.as_bytes()[..reason.len().min(MAX_CONTROL - 2)];
    write(CLOSE, &[&code.0.to_be_bytes(), reason].concat(), out);
}

fn write(opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
    out.reserve(payload.len() + 10);
    write_header(opcode, payload.len(), out);
    out.extend_from_slice(payload);
}

fn write_header(opcode: u8, len: usize, out: &mut Vec<u8>) {
    out.push(FIN | opcode);
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(short @ 0..=125), _) => out.push(short),
        (_, Ok(long)) => {
            out.push(126);
            out.extend_from_slice(&long.to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
}

/// Appends a frame as a client sends it.
#[cfg(test)]
pub(super) fn masked_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(first & 0x0F, payload, &mut bytes);
    bytes[0] = first;
    bytes[1] |= MASK;
    let header = bytes.len() - payload.len();
    let mask = [7, 0, 255, 3];
    unmask(&mut bytes[header..], mask);
    bytes.splice(header..header, mask);
    bytes
}
