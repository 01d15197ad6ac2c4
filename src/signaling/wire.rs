//! The wire of document 000 with the fields added to it: parse and write, without any state.
//!
//! Server and agent share it. One JSON object is one UDP datagram of at most [`MAX_DATAGRAM`] bytes or one
//! WebSocket text of at most [`MAX_TEXT`] bytes. A message without `code` and with a positive `t` is a [`Request`],
//! every other one a [`Response`] (S0-A1). `docs/wire/signaling.md` shows each of them.

use super::envelope::{self, BoundedString, BoundedVec, Envelope, Fields, FieldsObject, NatField};
pub use super::message::{
    ErrorCode, IceDescription, IceServer, Message, MessageType, NatType, Proof, ReflexiveAddress,
    ReportedPath, Request, RequestBody, Response, ResponseBody, Tag, Token,
};
use super::message::{NATS, PATHS, meaning, word};
use data_encoding::BASE64URL_NOPAD;
use std::net::{IpAddr, SocketAddr};

/// The longest signalling datagram in bytes (S0-A15).
pub const MAX_DATAGRAM: usize = 1200;
/// The longest WebSocket text in bytes.
pub const MAX_TEXT: usize = 65_536;
/// The shortest `secret` in bytes that a client may own a tag with: 128 bits in base64.
pub const MIN_SECRET: usize = 22;

/// The longest `key` in bytes: it may be a JWT. A datagram holds less.
pub const MAX_KEY: usize = 2048;
/// The highest `epoch`: browsers count no further.
pub const MAX_EPOCH: i64 = (1 << 53) - 1;

const SUCCESS: i64 = 200;

/// Why bytes are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// To be dropped without an answer (S0-A3): no JSON object, too long, or a response that cannot be read.
    #[error("not a message")]
    Undecodable,
    /// A JSON object that is no message; its sender gets 201 (S0-A24).
    #[error("a field is missing, too long or of a wrong type")]
    Malformed {
        /// `t`, if it could be read.
        t: Option<MessageType>,
        /// `mid`, if it could be read.
        mid: Option<i64>,
    },
    /// A request of a `t` that is not known here; its sender gets 208.
    #[error("unknown request type {}", t.number())]
    Unsupported {
        /// Its `t`.
        t: MessageType,
        /// Its `mid`.
        mid: Option<i64>,
    },
}

/// Parses one datagram or one WebSocket text.
///
/// # Errors
/// Returns why the bytes are no message; the variants state what the sender gets.
pub fn decode(bytes: &[u8]) -> Result<Message, DecodeError> {
    if bytes.len() > MAX_TEXT {
        return Err(DecodeError::Undecodable);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| DecodeError::Undecodable)?;
    let Some(mut envelope) = envelope::read(text) else {
        let head = envelope::read_head(text).ok_or(DecodeError::Undecodable)?;
        let is_response = head.answers || head.t.is_some_and(i64::is_negative);
        return Err(if is_response {
            DecodeError::Undecodable
        } else {
            DecodeError::Malformed { t: head.t.map(MessageType::from_number), mid: head.mid }
        });
    };
    // Some clients write all fields into all messages.
    envelope.code = envelope.code.filter(|code| *code != 0);
    let (t, mid) = (envelope.t, envelope.mid);
    if t < 0 || envelope.code.is_some() {
        let body = response_body(envelope).ok_or(DecodeError::Undecodable)?;
        return Ok(Message::Response(Response { mid, body }));
    }
    let t = MessageType::from_number(t);
    if !t.is_request() {
        return Err(DecodeError::Unsupported { t, mid });
    }
    let body = request_body(envelope).ok_or(DecodeError::Malformed { t: Some(t), mid })?;
    Ok(Message::Request(Request { mid, body }))
}

/// Takes the fields from `params` or `extra`, whichever is there, and tag and token from either level (S0-A5, S0-A6).
fn fields(envelope: &mut Envelope, first: fn(&mut Envelope) -> Option<FieldsObject>) -> Box<Fields> {
    let object = first(envelope).or_else(|| envelope.params.take()).or_else(|| envelope.extra.take());
    let mut fields = object.unwrap_or_default().0;
    fields.tag = fields.tag.or_else(|| envelope.tag.take());
    fields.token = envelope.token.take().or(fields.token);
    fields
}

fn request_body(mut envelope: Envelope) -> Option<RequestBody> {
    let t = MessageType::from_number(envelope.t);
    let mut f = match t {
        MessageType::Answered => fields(&mut envelope, |envelope| envelope.extra.take()),
        _ => fields(&mut envelope, |envelope| envelope.params.take()),
    };
    Some(match t {
        MessageType::Register => {
            let secret = f.secret.map(|secret| secret.0);
            if secret.as_ref().is_some_and(|secret| secret.len() < MIN_SECRET) {
                return None;
            }
            if f.epoch.is_some_and(|epoch| !(0..=MAX_EPOCH).contains(&epoch)) {
                return None;
            }
            let proof = proof(f.public, f.nonce, f.sig)?;
            if secret.is_some() && proof.is_some() {
                return None;
            }
            let laddrs = f.laddrs.map(inner_addresses).map_or(Some(None), |laddrs| laddrs.map(Some))?;
            RequestBody::Register { key: f.key.map(|key| key.0), secret, epoch: f.epoch, proof, laddrs }
        }
        MessageType::Heartbeat => RequestBody::Heartbeat { tag: f.tag? },
        MessageType::List => RequestBody::List { tag: f.tag?, after: f.after },
        MessageType::Call => RequestBody::Call { tag: f.tag.take()?, rtag: f.rtag.take()?, ice: ice(*f) },
        MessageType::Challenge => RequestBody::Challenge,
        MessageType::Notify => {
            let from = address(f.host.take(), f.port)?;
            RequestBody::Notify { token: f.token.take()?, ltag: f.ltag.take()?, from, ice: ice(*f) }
        }
        MessageType::Answered => {
            let from = address(f.rhost.take(), f.rport)?;
            RequestBody::Answered { token: f.token.take()?, from, ice: ice(*f) }
        }
        MessageType::Status => RequestBody::Status { token: f.token? },
        MessageType::Trickle => {
            let (token, done) = (f.token.take()?, f.done.unwrap_or(false));
            let IceDescription { cands, nat, .. } = ice(*f);
            RequestBody::Trickle { token, cands, done, nat }
        }
        MessageType::End => RequestBody::End { token: f.token?, reason: f.reason.map(|reason| reason.0) },
        MessageType::Watch => match (f.tags, f.online, f.offline) {
            (Some(tags), ..) => RequestBody::Watch { tags, watch: f.watch.unwrap_or(true) },
            (None, None, None) => return None,
            (None, online, offline) => RequestBody::Presence {
                online: online.unwrap_or_default(),
                offline: offline.unwrap_or_default(),
            },
        },
        MessageType::Open => RequestBody::Open,
        _ => RequestBody::Punch { token: f.token? },
    })
}

fn response_body(mut envelope: Envelope) -> Option<ResponseBody> {
    let t = MessageType::from_number(envelope.t.checked_neg()?.max(envelope.t));
    let mut f = fields(&mut envelope, |envelope| envelope.extra.take());
    if let Some(code) = envelope.code.filter(|code| *code != SUCCESS) {
        let em = envelope.em.map_or_else(String::new, |em| em.0);
        return Some(ResponseBody::Failed { t, token: f.token, code: ErrorCode::from_number(code), em });
    }
    Some(match t {
        MessageType::Register => ResponseBody::Registered {
            tag: f.tag?,
            ice_servers: f.ice_servers.map_or_else(Vec::new, |few| few.0),
            stun2: f.stun2.map(|stun2| stun2.0),
            epoch: f.epoch,
            seen: seen(f.addr, f.nat)?,
        },
        MessageType::Heartbeat => ResponseBody::Alive,
        MessageType::List => ResponseBody::Listed { tags: f.tags?, more: f.more.unwrap_or(false) },
        MessageType::Call => ResponseBody::Calling { token: f.token? },
        MessageType::Challenge => ResponseBody::Challenged { nonce: f.nonce?.0 },
        MessageType::Notify => ResponseBody::Accepted { token: f.token.take()?, ice: ice(*f) },
        MessageType::Answered => ResponseBody::Noted { token: f.token? },
        MessageType::Status => ResponseBody::Status {
            token: f.token.take()?,
            punching: f.punching.unwrap_or(true),
            path: meaning(&PATHS, f.path.as_ref()),
        },
        MessageType::Trickle => ResponseBody::Trickled { token: f.token? },
        MessageType::End => ResponseBody::Ended { token: f.token? },
        MessageType::Watch => ResponseBody::Watching {
            online: f.online.unwrap_or_default(),
            offline: f.offline.unwrap_or_default(),
        },
        MessageType::Punch | MessageType::Punched => ResponseBody::Punched { token: f.token? },
        _ => return None,
    })
}

fn ice(f: Fields) -> IceDescription {
    IceDescription {
        nat: f.nat.as_ref().and_then(NatField::word).and_then(|word| meaning(&NATS, Some(word))),
        ufrag: f.ufrag.map(|text| text.0),
        pwd: f.pwd.map(|text| text.0),
        cands: f.cands.map_or_else(Vec::new, |few| few.0.into_iter().map(|text| text.0).collect()),
        role: f.role.map(|text| text.0),
        laddrs: f.laddrs.map_or_else(Vec::new, |few| few.0.into_iter().map(|text| text.0).collect()),
        tport: f.tport.or(f.rtport),
        sdp: f.sdp.map(|text| text.0),
    }
}

/// Addresses to which packets can go; anything else among them is an error.
fn inner_addresses(texts: BoundedVec<BoundedString<64>, 16>) -> Option<Vec<SocketAddr>> {
    let sound =
        |text: BoundedString<64>| text.0.parse().ok().filter(|address: &SocketAddr| address.port() != 0);
    texts.0.into_iter().map(sound).collect()
}

/// The address and `nat` may be missing.
fn seen(addr: Option<BoundedString<64>>, nat: Option<NatField>) -> Option<Option<ReflexiveAddress>> {
    let Some(addr) = addr else { return Some(None) };
    let nat = nat.and_then(|nat| match nat {
        NatField::Behind(nat) => Some(nat),
        NatField::Word(_) => None,
    });
    Some(Some(ReflexiveAddress { addr: addr.0.parse().ok()?, nat }))
}

/// An address is whole or missing; a part of one is an error (the outer `None`).
fn address(host: Option<BoundedString<64>>, port: Option<u16>) -> Option<Option<SocketAddr>> {
    match (host, port) {
        (Some(host), Some(port)) => Some(Some(SocketAddr::new(host.0.parse::<IpAddr>().ok()?, port))),
        (None, None) => Some(None),
        _ => None,
    }
}

/// A proof is whole or missing, like an address.
fn proof(
    public: Option<BoundedString<64>>,
    nonce: Option<BoundedString<64>>,
    signature: Option<BoundedString<128>>,
) -> Option<Option<Proof>> {
    match (public, nonce, signature) {
        (Some(public), Some(nonce), Some(signature)) => {
            let public = BASE64URL_NOPAD.decode(public.0.as_bytes()).ok()?.try_into().ok()?;
            let signature = BASE64URL_NOPAD.decode(signature.0.as_bytes()).ok()?;
            Some(Some(Proof { public, nonce: nonce.0, signature }))
        }
        (None, None, None) => Some(None),
        _ => None,
    }
}

impl Message {
    /// Writes the message as strict JSON, each field where document 000 has it.
    #[must_use]
    pub fn encode(&self) -> String {
        match self {
            Self::Request(request) => request.encode(),
            Self::Response(response) => response.encode(),
        }
    }
}

impl Request {
    /// Writes the request as strict JSON.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut out = Envelope { t: self.body.message_type().number(), mid: self.mid, ..Envelope::default() };
        let object = |fields: Fields| Some(FieldsObject(Box::new(fields)));
        match self.body.clone() {
            RequestBody::Register { key, secret, epoch, proof, laddrs } => {
                let bare = key.is_none() && secret.is_none() && laddrs.is_none();
                if !bare || epoch.is_some() || proof.is_some() {
                    let text = |address: SocketAddr| BoundedString(address.to_string());
                    let laddrs = laddrs.map(|laddrs| BoundedVec(laddrs.into_iter().map(text).collect()));
                    let (key, secret) = (key.map(BoundedString), secret.map(BoundedString));
                    out.params = object(Fields { key, secret, epoch, laddrs, ..proof.into() });
                }
            }
            RequestBody::Heartbeat { tag } => out.tag = Some(tag),
            RequestBody::List { tag, after } => {
                out.params = object(Fields { tag: Some(tag), after, ..Fields::default() });
            }
            RequestBody::Call { tag, rtag, ice } => {
                out.params = object(Fields { tag: Some(tag), rtag: Some(rtag), ..ice.into() });
            }
            RequestBody::Challenge => {}
            RequestBody::Notify { token, ltag, from, ice } => {
                let (host, port) =
                    (from.map(|from| BoundedString(from.ip().to_string())), from.map(|from| from.port()));
                out.token = Some(token);
                out.params = object(Fields { ltag: Some(ltag), host, port, ..ice.into() });
            }
            RequestBody::Answered { token, from, ice } => {
                let (rhost, rport) =
                    (from.map(|from| BoundedString(from.ip().to_string())), from.map(|from| from.port()));
                let rtport = ice.tport;
                out.token = Some(token);
                out.extra = object(Fields { rhost, rport, rtport, tport: None, ..ice.into() });
            }
            RequestBody::Status { token } => out.token = Some(token),
            RequestBody::Trickle { token, cands, done, nat } => {
                out.token = Some(token);
                let ice = IceDescription { nat, ..IceDescription::default() };
                let cands = Some(BoundedVec(cands.into_iter().map(BoundedString).collect()));
                out.params = object(Fields { cands, done: done.then_some(true), ..ice.into() });
            }
            RequestBody::End { token, reason } => {
                out.token = Some(token);
                out.params = object(Fields { reason: reason.map(BoundedString), ..Fields::default() });
            }
            RequestBody::Watch { tags, watch } => {
                let watch = (!watch).then_some(false);
                out.params = object(Fields { tags: Some(tags), watch, ..Fields::default() });
            }
            RequestBody::Presence { online, offline } => {
                out.params = object(coming_and_going(online, offline))
            }
            RequestBody::Open => {}
            RequestBody::Punch { token } => {
                out.params = object(Fields { token: Some(token), ..Fields::default() });
            }
        }
        envelope::write(&out)
    }
}

impl Response {
    /// Writes the response as strict JSON; a success has a negative `t` and code 200 (S0-A1, S0-A2).
    #[must_use]
    pub fn encode(&self) -> String {
        let mut out = Envelope { mid: self.mid, code: Some(SUCCESS), ..Envelope::default() };
        let object = |fields: Fields| Some(FieldsObject(Box::new(fields)));
        let (t, token) = match self.body.clone() {
            ResponseBody::Registered { tag, ice_servers, stun2, epoch, seen } => {
                let ice_servers = (!ice_servers.is_empty()).then_some(BoundedVec(ice_servers));
                let stun2 = stun2.map(BoundedString);
                out.extra = object(Fields { tag: Some(tag), ice_servers, stun2, epoch, ..seen.into() });
                (MessageType::Register, None)
            }
            ResponseBody::Alive => (MessageType::Heartbeat, None),
            ResponseBody::Listed { tags, more } => {
                let more = more.then_some(true);
                out.extra = object(Fields { tags: Some(tags), more, ..Fields::default() });
                (MessageType::List, None)
            }
            ResponseBody::Calling { token } => {
                out.extra = object(Fields { token: Some(token), ..Fields::default() });
                (MessageType::Call, None)
            }
            ResponseBody::Challenged { nonce } => {
                out.extra = object(Fields { nonce: Some(BoundedString(nonce)), ..Fields::default() });
                (MessageType::Challenge, None)
            }
            ResponseBody::Accepted { token, ice } => {
                out.extra = (ice != IceDescription::default()).then(|| FieldsObject(Box::new(ice.into())));
                (MessageType::Notify, Some(token))
            }
            ResponseBody::Noted { token } => (MessageType::Answered, Some(token)),
            ResponseBody::Status { token, punching, path } => {
                let (punching, path) = (Some(punching), word(&PATHS, path));
                out.extra = object(Fields { punching, path, ..Fields::default() });
                (MessageType::Status, Some(token))
            }
            ResponseBody::Trickled { token } => (MessageType::Trickle, Some(token)),
            ResponseBody::Ended { token } => (MessageType::End, Some(token)),
            ResponseBody::Watching { online, offline } => {
                let some = !(online.is_empty() && offline.is_empty());
                out.extra = some.then(|| FieldsObject(Box::new(coming_and_going(online, offline))));
                (MessageType::Watch, None)
            }
            ResponseBody::Punched { token } => (MessageType::Punched, Some(token)),
            ResponseBody::Failed { t, token, code, em } => {
                out.code = Some(code.number());
                out.em = Some(BoundedString(em));
                (t, token)
            }
        };
        // A failure has the positive type of its request.
        let is_failure = matches!(self.body, ResponseBody::Failed { .. });
        (out.t, out.token) = (if is_failure { t.number() } else { -t.number() }, token);
        envelope::write(&out)
    }
}

fn coming_and_going(online: Vec<Tag>, offline: Vec<Tag>) -> Fields {
    let some = |tags: Vec<Tag>| (!tags.is_empty()).then_some(tags);
    Fields { online: some(online), offline: some(offline), ..Fields::default() }
}

impl From<Option<Proof>> for Fields {
    fn from(proof: Option<Proof>) -> Self {
        let Some(Proof { public, nonce, signature }) = proof else { return Self::default() };
        let text = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
        Self {
            public: Some(BoundedString(text(&public))),
            nonce: Some(BoundedString(nonce)),
            sig: Some(BoundedString(text(&signature))),
            ..Self::default()
        }
    }
}

impl From<Option<ReflexiveAddress>> for Fields {
    fn from(seen: Option<ReflexiveAddress>) -> Self {
        let Some(ReflexiveAddress { addr, nat }) = seen else { return Self::default() };
        Self {
            addr: Some(BoundedString(addr.to_string())),
            nat: nat.map(NatField::Behind),
            ..Self::default()
        }
    }
}

impl From<IceDescription> for Fields {
    fn from(ice: IceDescription) -> Self {
        Self {
            ufrag: ice.ufrag.map(BoundedString),
            pwd: ice.pwd.map(BoundedString),
            role: ice.role.map(BoundedString),
            nat: word(&NATS, ice.nat).map(NatField::Word),
            tport: ice.tport,
            cands: (!ice.cands.is_empty())
                .then(|| BoundedVec(ice.cands.into_iter().map(BoundedString).collect())),
            laddrs: (!ice.laddrs.is_empty())
                .then(|| BoundedVec(ice.laddrs.into_iter().map(BoundedString).collect())),
            sdp: ice.sdp.map(BoundedString),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tag(text: &str) -> Tag {
        Tag::new(text).unwrap()
    }

    fn token() -> Token {
        Token::new("tok").unwrap()
    }

    #[test]
    fn a_code_of_0_is_none() {
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
            RequestBody::Open,
            RequestBody::Punch { token: token() },
        ];
        let server = IceServer {
            urls: vec!["turn:x".into()],
            username: Some("u".into()),
            credential: Some("c".into()),
        };
        let answers = vec![
            ResponseBody::Registered {
                tag: tag("a"),
                ice_servers: vec![server],
                stun2: Some("x:3479".into()),
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
    fn every_message_survives_writing_and_reading() {
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
            let text = format!(
                r#"{{"t":52,"token":"tok","{place}":{{"rhost":"192.0.2.7","rport":23456,"rtport":7}}}}"#
            );
            let ice = IceDescription { tport: Some(7), ..IceDescription::default() };
            assert_eq!(request(&text), RequestBody::Answered { token: token(), from, ice });
            let text = format!(r#"{{"t":-51,"token":"tok","code":200,"{place}":{{"tport":7}}}}"#);
            let ice = IceDescription { tport: Some(7), ..IceDescription::default() };
            assert_eq!(response(&text), ResponseBody::Accepted { token: token(), ice });
        }
    }

    #[test]
    fn failures_are_understood_with_either_sign_and_written_with_the_requests() {
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
    fn wrong_types_are_malformed_and_rubbish_is_dropped() {
        let error = |text: &str| decode(text.as_bytes()).unwrap_err();
        let malformed =
            |t: Option<i64>, mid| DecodeError::Malformed { t: t.map(MessageType::from_number), mid };
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
        assert_eq!(
            error(r#"{"t":51,"token":"x","params":{"ltag":"a","host":"h"}}"#),
            malformed(Some(51), None)
        );
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
    fn the_largest_and_smallest_mid_come_back_exactly() {
        for mid in [i64::MAX, i64::MIN, (1 << 53) + 1] {
            let Ok(Message::Request(request)) = decode(format!(r#"{{"t":101,"mid":{mid}}}"#).as_bytes())
            else {
                panic!("no request");
            };
            assert_eq!(request.mid, Some(mid));
        }
    }

    #[test]
    fn null_counts_as_absent_and_unknown_words_too() {
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
        let page = include_str!("../../docs/wire/signaling.md");
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
            -103, -60, -55, -54, -53, -52, -51, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 51, 52, 53, 54, 55, 60,
            101, 102,
        ];
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), all);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn no_text_that_looks_like_a_message_makes_it_panic(
            text in r#"\{"t":-?[0-9]{1,3}(,"(mid|code|tag|token|params|extra)":(1|"a"|null|\{\}|\{"tag":"a"\}|\[\])){0,4}\}"#
        ) {
            if let Ok(message) = decode(text.as_bytes()) {
                prop_assert_eq!(decode(message.encode().as_bytes()), Ok(message));
            }
        }
    }
}
