//! One punching act, from the caller's t=4 to its end: notified, live, over.
//!
//! Pure state: what is to be sent piles up in [`Call::take_effects`] and leaves through the hub.

use super::config::Times;
use super::leg::{Leg, Network, Peer};
use super::texts::{Room, Texts};
use super::wire::{Answer, Ask, Code, Ice, Path, Request, Response, Tag, Token};
use crate::limits::Limit;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The two sides of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Caller,
    Callee,
}

impl Role {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Caller => Self::Callee,
            Self::Callee => Self::Caller,
        }
    }
}

/// What the hub is to send.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// A request of the server's own; the first copy may leave from both ports (S0-A10).
    Ask { to: Role, text: String, first: bool },
    /// The late failure of t=4 (S0-A20).
    Fail { text: String },
}

/// How far a call has come. It is *requested* before there is one: the caller's hub asks the callee's for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// 51 is on its way to the callee.
    Notified,
    /// The callee has answered; the caller is told, and both are asked every few seconds.
    Checking,
    /// A side has said which path they found; both are asked on.
    Connected,
    /// Ended by a side or by time; only acknowledgements are awaited.
    Closed,
}

/// What came of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The callee did not answer.
    Unanswered,
    /// It did not want to.
    Refused,
    /// It did; nobody has said what came of it, as clients of document 000 do not.
    Answered,
    /// The last path that a side has told.
    Path(Path),
}

/// One side of a call.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) tag: Tag,
    /// Where its messages go: the punching socket once it is known (S0-A20), or the WebSocket.
    pub(super) leg: Leg,
    gone: bool,
    question: Option<i64>,
}

impl Side {
    pub(super) fn new(tag: Tag, leg: Leg) -> Self {
        Self { tag, leg, gone: false, question: None }
    }
}

/// Sendings of 51 to a callee that was never shown to be at its address; with both ports that makes three datagrams.
const UNPROVEN_COPIES: usize = 2;

/// A request of the server's that waits for its answer (S0-40).
#[derive(Debug)]
struct Notice {
    t: i64,
    mid: i64,
    to: Role,
    /// Empty where it is said only once.
    text: String,
    /// What it takes of the room for all texts.
    room: Option<Room>,
    /// The same with all that it leaves out, for a callee that has answered.
    whole: Option<String>,
    /// Most sendings, the first one counted.
    copies: usize,
    /// The waits after the sendings still to come.
    waits: std::vec::IntoIter<Duration>,
    due: Option<Instant>,
}

impl Notice {
    fn new(t: i64, mid: i64, to: Role, text: String) -> Self {
        let (room, whole, due) = (None, None, None);
        Self { t, mid, to, text, room, whole, copies: usize::MAX, waits: Vec::new().into_iter(), due }
    }
}

/// What a call needs from outside at one event.
pub(super) struct Moment<'a> {
    pub(super) now: Instant,
    pub(super) times: &'a Times,
    /// Most notices that may wait.
    pub(super) notices: usize,
    /// The room for what waits.
    pub(super) texts: &'a Arc<Texts>,
    /// Draws a fresh mid of this call.
    pub(super) mid: &'a mut dyn FnMut() -> i64,
}

/// A notice more, or its text, would be over a cap.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooMany;

/// One punching act.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) token: Token,
    pub(super) caller: Side,
    pub(super) callee: Side,
    /// Of the caller's t=4.
    mid: Option<i64>,
    stage: Stage,
    pub(super) outcome: Outcome,
    /// When the token dies; none once the call is over.
    expires: Option<Instant>,
    next_question: Option<Instant>,
    callee_address_told: bool,
    callee_ice_told: bool,
    /// Told with the first 52, where the callee tells none itself (S1-5).
    callee_inner: Vec<String>,
    notices: Vec<Notice>,
    effects: Vec<Effect>,
}

/// What a new call is made of.
pub(super) struct Opening {
    pub(super) token: Token,
    pub(super) mid: Option<i64>,
    pub(super) caller: Side,
    pub(super) callee: Side,
    pub(super) ice: Ice,
    /// Who is charged for what the caller has told.
    pub(super) by: Network,
    /// The callee was shown to be at its address; if not, it gets at most two sendings, and nothing of what the caller has told before
    /// it has answered (no amplification).
    pub(super) callee_proven: bool,
    /// The inner addresses that the callee has registered with.
    pub(super) callee_inner: Vec<String>,
}

impl Call {
    /// Begins a call: the callee is notified (S0-14).
    pub(super) fn open(opening: Opening, at: &mut Moment<'_>) -> Result<Self, TooMany> {
        let Opening { token, mid, caller, callee, ice, by, callee_proven, callee_inner } = opening;
        let mut call = Self {
            token,
            caller,
            callee,
            mid,
            stage: Stage::Notified,
            outcome: Outcome::Unanswered,
            expires: Some(at.now + at.times.token),
            next_question: None,
            callee_address_told: false,
            callee_ice_told: false,
            callee_inner,
            notices: Vec::new(),
            effects: Vec::new(),
        };
        let (token, ltag, from) = (call.token.clone(), call.caller.tag.clone(), call.caller.leg.address());
        let ask = |ice| Ask::Notify { token: token.clone(), ltag: ltag.clone(), from, ice };
        let mid = (at.mid)();
        let bare = Ice::default();
        let (copies, is_whole) =
            if callee_proven { (usize::MAX, true) } else { (UNPROVEN_COPIES, ice == bare) };
        let whole = fitting(mid, ice, call.callee.leg.room(), &ask);
        let (text, whole) = match is_whole {
            true => (whole, None),
            false => (fitting(mid, bare, call.callee.leg.room(), &ask), Some(whole)),
        };
        let len = text.len() + whole.as_ref().map_or(0, String::len);
        let room = Some(at.texts.take(by, len).ok_or(TooMany)?);
        call.notify(Notice { copies, room, whole, ..Notice::new(51, mid, Role::Callee, text) }, at);
        Ok(call)
    }

    /// Takes what is to be sent.
    pub(super) fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// When [`Call::tick`] has something to do; never again once nothing is left to do.
    pub(super) fn due(&self) -> Option<Instant> {
        let notices = self.notices.iter().filter_map(|notice| notice.due);
        notices.chain(self.next_question).chain(self.expires).min()
    }

    pub(super) fn side(&self, role: Role) -> &Side {
        match role {
            Role::Caller => &self.caller,
            Role::Callee => &self.callee,
        }
    }

    /// Says which side speaks from `peer`.
    pub(super) fn role_of(&self, peer: Peer) -> Option<Role> {
        [Role::Caller, Role::Callee].into_iter().find(|role| self.side(*role).leg.peer == peer)
    }

    /// Takes the callee's -51 (S0-15). Its source is the punching address (S0-16); a client on WebSocket may send a
    /// second one by UDP to supply it (S0-A23). The first must have the mid of the 51, which the callee alone was told:
    /// the caller has the token too and could answer in a victim's name.
    pub(super) fn accept(&mut self, leg: Leg, mid: Option<i64>, mut ice: Ice, at: &mut Moment<'_>) {
        let new_address = leg.address().filter(|_| !self.callee_address_told);
        let new_ice = !self.callee_ice_told && ice != Ice::default();
        let first = self.stage == Stage::Notified;
        if first && !mid.is_some_and(|mid| self.notified_with(mid)) {
            return;
        }
        if self.stage == Stage::Closed || !(first || new_address.is_some() || new_ice) {
            return;
        }
        let mut whole = None;
        if first {
            whole = self.notices.iter_mut().find_map(|notice| notice.whole.take());
            self.notices.retain(|notice| notice.t != 51);
            (self.stage, self.outcome) = (Stage::Checking, Outcome::Answered);
            self.next_question = Some(at.now + at.times.question);
        }
        if new_address.is_some() && self.callee.leg.address().is_some() {
            self.callee.leg = leg;
        }
        self.callee_address_told |= new_address.is_some();
        self.callee_ice_told |= new_ice;
        if let Some(text) = whole {
            self.effects.push(Effect::Ask { to: Role::Callee, text, first: false });
        }
        let inner = std::mem::take(&mut self.callee_inner);
        if ice.laddrs.is_empty() {
            ice.laddrs = inner;
        }
        let token = self.token.clone();
        let ask = |ice| Ask::Answered { token: token.clone(), from: new_address, ice };
        let mid = (at.mid)();
        let text = fitting(mid, ice, self.caller.leg.room(), &ask);
        self.notify(Notice::new(52, mid, Role::Caller, text), at);
    }

    /// Ends a call that cannot go on, and tells the caller so while it still waits for the callee (S0-A20).
    pub(super) fn fail(&mut self, code: Code) {
        if self.stage == Stage::Notified {
            let em = code.text().to_owned();
            let body = Answer::Failed { t: 4, token: Some(self.token.clone()), code, em };
            self.effects.push(Effect::Fail { text: Response { mid: self.mid, body }.encode() });
            if matches!(code, Code::NotAllowed | Code::TooMany) {
                self.outcome = Outcome::Refused;
            }
        }
        self.notices.clear();
        self.finish();
    }

    /// Has a callee that came back on another WebSocket notified there: what was said to the one before may never have arrived.
    pub(super) fn follow(&mut self, tag: &Tag, leg: Leg) {
        let on_web = [leg.peer, self.callee.leg.peer].iter().all(|peer| matches!(peer, Peer::Web(_)));
        let moved = self.callee.tag == *tag && self.callee.leg.peer != leg.peer;
        if self.stage != Stage::Notified || !on_web || !moved {
            return;
        }
        self.callee.leg = leg;
        let waiting = self.notices.iter().filter(|notice| notice.to == Role::Callee);
        let again =
            waiting.map(|notice| Effect::Ask { to: notice.to, text: notice.text.clone(), first: true });
        self.effects.extend(again);
    }

    /// Says whether `mid` is that of the 51 which the callee was sent.
    pub(super) fn notified_with(&self, mid: i64) -> bool {
        self.notices.iter().any(|notice| notice.t == 51 && notice.mid == mid)
    }

    /// Takes an answer to 52, 54 or 55, success or not. One without a mid answers all of that `t`.
    pub(super) fn acknowledge(&mut self, t: i64, mid: Option<i64>) {
        self.notices.retain(|notice| notice.t != t || mid.is_some_and(|mid| mid != notice.mid));
    }

    /// Takes the answer to a question: who still punches keeps the token alive, and the call ends when neither does
    /// (S0-A8).
    pub(super) fn status(
        &mut self,
        peer: Peer,
        mid: Option<i64>,
        (punching, path): (bool, Option<Path>),
        at: &Moment<'_>,
    ) {
        if !matches!(self.stage, Stage::Checking | Stage::Connected) {
            return;
        }
        let asked = |side: &Side| mid.is_some() && side.question == mid;
        let role = if asked(&self.caller) {
            Some(Role::Caller)
        } else if asked(&self.callee) {
            Some(Role::Callee)
        } else {
            self.role_of(peer).filter(|_| mid.is_none())
        };
        match role {
            Some(Role::Caller) => self.caller.gone = !punching,
            Some(Role::Callee) => self.callee.gone = !punching,
            None => return,
        }
        if let Some(path) = path {
            self.stage = if path == Path::Failed { Stage::Checking } else { Stage::Connected };
            self.outcome = Outcome::Path(path);
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
        to: Role,
        asks: Vec<Ask>,
        by: Network,
        at: &mut Moment<'_>,
    ) -> Result<(), TooMany> {
        if self.notices.len() + asks.len() > at.notices {
            Limit::SignalingNoticesPerCall.reached(at.notices);
            return Err(TooMany);
        }
        // A callee that has not answered may yet come back on another WebSocket, and is told all of it there again.
        let is_sure = matches!(self.side(to).leg.peer, Peer::Web(_)) && self.stage != Stage::Notified;
        if is_sure {
            let text = |body| Request { mid: None, body }.encode();
            self.effects.extend(asks.into_iter().map(|body| Effect::Ask {
                to,
                text: text(body),
                first: true,
            }));
            return Ok(());
        }
        let mut notices = Vec::with_capacity(asks.len());
        for body in asks {
            let (t, mid) = (body.t(), (at.mid)());
            let text = Request { mid: Some(mid), body }.encode();
            let room = Some(at.texts.take(by, text.len()).ok_or(TooMany)?);
            notices.push(Notice { room, ..Notice::new(t, mid, to, text) });
        }
        notices.into_iter().for_each(|notice| self.notify(notice, at));
        Ok(())
    }

    /// Ends the call for one side and tells the other.
    pub(super) fn end(&mut self, by: Role, reason: Option<String>, at: &mut Moment<'_>) {
        if self.stage == Stage::Closed {
            return;
        }
        self.notices.clear();
        self.finish();
        let (token, mid) = (self.token.clone(), (at.mid)());
        let text = Request { mid: Some(mid), body: Ask::End { token, reason } }.encode();
        self.notify(Notice::new(55, mid, by.other(), text), at);
    }

    /// Ends the call because `tag` may take no part any more.
    pub(super) fn withdraw(&mut self, tag: &Tag, at: &mut Moment<'_>) {
        match (self.callee.tag == *tag, self.stage) {
            (true, Stage::Notified) => self.fail(Code::NotOnline),
            (true, _) => self.end(Role::Callee, Some(Code::Revoked.text().to_owned()), at),
            (false, _) => self.end(Role::Caller, Some(Code::Revoked.text().to_owned()), at),
        }
    }

    /// Does what is due: copies, questions, giving up.
    pub(super) fn tick(&mut self, at: &mut Moment<'_>) {
        if self.expires.is_some_and(|expires| expires <= at.now) {
            return self.fail(Code::NoAnswer);
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
            effects.push(Effect::Ask { to: notice.to, text: notice.text.clone(), first: false });
            true
        });
        if given_up.contains(&51) {
            return self.fail(Code::NoAnswer);
        }
        if self.next_question.is_some_and(|due| due <= at.now) {
            self.next_question = Some(at.now + at.times.question);
            for to in [Role::Caller, Role::Callee] {
                let mid = (at.mid)();
                let body = Ask::Question { token: self.token.clone() };
                let text = Request { mid: Some(mid), body }.encode();
                self.effects.push(Effect::Ask { to, text, first: true });
                match to {
                    Role::Caller => self.caller.question = Some(mid),
                    Role::Callee => self.callee.question = Some(mid),
                }
            }
        }
    }

    fn finish(&mut self) {
        self.stage = Stage::Closed;
        self.next_question = None;
        self.expires = None;
    }

    /// Sends a request now, and again until it is acknowledged; on a WebSocket once is enough. With fewer copies than
    /// waits, the last one waits as long as all that are left.
    fn notify(&mut self, mut notice: Notice, at: &Moment<'_>) {
        let on_web = matches!(self.side(notice.to).leg.peer, Peer::Web(_));
        if on_web {
            notice.copies = 1;
        }
        let all = &at.times.retransmit;
        let (each, rest) = all.split_at(notice.copies.saturating_sub(1).min(all.len()));
        let last = (!rest.is_empty()).then(|| rest.iter().sum());
        notice.waits = each.iter().copied().chain(last).collect::<Vec<Duration>>().into_iter();
        notice.due = Some(at.now + notice.waits.next().unwrap_or_default());
        // On a WebSocket only a callee that has not answered may have to be told again.
        let is_kept = !on_web || (notice.to == Role::Callee && self.stage == Stage::Notified);
        let text = if is_kept { notice.text.clone() } else { std::mem::take(&mut notice.text) };
        if !is_kept {
            notice.room = None;
        }
        self.effects.push(Effect::Ask { to: notice.to, text, first: true });
        self.notices.push(notice);
    }
}

/// Writes a request that carries `ice`, leaving out of it what the leg has no room for: the SDP first, then candidates
/// from the end, then all.
fn fitting(mid: i64, mut ice: Ice, room: usize, ask: &impl Fn(Ice) -> Ask) -> String {
    loop {
        let text = Request { mid: Some(mid), body: ask(ice.clone()) }.encode();
        if text.len() <= room || ice == Ice::default() {
            return text;
        }
        if ice.sdp.take().is_none() && ice.cands.pop().is_none() {
            ice = Ice::default();
        }
    }
}
