//! The handlers of t=4, 54 and 55, and of the responses to 51 to 55.

use super::bus::{Destination, ForwardedCall, HubPayload};
use super::call::{Call, CallOutput, CallRole, CallSetup, Participant};
use super::call_table::{CallId, CallTable};
use super::client_addr::{ClientAddr, ClientRoute, ServerPort};
use super::config::NotifyFrom;
use super::machine::{Hub, RequestOrigin};
use super::pending_request::{CallContext, TooMany};
use super::tag_id::{LETTERS, base32};
use super::wire::{
    ErrorCode, IceDescription, MAX_TEXT, MessageType, NatType, Request, RequestBody, Response, ResponseBody,
    Tag, Token,
};
use crate::limits::{Limit, NetworkPrefix};
use rand::RngCore;
use ring::hmac;
use std::sync::Arc;
use std::time::Instant;

/// Length of a token in bytes: 160 bits.
const TOKEN_BYTES: usize = 20;

impl Hub {
    /// Handles t=4 from the caller's punching socket (S0-A9), whose IP must be that of the caller's tag. The hub of the callee's tag answers.
    pub(super) fn handle_call(
        &mut self,
        origin: RequestOrigin,
        mid: Option<i64>,
        (tag, rtag): (Tag, Tag),
        ice: IceDescription,
    ) -> Result<(), ErrorCode> {
        let caller = self.registry.by_tag(&tag).ok_or(ErrorCode::UnknownTag)?;
        if !is_same_host(caller.route.addr, origin.route.addr) {
            return Err(ErrorCode::UnknownTag);
        }
        let (name, realm) = (caller.name, caller.realm);
        let (local_addresses, proven) = (caller.local_addresses.texts(), caller.proven);
        self.registry.touch(origin.now.mono, &tag, origin.route.addr);
        if rtag == tag {
            return Err(ErrorCode::NotOnline);
        }
        let (origin, to) =
            (RequestOrigin { max_len: self.max_len(origin), ..origin }, self.nodes.of_tag(&rtag));
        let call =
            ForwardedCall { origin, mid, tag, rtag: rtag.clone(), realm, ice, local_addresses, proven };
        if to == self.nodes.own() {
            self.handle_forwarded_call(call);
        } else {
            self.registry.record_call(name, to);
            self.publish(Destination::Tag(rtag), HubPayload::Call(Box::new(call)));
        }
        Ok(())
    }

    /// Handles a call to a tag of this hub.
    pub(super) fn handle_forwarded_call(&mut self, call: ForwardedCall) {
        let (origin, mid) = (call.origin, call.mid);
        if self.answer_again(origin, MessageType::Call, mid) {
            return;
        }
        let opened = self.open_call(call);
        let id = opened.as_ref().ok().map(|(id, _)| *id);
        self.answer(origin, MessageType::Call, mid, opened.map(|(_, token)| ResponseBody::Calling { token }));
        // 51 is sent after the answer with the token.
        if let Some(id) = id {
            self.apply(id);
        }
    }

    fn open_call(&mut self, call: ForwardedCall) -> Result<(CallId, Token), ErrorCode> {
        let ForwardedCall { origin, mid, tag, rtag, realm, mut ice, local_addresses, proven } = call;
        let now = origin.now.mono;
        let callee =
            self.registry.by_tag(&rtag).filter(|callee| callee.realm == realm).ok_or(ErrorCode::NotOnline)?;
        let (callee_route, callee_proven) = (callee.route, callee.proven);
        if ice.laddrs.is_empty() {
            ice.laddrs = local_addresses;
        }
        let callee_local_addresses = if proven { callee.local_addresses.texts() } else { Vec::new() };
        if !self.pairs.try_take(&(tag.clone(), rtag.clone()), now, 1) {
            Limit::SignalingPerPair.reached(self.config.limits.per_pair.per_second());
            return Err(ErrorCode::TooMany);
        }
        if let Some(to) = callee_route.udp_addr().filter(|_| !callee_proven)
            && !self.unproven.try_take(&NetworkPrefix::site(to.ip()), now, 1)
        {
            Limit::SignalingPerUnproven.reached(self.config.limits.per_unproven.per_second());
            return Err(ErrorCode::TooMany);
        }
        let token = self.new_token(&tag, &rtag)?;
        let (caller, callee) =
            (Participant::new(tag.clone(), origin.route), Participant::new(rtag.clone(), callee_route));
        let (by, copy) = (origin.network, token.clone());
        let setup =
            CallSetup { token: copy, mid, caller, callee, ice, by, callee_proven, callee_local_addresses };
        let id = self.new_call_id();
        let (times, notices) = (&self.config.times, self.config.limits.notices_per_call);
        let mut mid = || CallTable::mid(id, self.rng.next_u32());
        let texts = &self.calls.texts;
        let call = Call::open(setup, &mut CallContext { now, times, notices, texts, mid: &mut mid });
        let call = call.map_err(|TooMany| ErrorCode::TooMany)?;
        if !self.calls.has_room(&tag, &rtag) {
            return Err(ErrorCode::TooMany);
        }
        self.calls.insert(id, call);
        Ok((id, token))
    }

    /// Handles t=54.
    pub(super) fn handle_trickle(
        &mut self,
        origin: RequestOrigin,
        token: Token,
        cands: Vec<String>,
        (done, nat): (bool, Option<NatType>),
    ) -> Result<ResponseBody, ErrorCode> {
        let (id, role) = self.call_of(origin, &token)?;
        let relayed = self.with_call(origin.now.mono, id, |call, at| {
            let max_len = call.side(role.other()).route.max_len();
            let bodies = trickles(&token, cands, (done, nat), max_len);
            call.relay(role.other(), bodies, origin.network, at)
        });
        match relayed {
            Some(Ok(())) => Ok(ResponseBody::Trickled { token }),
            Some(Err(TooMany)) => Err(ErrorCode::TooMany),
            None => Err(ErrorCode::BadToken),
        }
    }

    /// Handles t=55.
    pub(super) fn handle_end(
        &mut self,
        origin: RequestOrigin,
        token: Token,
        reason: Option<String>,
    ) -> Result<ResponseBody, ErrorCode> {
        let (id, role) = self.call_of(origin, &token)?;
        self.with_call(origin.now.mono, id, |call, at| call.end(role, reason, at));
        Ok(ResponseBody::Ended { token })
    }

    /// Returns the call of a token and the role of the sender.
    fn call_of(&self, origin: RequestOrigin, token: &Token) -> Result<(CallId, CallRole), ErrorCode> {
        let id = self.calls.by_token(token).ok_or(ErrorCode::BadToken)?;
        let call = self.calls.get(id).ok_or(ErrorCode::BadToken)?;
        let role = call.role_of(origin.route.addr).ok_or(ErrorCode::BadToken)?;
        Ok((id, role))
    }

    /// Handles a response to a request of the server; one without a known token is ignored (S0-42).
    pub(super) fn handle_response(&mut self, origin: RequestOrigin, response: &Response) {
        let (now, mid, addr) = (origin.now.mono, response.mid, origin.route.addr);
        let (t, token) = match &response.body {
            ResponseBody::Accepted { .. } => (MessageType::Notify, response.body.token()),
            ResponseBody::Noted { .. } => (MessageType::Answered, response.body.token()),
            ResponseBody::Status { .. } => (MessageType::Status, response.body.token()),
            ResponseBody::Trickled { .. } => (MessageType::Trickle, response.body.token()),
            ResponseBody::Ended { .. } => (MessageType::End, response.body.token()),
            ResponseBody::Failed { t, .. } => (*t, response.body.token()),
            _ => return,
        };
        // A refusal in the form of S0-38 has no token, but only the callee knows its `mid`.
        let is_failure = matches!(response.body, ResponseBody::Failed { .. });
        let by_mid = || mid.filter(|_| is_failure).and_then(|mid| self.calls.by_mid(mid));
        let Some(id) = token.map_or_else(by_mid, |token| self.calls.by_token(token)) else { return };
        let Some(call) = self.calls.get(id) else { return };
        let exact = mid.is_some_and(|mid| call.notified_with(mid));
        if t == MessageType::Notify && exact {
            self.registry.prove(call.callee.route.addr);
        }
        let body = response.body.clone();
        self.with_call(now, id, |call, at| match body {
            ResponseBody::Accepted { ice, .. } => call.accept(origin.route, mid, ice, at),
            ResponseBody::Failed { t: MessageType::Notify, token, code, .. } if exact || token.is_some() => {
                // 206 passes on to the caller: the callee is busy and has not refused this call.
                call.fail(if code == ErrorCode::TooMany { code } else { ErrorCode::NotAllowed });
            }
            ResponseBody::Status { punching, path, .. } => call.status(addr, mid, (punching, path), at),
            ResponseBody::Failed { t: MessageType::Status, .. } => {}
            _ => call.acknowledge(t, mid),
        });
    }

    pub(super) fn with_call<R>(
        &mut self,
        now: Instant,
        id: CallId,
        apply: impl FnOnce(&mut Call, &mut CallContext<'_>) -> R,
    ) -> Option<R> {
        let texts = Arc::clone(&self.calls.texts);
        let call = self.calls.get_mut(id)?;
        let mut mid = || CallTable::mid(id, self.rng.next_u32());
        let (times, notices) = (&self.config.times, self.config.limits.notices_per_call);
        let result = apply(call, &mut CallContext { now, times, notices, texts: &texts, mid: &mut mid });
        self.apply(id);
        Some(result)
    }

    /// Sends the messages of a call and updates its timer.
    pub(super) fn apply(&mut self, id: CallId) {
        let Some(call) = self.calls.get_mut(id) else { return };
        let effects = call.take_effects();
        self.counters.requests.add(call.take_request_counts());
        let (caller, callee) = (call.caller.route, call.callee.route);
        self.calls.update(id);
        for effect in effects {
            let (route, text, ports) = match effect {
                CallOutput::Request { to: CallRole::Caller, text, first } => {
                    (caller, text, self.ports(caller, first))
                }
                CallOutput::Request { to: CallRole::Callee, text, first } => {
                    (callee, text, self.ports(callee, first))
                }
                CallOutput::Failure { code, text } => {
                    self.counters.count_error(code);
                    (caller, text, &[ServerPort::Main][..])
                }
            };
            for port in ports {
                self.send(route, *port, &text);
            }
        }
    }

    /// Returns the ports that send a request: port 2 sends the first copy (S0-14), and port 1 too, because that passes more NATs (S0-A10).
    fn ports(&self, route: ClientRoute, first: bool) -> &'static [ServerPort] {
        match (self.config.notify_from, first) {
            _ if route.udp_addr().is_none() => &[ServerPort::Main],
            (NotifyFrom::Aux, _) => &[ServerPort::Aux],
            (NotifyFrom::Both, true) => &[ServerPort::Aux, ServerPort::Main],
            (NotifyFrom::Both, false) | (NotifyFrom::Main, _) => &[ServerPort::Main],
        }
    }

    /// Creates a token from caller, callee (S0-13) and random bytes that belongs to this hub.
    fn new_token(&mut self, caller: &Tag, callee: &Tag) -> Result<Token, ErrorCode> {
        let mut nonce = [0; TOKEN_BYTES];
        self.rng.fill_bytes(&mut nonce);
        let mut mac = hmac::Context::with_key(&self.token_key);
        for part in [caller.as_str().as_bytes(), b"\0", callee.as_str().as_bytes(), b"\0", &nonce] {
            mac.update(part);
        }
        let mac = mac.sign();
        let mut start = base32(&mac.as_ref()[..TOKEN_BYTES]);
        start.pop();
        let ends = LETTERS.iter().filter_map(|end| Token::new(format!("{start}{}", char::from(*end))));
        ends.into_iter()
            .find(|token| self.nodes.of_token(token) == self.nodes.own())
            .ok_or(ErrorCode::Internal)
    }

    fn new_call_id(&mut self) -> CallId {
        loop {
            let id = self.rng.next_u32();
            if self.nodes.of_call(id) == self.nodes.own() && self.calls.is_free(id) {
                return id;
            }
        }
    }
}

/// Returns whether both addresses are of one host: a punching socket has another port but the same IP; a WebSocket has one connection.
fn is_same_host(registered: ClientAddr, asking: ClientAddr) -> bool {
    match (registered, asking) {
        (ClientAddr::Udp(registered), ClientAddr::Udp(asking)) => registered.ip() == asking.ip(),
        (registered, asking) => registered == asking,
    }
}

/// Splits candidates into requests of at most `max_len` bytes each.
fn trickles(
    token: &Token,
    mut cands: Vec<String>,
    last: (bool, Option<NatType>),
    max_len: usize,
) -> Vec<RequestBody> {
    let ask =
        |cands: Vec<String>, (done, nat)| RequestBody::Trickle { token: token.clone(), cands, done, nat };
    let whole = ask(cands.clone(), last);
    // A text has room for the maximum number of candidates in any encoding.
    if max_len >= MAX_TEXT {
        return vec![whole];
    }
    let length = Request { mid: Some(i64::MAX), body: whole.clone() }.encode().len();
    if length <= max_len {
        return vec![whole];
    }
    let rest = cands.split_off(cands.len() / 2);
    if cands.is_empty() {
        // A candidate that is too long for a message is dropped.
        return vec![ask(Vec::new(), last)];
    }
    let mut bodies = trickles(token, cands, (false, None), max_len);
    bodies.extend(trickles(token, rest, last, max_len));
    bodies
}
