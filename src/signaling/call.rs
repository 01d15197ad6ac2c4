//! One call, from the caller's t=4 to its end.
//!
//! Pure state: what is to be sent piles up in [`Call::take_effects`] and leaves through the hub.

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

/// What the hub is to send.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CallOutput {
    /// A request of the server's own; the first copy may leave from both ports (S0-A10).
    Request { to: CallRole, text: String, first: bool },
    /// The late failure of t=4 (S0-A20).
    Failure { code: ErrorCode, text: String },
}

/// The state of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CallStage {
    /// 51 is on its way to the callee.
    Notified,
    /// The callee has answered: 52 goes to the caller, and 53 to both every few seconds.
    Checking,
    /// A side has reported the path; 53 goes on.
    Connected,
    /// Ended by a side or by time; only acknowledgements are outstanding.
    Closed,
}

/// What came of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallOutcome {
    /// The callee did not answer.
    Unanswered,
    /// It did not want to.
    Refused,
    /// It did; no side has reported a path, as plain clients do not.
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
    gone: bool,
    question: Option<i64>,
}

impl Participant {
    pub(super) fn new(tag: Tag, route: ClientRoute) -> Self {
        Self { tag, route, gone: false, question: None }
    }
}

/// A call.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) token: Token,
    pub(super) caller: Participant,
    pub(super) callee: Participant,
    /// Of the caller's t=4.
    mid: Option<i64>,
    stage: CallStage,
    pub(super) outcome: CallOutcome,
    /// When the token dies; none once the call is over.
    expires: Option<Instant>,
    next_question: Option<Instant>,
    callee_address_told: bool,
    callee_ice_told: bool,
    /// Sent with the first 52 if the callee sends none itself (S1-5).
    callee_local_addresses: Vec<String>,
    notices: Vec<PendingRequest>,
    /// Those that have ended since the last look.
    requests: RequestCounts,
    effects: Vec<CallOutput>,
}

/// What a new call is made of.
pub(super) struct CallSetup {
    pub(super) token: Token,
    pub(super) mid: Option<i64>,
    pub(super) caller: Participant,
    pub(super) callee: Participant,
    pub(super) ice: IceDescription,
    /// The network that the memory is charged to.
    pub(super) by: NetworkPrefix,
    /// The callee was shown to be at its address; if not, it gets at most two sendings, and nothing of what the caller has told before
    /// it has answered (no amplification).
    pub(super) callee_proven: bool,
    /// The inner addresses that the callee has registered with.
    pub(super) callee_local_addresses: Vec<String>,
}

impl Call {
    /// Begins a call: the callee is notified (S0-14).
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
            next_question: None,
            callee_address_told: false,
            callee_ice_told: false,
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

    /// Takes what is to be sent.
    pub(super) fn take_effects(&mut self) -> Vec<CallOutput> {
        std::mem::take(&mut self.effects)
    }

    /// When [`Call::tick`] has something to do; never again once nothing is left to do.
    pub(super) fn due(&self) -> Option<Instant> {
        let notices = self.notices.iter().filter_map(|notice| notice.due);
        notices.chain(self.next_question).chain(self.expires).min()
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

    /// Takes the callee's -51 (S0-15). Its source is the punching address (S0-16); a client on WebSocket may send a
    /// second one by UDP to supply it (S0-A23). The first must have the mid of the 51, which only the callee has:
    /// the caller has the token too and could answer in a victim's name.
    pub(super) fn accept(
        &mut self,
        route: ClientRoute,
        mid: Option<i64>,
        mut ice: IceDescription,
        at: &mut CallContext<'_>,
    ) {
        let new_address = route.udp_addr().filter(|_| !self.callee_address_told);
        let new_ice = !self.callee_ice_told && ice != IceDescription::default();
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
            self.next_question = Some(at.now + at.times.question);
        }
        if new_address.is_some() && self.callee.route.udp_addr().is_some() {
            self.callee.route = route;
        }
        self.callee_address_told |= new_address.is_some();
        self.callee_ice_told |= new_ice;
        if let Some(text) = whole {
            self.effects.push(CallOutput::Request { to: CallRole::Callee, text, first: false });
        }
        let inner = std::mem::take(&mut self.callee_local_addresses);
        if ice.laddrs.is_empty() {
            ice.laddrs = inner;
        }
        let token = self.token.clone();
        let ask = |ice| RequestBody::Answered { token: token.clone(), from: new_address, ice };
        let mid = (at.mid)();
        let text = fitting(mid, ice, self.caller.route.max_len(), &ask);
        self.notify(PendingRequest::new(MessageType::Answered, mid, CallRole::Caller, text), at);
    }

    /// Ends a call that cannot go on. A caller that still waits for the callee gets the error (S0-A20).
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

    /// Notifies a callee again that has registered on another WebSocket: the first notification may be lost.
    pub(super) fn follow(&mut self, tag: &Tag, route: ClientRoute) {
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

    /// Returns whether `mid` is that of the 51 which the callee was sent.
    pub(super) fn notified_with(&self, mid: i64) -> bool {
        self.notices.iter().any(|notice| notice.t == MessageType::Notify && notice.mid == mid)
    }

    /// Takes an answer to 52, 54 or 55, success or not. One without a mid answers all of that `t`.
    pub(super) fn acknowledge(&mut self, t: MessageType, mid: Option<i64>) {
        let before = self.notices.len();
        self.notices.retain(|notice| notice.t != t || mid.is_some_and(|mid| mid != notice.mid));
        self.requests.acknowledged += (before - self.notices.len()) as u64;
    }

    /// Takes the answer to a question: who still punches keeps the token alive, and the call ends when neither does
    /// (S0-A8).
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
        let asked = |side: &Participant| mid.is_some() && side.question == mid;
        let role = if asked(&self.caller) {
            Some(CallRole::Caller)
        } else if asked(&self.callee) {
            Some(CallRole::Callee)
        } else {
            self.role_of(addr).filter(|_| mid.is_none())
        };
        match role {
            Some(CallRole::Caller) => self.caller.gone = !punching,
            Some(CallRole::Callee) => self.callee.gone = !punching,
            None => return,
        }
        if let Some(path) = path {
            self.stage =
                if path == ReportedPath::Failed { CallStage::Checking } else { CallStage::Connected };
            self.outcome = CallOutcome::Path(path);
        }
        if punching {
            self.expires = Some(at.now + at.times.token);
        } else if self.caller.gone && self.callee.gone {
            self.finish();
        }
    }

    /// Passes requests of one side on to the other: all of them or none. `by` is charged for those that wait.
    pub(super) fn relay(
        &mut self,
        to: CallRole,
        asks: Vec<RequestBody>,
        by: NetworkPrefix,
        at: &mut CallContext<'_>,
    ) -> Result<(), TooMany> {
        if self.notices.len() + asks.len() > at.notices {
            Limit::SignalingNoticesPerCall.reached(at.notices);
            return Err(TooMany);
        }
        // A callee that has not answered may come back on another WebSocket, which then gets all of it again.
        let is_sure =
            matches!(self.side(to).route.addr, ClientAddr::WebSocket(_)) && self.stage != CallStage::Notified;
        if is_sure {
            let text = |body| Request { mid: None, body }.encode();
            self.effects.extend(asks.into_iter().map(|body| CallOutput::Request {
                to,
                text: text(body),
                first: true,
            }));
            return Ok(());
        }
        let mut notices = Vec::with_capacity(asks.len());
        for body in asks {
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

    /// Ends the call because `tag` may take no part any more.
    pub(super) fn withdraw(&mut self, tag: &Tag, at: &mut CallContext<'_>) {
        match (self.callee.tag == *tag, self.stage) {
            (true, CallStage::Notified) => self.fail(ErrorCode::NotOnline),
            (true, _) => self.end(CallRole::Callee, Some(ErrorCode::Revoked.text().to_owned()), at),
            (false, _) => self.end(CallRole::Caller, Some(ErrorCode::Revoked.text().to_owned()), at),
        }
    }

    /// Does what is due: copies, questions, giving up.
    pub(super) fn tick(&mut self, at: &mut CallContext<'_>) {
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
        if self.next_question.is_some_and(|due| due <= at.now) {
            self.next_question = Some(at.now + at.times.question);
            for to in [CallRole::Caller, CallRole::Callee] {
                let mid = (at.mid)();
                let body = RequestBody::Status { token: self.token.clone() };
                let text = Request { mid: Some(mid), body }.encode();
                self.effects.push(CallOutput::Request { to, text, first: true });
                match to {
                    CallRole::Caller => self.caller.question = Some(mid),
                    CallRole::Callee => self.callee.question = Some(mid),
                }
            }
        }
    }

    fn finish(&mut self) {
        self.stage = CallStage::Closed;
        self.next_question = None;
        self.expires = None;
    }

    /// Sends a request now, and again until it is acknowledged; on a WebSocket once is enough. With fewer copies than
    /// waits, the last one waits as long as all that are left.
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
        // On a WebSocket only a callee that has not answered may need it again.
        let is_kept = !on_web || (notice.to == CallRole::Callee && self.stage == CallStage::Notified);
        let text = if is_kept { notice.text.clone() } else { std::mem::take(&mut notice.text) };
        if !is_kept {
            notice.permit = None;
        }
        self.effects.push(CallOutput::Request { to: notice.to, text, first: true });
        self.notices.push(notice);
    }
}
