//! Serialises messages as strict JSON.

use super::SUCCESS;
use crate::signaling::envelope::{self, BoundedString, BoundedVec, Envelope, Fields, FieldsObject, NatField};
use crate::signaling::ice_description::{IceDescription, NATS, PATHS, ReflexiveAddress, word};
use crate::signaling::message::{
    Message, MessageType, Proof, Request, RequestBody, Response, ResponseBody, Tag,
};
use data_encoding::BASE64URL_NOPAD;
use std::net::SocketAddr;

impl Message {
    /// Serialises the message as strict JSON, with the field order of `docs/wire/signaling.md`.
    #[must_use]
    pub fn encode(&self) -> String {
        match self {
            Self::Request(request) => request.encode(),
            Self::Response(response) => response.encode(),
        }
    }
}

impl Request {
    /// Serialises the request as strict JSON.
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
            RequestBody::Locator { tag, release } => {
                out.tag = Some(tag);
                out.params = release
                    .then(|| FieldsObject(Box::new(Fields { release: Some(true), ..Fields::default() })));
            }
            RequestBody::Locate { tag, locator } => {
                out.tag = Some(tag);
                out.params = object(Fields { locator: Some(locator), ..Fields::default() });
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
    /// Serialises the response as strict JSON; a success has a negative `t` and code 200 (S0-A1, S0-A2).
    #[must_use]
    pub fn encode(&self) -> String {
        let mut out = Envelope { mid: self.mid, code: Some(SUCCESS), ..Envelope::default() };
        let object = |fields: Fields| Some(FieldsObject(Box::new(fields)));
        let (t, token) = match self.body.clone() {
            ResponseBody::Registered { tag, ice_servers, stun2, spray, epoch, seen } => {
                let ice_servers = (!ice_servers.is_empty()).then_some(BoundedVec(ice_servers));
                let stun2 = stun2.map(BoundedString);
                let spray = (!spray).then_some(false);
                out.extra =
                    object(Fields { tag: Some(tag), ice_servers, stun2, spray, epoch, ..seen.into() });
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
            ResponseBody::Locator { locator, ttl } => {
                out.extra =
                    locator.map(|_| FieldsObject(Box::new(Fields { locator, ttl, ..Fields::default() })));
                (MessageType::Locator, None)
            }
            ResponseBody::Located { tag } => {
                out.extra = object(Fields { tag: Some(tag), ..Fields::default() });
                (MessageType::Locate, None)
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
            opts: (!ice.opts.is_empty())
                .then(|| BoundedVec(ice.opts.into_iter().map(BoundedString).collect())),
            laddrs: (!ice.laddrs.is_empty())
                .then(|| BoundedVec(ice.laddrs.into_iter().map(BoundedString).collect())),
            sdp: ice.sdp.map(BoundedString),
            ..Self::default()
        }
    }
}
