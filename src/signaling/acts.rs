//! The hub's part in punching acts: t=4, 54 and 55, the answers to 51 to 55, and what an act has to send.

use super::bus::{Address, Invite, Said};
use super::call::{Call, Effect, Moment, Opening, Role, Side, TooMany};
use super::calls::{CallId, Calls};
use super::config::NotifyFrom;
use super::leg::{Door, Leg, Peer};
use super::machine::{Asker, Hub};
use super::name::{LETTERS, base32};
use super::rate::Verdict;
use super::wire::{Answer, Ask, Code, Ice, MAX_TEXT, Nat, Request, Response, Tag, Token};
use crate::limits::Limit;
use rand::RngCore;
use ring::hmac;
use std::sync::Arc;
use std::time::Instant;

/// Bytes of a token: 160 bits.
const TOKEN_BYTES: usize = 20;

impl Hub {
    /// t=4, from the caller's punching socket (S0-A9), whose IP must be that of the caller's tag. The hub of the callee's tag answers.
    pub(super) fn call(
        &mut self,
        asker: Asker,
        mid: Option<i64>,
        (tag, rtag): (Tag, Tag),
        ice: Ice,
    ) -> Result<(), Code> {
        let caller = self.registry.tag(&tag).ok_or(Code::UnknownTag)?;
        if !is_same_host(caller.leg.peer, asker.leg.peer) {
            return Err(Code::UnknownTag);
        }
        let (name, realm) = (caller.name, caller.realm);
        let (inner, proven) = (caller.inner.texts(), caller.proven);
        self.registry.touch(asker.now.mono, &tag, asker.leg.peer);
        if rtag == tag {
            return Err(Code::NotOnline);
        }
        let (asker, to) = (Asker { room: self.room(asker), ..asker }, self.shards.of_tag(&rtag));
        let invite = Invite { asker, mid, tag, rtag: rtag.clone(), realm, ice, inner, proven };
        if to == self.shards.own() {
            self.invite(invite);
        } else {
            self.registry.note_call(name, to);
            self.say(Address::Tag(rtag), Said::Invite(Box::new(invite)));
        }
        Ok(())
    }

    /// Takes a call for a tag of this hub.
    pub(super) fn invite(&mut self, invite: Invite) {
        let (asker, mid) = (invite.asker, invite.mid);
        if self.answer_again(asker, 4, mid) {
            return;
        }
        let opened = self.open_call(invite);
        let id = opened.as_ref().ok().map(|(id, _)| *id);
        self.answer(asker, 4, mid, opened.map(|(_, token)| Answer::Calling { token }));
        // The callee hears of a call after the caller has its token.
        if let Some(id) = id {
            self.apply(id);
        }
    }

    fn open_call(&mut self, invite: Invite) -> Result<(CallId, Token), Code> {
        let Invite { asker, mid, tag, rtag, realm, mut ice, inner, proven } = invite;
        let now = asker.now.mono;
        let callee =
            self.registry.tag(&rtag).filter(|callee| callee.realm == realm).ok_or(Code::NotOnline)?;
        let (callee_leg, callee_proven) = (callee.leg, callee.proven);
        if ice.laddrs.is_empty() {
            ice.laddrs = inner;
        }
        let callee_inner = if proven { callee.inner.texts() } else { Vec::new() };
        if self.pairs.take((tag.clone(), rtag.clone()), now) != Verdict::Pass {
            Limit::SignalingPerPair.reached(self.config.limits.per_pair.per_second as u64);
            return Err(Code::TooMany);
        }
        if let Some(to) = callee_leg.address().filter(|_| !callee_proven)
            && self.shared.take_unproven(to.ip(), now) != Verdict::Pass
        {
            Limit::SignalingPerUnproven.reached(self.config.limits.per_unproven.per_second as u64);
            return Err(Code::TooMany);
        }
        let token = self.fresh_token(&tag, &rtag)?;
        let (caller, callee) = (Side::new(tag.clone(), asker.leg), Side::new(rtag.clone(), callee_leg));
        let (by, copy) = (asker.network, token.clone());
        let opening = Opening { token: copy, mid, caller, callee, ice, by, callee_proven, callee_inner };
        let id = self.fresh_call_id();
        let (times, notices) = (&self.config.times, self.config.limits.notices_per_call);
        let mut mid = || Calls::mid(id, self.rng.next_u32());
        let texts = &self.calls.texts;
        let call = Call::open(opening, &mut Moment { now, times, notices, texts, mid: &mut mid });
        let call = call.map_err(|TooMany| Code::TooMany)?;
        if !self.calls.take_room(&tag, &rtag) {
            return Err(Code::TooMany);
        }
        self.calls.insert(id, call);
        Ok((id, token))
    }

    /// t=54.
    pub(super) fn trickle(
        &mut self,
        asker: Asker,
        token: Token,
        cands: Vec<String>,
        (done, nat): (bool, Option<Nat>),
    ) -> Result<Answer, Code> {
        let (id, role) = self.act_of(asker, &token)?;
        let relayed = self.with_call(asker.now.mono, id, |call, at| {
            let room = call.side(role.other()).leg.room();
            let asks = trickles(&token, cands, (done, nat), room);
            call.relay(role.other(), asks, asker.network, at)
        });
        match relayed {
            Some(Ok(())) => Ok(Answer::Trickled { token }),
            Some(Err(TooMany)) => Err(Code::TooMany),
            None => Err(Code::BadToken),
        }
    }

    /// t=55.
    pub(super) fn end(&mut self, asker: Asker, token: Token, reason: Option<String>) -> Result<Answer, Code> {
        let (id, role) = self.act_of(asker, &token)?;
        self.with_call(asker.now.mono, id, |call, at| call.end(role, reason, at));
        Ok(Answer::Ended { token })
    }

    /// Says which act and side the asker speaks for.
    fn act_of(&self, asker: Asker, token: &Token) -> Result<(CallId, Role), Code> {
        let id = self.calls.by_token(token).ok_or(Code::BadToken)?;
        let call = self.calls.get(id).ok_or(Code::BadToken)?;
        let role = call.role_of(asker.leg.peer).ok_or(Code::BadToken)?;
        Ok((id, role))
    }

    /// Takes an answer to a request of the server's own; one without a known token is ignored (S0-42).
    pub(super) fn handle_response(&mut self, asker: Asker, response: &Response) {
        let (now, mid, peer) = (asker.now.mono, response.mid, asker.leg.peer);
        let (t, token) = match &response.body {
            Answer::Accepted { .. } => (51, response.body.token()),
            Answer::Noted { .. } => (52, response.body.token()),
            Answer::Status { .. } => (53, response.body.token()),
            Answer::Trickled { .. } => (54, response.body.token()),
            Answer::Ended { .. } => (55, response.body.token()),
            Answer::Failed { t, .. } => (*t, response.body.token()),
            _ => return,
        };
        // A refusal has no token in the form of S0-38, but its mid is known to the asked alone.
        let is_failure = matches!(response.body, Answer::Failed { .. });
        let by_mid = || mid.filter(|_| is_failure).and_then(|mid| self.calls.by_mid(mid));
        let Some(id) = token.map_or_else(by_mid, |token| self.calls.by_token(token)) else { return };
        let Some(call) = self.calls.get(id) else { return };
        let exact = mid.is_some_and(|mid| call.notified_with(mid));
        if t == 51 && exact {
            self.registry.prove(call.callee.leg.peer);
        }
        let body = response.body.clone();
        self.with_call(now, id, |call, at| match body {
            Answer::Accepted { ice, .. } => call.accept(asker.leg, mid, ice, at),
            Answer::Failed { t: 51, token, code, .. } if exact || token.is_some() => {
                // A callee that takes no more calls is no callee that does not want this one.
                call.fail(if code == Code::TooMany { code } else { Code::NotAllowed });
            }
            Answer::Status { punching, path, .. } => call.status(peer, mid, (punching, path), at),
            Answer::Failed { t: 53, .. } => {}
            _ => call.acknowledge(t, mid),
        });
    }

    pub(super) fn with_call<R>(
        &mut self,
        now: Instant,
        id: CallId,
        act: impl FnOnce(&mut Call, &mut Moment<'_>) -> R,
    ) -> Option<R> {
        let texts = Arc::clone(&self.calls.texts);
        let call = self.calls.get_mut(id)?;
        let mut mid = || Calls::mid(id, self.rng.next_u32());
        let (times, notices) = (&self.config.times, self.config.limits.notices_per_call);
        let result = act(call, &mut Moment { now, times, notices, texts: &texts, mid: &mut mid });
        self.apply(id);
        Some(result)
    }

    /// Sends what a call has to send and sees to its timer.
    pub(super) fn apply(&mut self, id: CallId) {
        let Some(call) = self.calls.get_mut(id) else { return };
        let effects = call.take_effects();
        let (caller, callee) = (call.caller.leg, call.callee.leg);
        self.calls.settle(id);
        for effect in effects {
            let (leg, text, doors) = match effect {
                Effect::Ask { to: Role::Caller, text, first } => (caller, text, self.doors(caller, first)),
                Effect::Ask { to: Role::Callee, text, first } => (callee, text, self.doors(callee, first)),
                Effect::Fail { text } => (caller, text, &[Door::Main][..]),
            };
            for door in doors {
                self.send(leg, *door, &text);
            }
        }
    }

    /// S0-A10: port 2 sends the first copy, as document 000 has it; what passes more NATs comes from port 1.
    fn doors(&self, leg: Leg, first: bool) -> &'static [Door] {
        match (self.config.notify_from, first) {
            _ if leg.address().is_none() => &[Door::Main],
            (NotifyFrom::Aux, _) => &[Door::Aux],
            (NotifyFrom::Both, true) => &[Door::Aux, Door::Main],
            (NotifyFrom::Both, false) | (NotifyFrom::Main, _) => &[Door::Main],
        }
    }

    /// Makes a token from caller and callee (S0-13) and from chance, so that it belongs to this hub.
    fn fresh_token(&mut self, caller: &Tag, callee: &Tag) -> Result<Token, Code> {
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
        ends.into_iter().find(|token| self.shards.of_token(token) == self.shards.own()).ok_or(Code::Internal)
    }

    fn fresh_call_id(&mut self) -> CallId {
        loop {
            let id = self.rng.next_u32();
            if self.shards.is_own_call(id) && self.calls.is_free(id) {
                return id;
            }
        }
    }
}

/// A punching socket has a port of its own but the same IP; on WebSocket it is the same connection.
fn is_same_host(registered: Peer, asking: Peer) -> bool {
    match (registered, asking) {
        (Peer::Udp(registered), Peer::Udp(asking)) => registered.ip() == asking.ip(),
        (registered, asking) => registered == asking,
    }
}

/// Splits candidates over as many requests as it takes for each to fit into `room`.
fn trickles(token: &Token, mut cands: Vec<String>, last: (bool, Option<Nat>), room: usize) -> Vec<Ask> {
    let ask = |cands: Vec<String>, (done, nat)| Ask::Trickle { token: token.clone(), cands, done, nat };
    let whole = ask(cands.clone(), last);
    // As many as one message may carry, however they are written, fit into a text.
    if room >= MAX_TEXT {
        return vec![whole];
    }
    let length = Request { mid: Some(i64::MAX), body: whole.clone() }.encode().len();
    if length <= room {
        return vec![whole];
    }
    let rest = cands.split_off(cands.len() / 2);
    if cands.is_empty() {
        // One candidate that is too long by itself goes nowhere.
        return vec![ask(Vec::new(), last)];
    }
    let mut asks = trickles(token, cands, (false, None), room);
    asks.extend(trickles(token, rest, last, room));
    asks
}
