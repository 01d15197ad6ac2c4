//! One call, from the caller's t=4 to its end.
//!
//! A pure state machine. The hub sends what [`Call::take_effects`] returns.

use super::client_addr::{ClientAddr, ClientRoute};
use super::counters::RequestCounts;
use super::pending_request::{CallContext, PendingRequest, TooMany, UNPROVEN_COPIES, fitting};
use super::wire::{
    ErrorCode, IceDescription, MessageType, ReportedPath, Request, RequestBody, Response, ResponseBody, Tag,
    Token,
};
use crate::limits::{Limit, NetworkPrefix};
use std::time::{Duration, Instant};

/// The two sides of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallRole {
    Caller,
    Callee,
}

impl CallRole {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Caller => Self::Callee,
            Self::Callee => Self::Caller,
        }
    }
}

/// A message for the hub to send.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CallOutput {
    /// A request of the server; the first copy may leave from both ports (S0-A10).
    Request { to: CallRole, text: String, first: bool },
    /// The late failure of t=4 (S0-A20).
    Failure { code: ErrorCode, text: String },
}

/// The state of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CallStage {
    /// 51 was sent; the callee has not answered.
    Notified,
    /// The callee has answered: 52 goes to the caller, and 53 to both every few seconds.
    Checking,
    /// A side has reported the path; 53 continues.
    Connected,
    /// Ended by a side or by time-out; only acknowledgements are outstanding.
    Closed,
}

/// The outcome of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallOutcome {
    /// The callee did not answer.
    Unanswered,
    /// The callee has refused.
    Refused,
    /// The callee has answered. No side has reported a path; plain clients never do.
    Answered,
    /// The last path that a side has reported.
    Path(ReportedPath),
}

/// One side of a call.
#[derive(Debug)]
pub(super) struct Participant {
    pub(super) tag: Tag,
    /// Where its messages go: the punching socket once it is known (S0-A20), or the WebSocket.
    pub(super) route: ClientRoute,
    has_stopped: bool,
    status_mid: Option<i64>,
}

impl Participant {
    pub(super) fn new(tag: Tag, route: ClientRoute) -> Self {
        Self { tag, route, has_stopped: false, status_mid: None }
    }
}

/// A call.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) token: Token,
    pub(super) caller: Participant,
    pub(super) callee: Participant,
    /// The `mid` of the caller's t=4.
    mid: Option<i64>,
    stage: CallStage,
    pub(super) outcome: CallOutcome,
    /// When the token expires; `None` once the call has ended.
    expires: Option<Instant>,
    next_status: Option<Instant>,
    callee_address_sent: bool,
    callee_ice_sent: bool,
    /// Sent with the first 52 if the callee sends none itself (S1-5).
    callee_local_addresses: Vec<String>,
    notices: Vec<PendingRequest>,
    /// Counts of the requests that have ended since the last [`Call::take_request_counts`].
    requests: RequestCounts,
    effects: Vec<CallOutput>,
}

/// The arguments of [`Call::open`].
pub(super) struct CallSetup {
    pub(super) token: Token,
    pub(super) mid: Option<i64>,
    pub(super) caller: Participant,
    pub(super) callee: Participant,
    pub(super) ice: IceDescription,
    /// The network that is charged for the memory.
    pub(super) by: NetworkPrefix,
    /// Whether the callee's address is proven. If not, 51 is sent at most twice and without the caller's description until the callee answers,
    /// against amplification.
    pub(super) callee_proven: bool,
    /// The local addresses that the callee has registered.
    pub(super) callee_local_addresses: Vec<String>,
}

impl Call {
    /// Opens a call and notifies the callee (S0-14).
    pub(super) fn open(setup: CallSetup, at: &mut CallContext<'_>) -> Result<Self, TooMany> {
        let CallSetup { token, mid, caller, callee, ice, by, callee_proven, callee_local_addresses } = setup;
        let mut call = Self {
            token,
            caller,
            callee,
            mid,
            stage: CallStage::Notified,
            outcome: CallOutcome::Unanswered,
            expires: Some(at.now + at.times.token),
            next_status: None,
            callee_address_sent: false,
            callee_ice_sent: false,
            callee_local_addresses,
            notices: Vec::new(),
            requests: RequestCounts::default(),
            effects: Vec::new(),
        };
        let (token, ltag, from) = (call.token.clone(), call.caller.tag.clone(), call.caller.route.udp_addr());
        let ask = |ice| RequestBody::Notify { token: token.clone(), ltag: ltag.clone(), from, ice };
        let mid = (at.mid)();
        let bare = IceDescription::default();
        let (copies, is_whole) =
            if callee_proven { (usize::MAX, true) } else { (UNPROVEN_COPIES, ice == bare) };
        let whole = fitting(mid, ice, call.callee.route.max_len(), &ask);
        let (text, whole) = match is_whole {
            true => (whole, None),
            false => (fitting(mid, bare, call.callee.route.max_len(), &ask), Some(whole)),
        };
        let len = text.len() + whole.as_ref().map_or(0, String::len);
        let permit = Some(at.take_bytes(by, len)?);
        call.notify(
            PendingRequest {
                copies,
                permit,
                whole,
                ..PendingRequest::new(MessageType::Notify, mid, CallRole::Callee, text)
            },
            at,
        );
        Ok(call)
    }

    /// Takes the counts of requests that have ended.
    pub(super) fn take_request_counts(&mut self) -> RequestCounts {
        std::mem::take(&mut self.requests)
    }

    /// Takes the messages to send.
    pub(super) fn take_effects(&mut self) -> Vec<CallOutput> {
        std::mem::take(&mut self.effects)
    }

    /// Returns when [`Call::handle_timeout`] is due; `None` once the call is finished.
    pub(super) fn due(&self) -> Option<Instant> {
        let notices = self.notices.iter().filter_map(|notice| notice.due);
        notices.chain(self.next_status).chain(self.expires).min()
    }

    pub(super) fn side(&self, role: CallRole) -> &Participant {
        match role {
            CallRole::Caller => &self.caller,
            CallRole::Callee => &self.callee,
        }
    }

    /// Returns the side that has this address.
    pub(super) fn role_of(&self, addr: ClientAddr) -> Option<CallRole> {
        [CallRole::Caller, CallRole::Callee].into_iter().find(|role| self.side(*role).route.addr == addr)
    }

    /// Handles the callee's -51 (S0-15). Its source is the punching address (S0-16); a client on WebSocket may send a second -51 by UDP to supply
    /// it (S0-A23). The first -51 must have the `mid` of the 51, which only the callee knows: the caller knows the token too and could answer for
    /// the callee.
    pub(super) fn accept(
        &mut self,
        route: ClientRoute,
        mid: Option<i64>,
        mut ice: IceDescription,
        at: &mut CallContext<'_>,
    ) {
        let new_address = route.udp_addr().filter(|_| !self.callee_address_sent);
        let new_ice = !self.callee_ice_sent && ice != IceDescription::default();
        let first = self.stage == CallStage::Notified;
        if first && !mid.is_some_and(|mid| self.notified_with(mid)) {
            return;
        }
        if self.stage == CallStage::Closed || !(first || new_address.is_some() || new_ice) {
            return;
        }
        let mut whole = None;
        if first {
            whole = self.notices.iter_mut().find_map(|notice| notice.whole.take());
            self.acknowledge(MessageType::Notify, None);
            (self.stage, self.outcome) = (CallStage::Checking, CallOutcome::Answered);
            self.next_status = Some(at.now + at.times.question);
        }
        if new_address.is_some() && self.callee.route.udp_addr().is_some() {
            self.callee.route = route;
        }
        self.callee_address_sent |= new_address.is_some();
        self.callee_ice_sent |= new_ice;
        if let Some(text) = whole {
            self.effects.push(CallOutput::Request { to: CallRole::Callee, text, first: false });
        }
        let local_addresses = std::mem::take(&mut self.callee_local_addresses);
        if ice.laddrs.is_empty() {
            ice.laddrs = local_addresses;
        }
        let token = self.token.clone();
        let ask = |ice| RequestBody::Answered { token: token.clone(), from: new_address, ice };
        let mid = (at.mid)();
        let text = fitting(mid, ice, self.caller.route.max_len(), &ask);
        self.notify(PendingRequest::new(MessageType::Answered, mid, CallRole::Caller, text), at);
    }

    /// Ends a call with an error. A caller that still waits for the callee gets the error (S0-A20).
    pub(super) fn fail(&mut self, code: ErrorCode) {
        if self.stage == CallStage::Notified {
            let em = code.text().to_owned();
            let body =
                ResponseBody::Failed { t: MessageType::Call, token: Some(self.token.clone()), code, em };
            self.effects.push(CallOutput::Failure { code, text: Response { mid: self.mid, body }.encode() });
            if matches!(code, ErrorCode::NotAllowed | ErrorCode::TooMany) {
                self.outcome = CallOutcome::Refused;
                self.requests.acknowledged += 1;
            }
        }
        if code == ErrorCode::NoAnswer {
            self.requests.unanswered += self.notices.len() as u64;
        }
        self.notices.clear();
        self.finish();
    }

    /// Notifies the callee again if it has registered on another WebSocket, because the first notification may be lost.
    pub(super) fn notify_again(&mut self, tag: &Tag, route: ClientRoute) {
        let on_web =
            [route.addr, self.callee.route.addr].iter().all(|addr| matches!(addr, ClientAddr::WebSocket(_)));
        let moved = self.callee.tag == *tag && self.callee.route.addr != route.addr;
        if self.stage != CallStage::Notified || !on_web || !moved {
            return;
        }
        self.callee.route = route;
        let waiting = self.notices.iter().filter(|notice| notice.to == CallRole::Callee);
        let again = waiting.map(|notice| CallOutput::Request {
            to: notice.to,
            text: notice.text.clone(),
            first: true,
        });
        self.effects.extend(again);
    }

    /// Returns whether `mid` is that of an unanswered 51.
    pub(super) fn notified_with(&self, mid: i64) -> bool {
        self.notices.iter().any(|notice| notice.t == MessageType::Notify && notice.mid == mid)
    }

    /// Handles a response to 52, 54 or 55, success or failure. A response without `mid` answers all requests of that type.
    pub(super) fn acknowledge(&mut self, t: MessageType, mid: Option<i64>) {
        let before = self.notices.len();
        self.notices.retain(|notice| notice.t != t || mid.is_some_and(|mid| mid != notice.mid));
        self.requests.acknowledged += (before - self.notices.len()) as u64;
    }

    /// Handles a -53. A side that still punches extends the token; the call ends when neither side does (S0-A8).
    pub(super) fn status(
        &mut self,
        addr: ClientAddr,
        mid: Option<i64>,
        (punching, path): (bool, Option<ReportedPath>),
        at: &CallContext<'_>,
    ) {
        if !matches!(self.stage, CallStage::Checking | CallStage::Connected) {
            return;
        }
        let is_answered_by = |side: &Participant| mid.is_some() && side.status_mid == mid;
        let role = if is_answered_by(&self.caller) {
            Some(CallRole::Caller)
        } else if is_answered_by(&self.callee) {
            Some(CallRole::Callee)
        } else {
            self.role_of(addr).filter(|_| mid.is_none())
        };
        match role {
            Some(CallRole::Caller) => self.caller.has_stopped = !punching,
            Some(CallRole::Callee) => self.callee.has_stopped = !punching,
            None => return,
        }
        if let Some(path) = path {
            self.stage =
                if path == ReportedPath::Failed { CallStage::Checking } else { CallStage::Connected };
            self.outcome = CallOutcome::Path(path);
        }
        if punching {
            self.expires = Some(at.now + at.times.token);
        } else if self.caller.has_stopped && self.callee.has_stopped {
            self.finish();
        }
    }

    /// Forwards requests of one side to the other, all or none. `by` is charged for the memory.
    pub(super) fn relay(
        &mut self,
        to: CallRole,
        bodies: Vec<RequestBody>,
        by: NetworkPrefix,
        at: &mut CallContext<'_>,
    ) -> Result<(), TooMany> {
        if self.notices.len() + bodies.len() > at.notices {
            Limit::SignalingNoticesPerCall.reached(at.notices);
            return Err(TooMany);
        }
        // A callee that has not answered may reconnect on another WebSocket, which then gets all of them again.
        let is_sure =
            matches!(self.side(to).route.addr, ClientAddr::WebSocket(_)) && self.stage != CallStage::Notified;
        if is_sure {
            let text = |body| Request { mid: None, body }.encode();
            self.effects.extend(bodies.into_iter().map(|body| CallOutput::Request {
                to,
                text: text(body),
                first: true,
            }));
            return Ok(());
        }
        let mut notices = Vec::with_capacity(bodies.len());
        for body in bodies {
            let (t, mid) = (body.message_type(), (at.mid)());
            let text = Request { mid: Some(mid), body }.encode();
            let permit = Some(at.take_bytes(by, text.len())?);
            notices.push(PendingRequest { permit, ..PendingRequest::new(t, mid, to, text) });
        }
        notices.into_iter().for_each(|notice| self.notify(notice, at));
        Ok(())
    }

    /// Ends the call for one side and sends 55 to the other.
    pub(super) fn end(&mut self, by: CallRole, reason: Option<String>, at: &mut CallContext<'_>) {
        if self.stage == CallStage::Closed {
            return;
        }
        self.notices.clear();
        self.finish();
        let (token, mid) = (self.token.clone(), (at.mid)());
        let text = Request { mid: Some(mid), body: RequestBody::End { token, reason } }.encode();
        self.notify(PendingRequest::new(MessageType::End, mid, by.other(), text), at);
    }

    /// Ends the call because `tag` is revoked.
    pub(super) fn revoke(&mut self, tag: &Tag, at: &mut CallContext<'_>) {
        match (self.callee.tag == *tag, self.stage) {
            (true, CallStage::Notified) => self.fail(ErrorCode::NotOnline),
            (true, _) => self.end(CallRole::Callee, Some(ErrorCode::Revoked.text().to_owned()), at),
            (false, _) => self.end(CallRole::Caller, Some(ErrorCode::Revoked.text().to_owned()), at),
        }
    }

    /// Handles due timers: retransmissions, 53 and time-outs.
    pub(super) fn handle_timeout(&mut self, at: &mut CallContext<'_>) {
        if self.expires.is_some_and(|expires| expires <= at.now) {
            return self.fail(ErrorCode::NoAnswer);
        }
        let mut given_up = Vec::new();
        let effects = &mut self.effects;
        self.notices.retain_mut(|notice| {
            if notice.due.is_some_and(|due| due > at.now) {
                return true;
            }
            let Some(wait) = notice.waits.next() else {
                given_up.push(notice.t);
                return false;
            };
            notice.due = Some(at.now + wait);
            effects.push(CallOutput::Request { to: notice.to, text: notice.text.clone(), first: false });
            true
        });
        self.requests.unanswered += given_up.len() as u64;
        if given_up.contains(&MessageType::Notify) {
            return self.fail(ErrorCode::NoAnswer);
        }
        if self.next_status.is_some_and(|due| due <= at.now) {
            self.next_status = Some(at.now + at.times.question);
            for to in [CallRole::Caller, CallRole::Callee] {
                let mid = (at.mid)();
                let body = RequestBody::Status { token: self.token.clone() };
                let text = Request { mid: Some(mid), body }.encode();
                self.effects.push(CallOutput::Request { to, text, first: true });
                match to {
                    CallRole::Caller => self.caller.status_mid = Some(mid),
                    CallRole::Callee => self.callee.status_mid = Some(mid),
                }
            }
        }
    }

    fn finish(&mut self) {
        self.stage = CallStage::Closed;
        self.next_status = None;
        self.expires = None;
    }

    /// Sends a request and schedules its retransmissions; on a WebSocket it is sent once. If `copies` is below the number of waits, the last copy
    /// waits for the sum of the remaining ones.
    fn notify(&mut self, mut notice: PendingRequest, at: &CallContext<'_>) {
        let on_web = matches!(self.side(notice.to).route.addr, ClientAddr::WebSocket(_));
        if on_web {
            notice.copies = 1;
        }
        let all = &at.times.retransmit;
        let (each, rest) = all.split_at(notice.copies.saturating_sub(1).min(all.len()));
        let last = (!rest.is_empty()).then(|| rest.iter().sum());
        notice.waits = each.iter().copied().chain(last).collect::<Vec<Duration>>().into_iter();
        notice.due = Some(at.now + notice.waits.next().unwrap_or_default());
        // On a WebSocket, only a callee that has not answered may need the text again.
        let is_kept = !on_web || (notice.to == CallRole::Callee && self.stage == CallStage::Notified);
        let text = if is_kept { notice.text.clone() } else { std::mem::take(&mut notice.text) };
        if !is_kept {
            notice.permit = None;
        }
        self.effects.push(CallOutput::Request { to: notice.to, text, first: true });
        self.notices.push(notice);
    }
}
