//! The wire format of signalling: parsing and serialisation, without state.
//!
//! Server and agent share it. One JSON object is one UDP datagram of at most [`MAX_DATAGRAM`] bytes or one
//! WebSocket text of at most [`MAX_TEXT`] bytes. A message without `code` and with a positive `t` is a [`Request`],
//! every other one a [`Response`] (S0-A1). `docs/wire/signaling.md` shows each of them.

mod encode;
#[cfg(test)]
mod tests;

use super::envelope::{self, BoundedString, BoundedVec, Envelope, Fields, FieldsObject, NatField};
use super::ice_description::{NATS, PATHS, meaning};
pub use super::message::{
    ErrorCode, IceDescription, IceServer, Message, MessageType, NatType, Proof, ReflexiveAddress,
    ReportedPath, Request, RequestBody, Response, ResponseBody, Tag, Token,
};
use data_encoding::BASE64URL_NOPAD;
use std::net::{IpAddr, SocketAddr};

/// Maximum length of a signalling datagram in bytes (S0-A15).
pub const MAX_DATAGRAM: usize = 1200;
/// Maximum length of a WebSocket text in bytes.
pub const MAX_TEXT: usize = 65_536;
/// Minimum length of a `secret` in bytes: 128 bits in base64.
pub const MIN_SECRET: usize = 22;

/// Maximum length of a `key` in bytes: it may be a JWT. A datagram has less room.
pub const MAX_KEY: usize = 2048;
/// The maximum `epoch`, the largest exact integer of browsers.
pub const MAX_EPOCH: i64 = (1 << 53) - 1;

const SUCCESS: i64 = 200;

/// Why bytes are not a valid message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Dropped without an answer (S0-A3): not a JSON object, too long, or a response that cannot be parsed.
    #[error("not a message")]
    Undecodable,
    /// A JSON object that is not a valid message; its sender gets 201 (S0-A24).
    #[error("a field is missing, too long or of a wrong type")]
    Malformed {
        /// `t`, if it could be read.
        t: Option<MessageType>,
        /// `mid`, if it could be read.
        mid: Option<i64>,
    },
    /// A request with an unknown `t`; its sender gets 208.
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
/// Returns why the bytes are not a valid message; the variants state what the sender gets.
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

/// Reads the fields of `params` or `extra`, and tag and token from either level (S0-A5, S0-A6).
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
        MessageType::Locator => RequestBody::Locator { tag: f.tag?, release: f.release.unwrap_or(false) },
        MessageType::Locate => RequestBody::Locate { tag: f.tag?, locator: f.locator? },
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
            spray: f.spray.unwrap_or(true),
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
        MessageType::Locator => ResponseBody::Locator { locator: f.locator, ttl: f.locator.and(f.ttl) },
        MessageType::Locate => ResponseBody::Located { tag: f.tag? },
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
        opts: f.opts.map_or_else(Vec::new, |few| few.0.into_iter().map(|text| text.0).collect()),
        role: f.role.map(|text| text.0),
        laddrs: f.laddrs.map_or_else(Vec::new, |few| few.0.into_iter().map(|text| text.0).collect()),
        tport: f.tport.or(f.rtport),
        sdp: f.sdp.map(|text| text.0),
    }
}

/// Parses addresses; an invalid one is an error.
fn inner_addresses(texts: BoundedVec<BoundedString<64>, 16>) -> Option<Vec<SocketAddr>> {
    let sound =
        |text: BoundedString<64>| text.0.parse().ok().filter(|address: &SocketAddr| address.port() != 0);
    texts.0.into_iter().map(sound).collect()
}

/// Reads the address and `nat`, both optional.
fn seen(addr: Option<BoundedString<64>>, nat: Option<NatField>) -> Option<Option<ReflexiveAddress>> {
    let Some(addr) = addr else { return Some(None) };
    let nat = nat.and_then(|nat| match nat {
        NatField::Behind(nat) => Some(nat),
        NatField::Word(_) => None,
    });
    Some(Some(ReflexiveAddress { addr: addr.0.parse().ok()?, nat }))
}

/// Reads an optional address; one part without the other is an error (the outer `None`).
fn address(host: Option<BoundedString<64>>, port: Option<u16>) -> Option<Option<SocketAddr>> {
    match (host, port) {
        (Some(host), Some(port)) => Some(Some(SocketAddr::new(host.0.parse::<IpAddr>().ok()?, port))),
        (None, None) => Some(None),
        _ => None,
    }
}

/// Reads an optional proof; one part without the others is an error.
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
