//! The protocol of the load's clients: they register, send heartbeats, and call each other. Pure.
//!
//! A call is identified by the `ufrag` that both sides pass on, so that the order of answers does not matter. Every request is answered each time it
//! arrives, because the last answer may have been lost.

use crate::load::histogram::Histogram;
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

const SUCCESS: i64 = 200;
const UNKNOWN_TAG: i64 = 202;
const TOO_MANY: i64 = 206;
/// The time after which an unanswered registration is retransmitted with the same `mid`.
const RETRY: Duration = Duration::from_millis(500);
/// The time after which a call is forgotten.
const CALL_LIFETIME: Duration = Duration::from_secs(10);
/// The ICE description of every side, besides `ufrag`.
const ICE: &str =
    r#""pwd":"asd88fgpdd777uzjYhagZg","cands":["candidate:1 1 udp 2130706431 10.0.1.17 8998 typ host"]"#;
/// The prefix of `ufrag`; the number of the call follows.
const UFRAG_PREFIX: &str = "load";
/// The distance between consecutive callers. It is prime, so that all clients call, and consecutive callers are not adjacent in the server's memory.
const STRIDE: u64 = 65_537;

/// Counts of calls.
#[derive(Debug, Default)]
pub(super) struct CallCounts {
    /// Started.
    pub(super) begun: u64,
    /// Answered (t=52).
    pub(super) answered: u64,
    /// From t=4 to t=52.
    pub(super) latency: Histogram,
    /// Messages that arrived at the wrong client.
    pub(super) misdelivered: u64,
}

/// Clients and their calls.
#[derive(Debug)]
pub(super) struct SignalingClients {
    /// The parameters of a registration.
    params: String,
    tags: Vec<Option<Box<str>>>,
    online: usize,
    /// Registrations in flight, by send time.
    requests: VecDeque<(Instant, usize)>,
    waiting: usize,
    calls: VecDeque<LoadCall>,
    /// The number of the first of `calls`.
    first: u64,
    measures: bool,
    pub(super) measured: CallCounts,
    /// Refusals, by code.
    pub(super) refused: BTreeMap<i64, u64>,
    /// Tags that the server no longer had.
    pub(super) lost_tags: u64,
    /// The start times of calls that have ended, for the pacer.
    ended: Vec<Instant>,
    next_heartbeat: usize,
    outputs: VecDeque<(usize, String)>,
}

#[derive(Debug)]
struct LoadCall {
    caller: usize,
    callee: usize,
    begun: Instant,
    is_over: bool,
    is_measured: bool,
}

/// The fields of a message that a client reads.
#[derive(Deserialize)]
struct IncomingMessage<'a> {
    t: i64,
    mid: Option<i64>,
    code: Option<i64>,
    #[serde(borrow)]
    token: Option<Cow<'a, str>>,
    #[serde(borrow)]
    params: Option<MessageFields<'a>>,
    #[serde(borrow)]
    extra: Option<MessageFields<'a>>,
}

#[derive(Deserialize)]
struct MessageFields<'a> {
    #[serde(borrow)]
    tag: Option<Cow<'a, str>>,
    #[serde(borrow)]
    token: Option<Cow<'a, str>>,
    #[serde(borrow)]
    ufrag: Option<Cow<'a, str>>,
}

impl SignalingClients {
    pub(super) fn new(clients: usize, key: Option<&str>) -> Self {
        let params = serde_json::json!({ "key": key });
        let params = key.map_or_else(String::new, |_| format!(r#","params":{params}"#));
        Self {
            params,
            tags: vec![None; clients],
            online: 0,
            requests: VecDeque::new(),
            waiting: 0,
            calls: VecDeque::new(),
            first: 0,
            measures: false,
            measured: CallCounts::default(),
            refused: BTreeMap::new(),
            lost_tags: 0,
            ended: Vec::new(),
            next_heartbeat: 0,
            outputs: VecDeque::new(),
        }
    }

    pub(super) fn online(&self) -> usize {
        self.online
    }

    /// Returns how many registrations are in flight.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Returns whether the server has refused permanently.
    pub(super) fn is_refused(&self) -> bool {
        self.refused.keys().any(|code| ![UNKNOWN_TAG, TOO_MANY].contains(code))
    }

    /// Sets whether new calls are measured.
    pub(super) fn measure(&mut self, on: bool) {
        self.measures = on;
    }

    /// Returns the next message to send and its client.
    pub(super) fn poll_output(&mut self) -> Option<(usize, String)> {
        self.outputs.pop_front()
    }

    /// Returns the start time of a call that has ended.
    pub(super) fn poll_ended(&mut self) -> Option<Instant> {
        self.ended.pop()
    }

    pub(super) fn register(&mut self, now: Instant, client: usize) {
        self.waiting += 1;
        self.request_tag(now, client);
    }

    fn request_tag(&mut self, now: Instant, client: usize) {
        self.requests.push_back((now, client));
        // With the same `mid`, a client that has lost its tag would be given the old one again.
        let mid = 1 + self.lost_tags;
        self.outputs.push_back((client, format!(r#"{{"t":1,"mid":{mid}{}}}"#, self.params)));
    }

    /// Retransmits unanswered registrations.
    pub(super) fn retry_requests(&mut self, now: Instant) {
        while let Some((at, client)) = self.requests.front().copied() {
            let has_tag = self.tags[client].is_some();
            if !has_tag && now.saturating_duration_since(at) < RETRY {
                return;
            }
            self.requests.pop_front();
            if !has_tag {
                self.request_tag(now, client);
            }
        }
    }

    /// Sends heartbeats of the next `count` clients in turn.
    pub(super) fn heartbeats(&mut self, count: usize) {
        for _ in 0..count.min(self.tags.len()) {
            self.heartbeat(self.next_heartbeat);
            self.next_heartbeat = (self.next_heartbeat + 1) % self.tags.len();
        }
    }

    fn heartbeat(&mut self, client: usize) {
        if let Some(tag) = &self.tags[client] {
            self.outputs.push_back((client, format!(r#"{{"t":2,"tag":"{tag}"}}"#)));
        }
    }

    /// Starts the next call. Every pair of clients has its turn before one repeats.
    pub(super) fn call(&mut self, now: Instant) {
        let number = self.first + self.calls.len() as u64;
        let clients = self.tags.len() as u64;
        let caller = number.wrapping_mul(STRIDE) % clients;
        let callee = (caller + 1 + (number / clients) % (clients - 1).max(1)) % clients;
        let (caller, callee) = (caller as usize, callee as usize);
        let is_measured = self.measures;
        self.measured.begun += u64::from(is_measured);
        let tag = |client: usize| self.tags[client].as_deref().unwrap_or("none");
        let text = format!(
            r#"{{"t":4,"mid":{number},"params":{{"tag":"{}","rtag":"{}","ufrag":"{UFRAG_PREFIX}{number}",{ICE}}}}}"#,
            tag(caller),
            tag(callee)
        );
        self.outputs.push_back((caller, text));
        self.calls.push_back(LoadCall { caller, callee, begun: now, is_over: false, is_measured });
        while self.calls.front().is_some_and(|call| now.saturating_duration_since(call.begun) > CALL_LIFETIME)
        {
            self.calls.pop_front();
            self.first += 1;
        }
    }

    fn find(&mut self, number: u64) -> Option<&mut LoadCall> {
        self.calls.get_mut(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    /// Handles a message for `client`.
    pub(super) fn handle(&mut self, now: Instant, client: usize, text: &[u8]) {
        let Ok(received) = serde_json::from_slice::<IncomingMessage<'_>>(text) else { return };
        let code = received.code.unwrap_or(SUCCESS);
        match (received.t, code) {
            (-1, SUCCESS) => self.registered(client, received.extra.and_then(|extra| extra.tag)),
            (51..=55, SUCCESS) => self.handle_request(now, client, &received),
            (t, code) if code != SUCCESS => self.failed(now, client, (t, received.mid, code)),
            _ => {}
        }
    }

    fn registered(&mut self, client: usize, tag: Option<Cow<'_, str>>) {
        let Some(tag) = tag else { return };
        if self.tags[client].replace(tag.into()).is_none() {
            self.online += 1;
            self.waiting = self.waiting.saturating_sub(1);
            // The first heartbeat confirms the address, and keeps the tag.
            self.heartbeat(client);
        }
    }

    fn failed(&mut self, now: Instant, client: usize, (t, mid, code): (i64, Option<i64>, i64)) {
        *self.refused.entry(code).or_default() += 1;
        match (t.abs(), code) {
            (2, UNKNOWN_TAG) if self.tags[client].take().is_some() => {
                self.online -= 1;
                self.lost_tags += 1;
                self.register(now, client);
            }
            (4, _) => {
                let number = mid.and_then(|mid| u64::try_from(mid).ok());
                if let Some(call) = number.and_then(|number| self.find(number)) {
                    call.is_over = true;
                    let begun = call.begun;
                    self.ended.push(begun);
                }
            }
            _ => {}
        }
    }

    /// Answers a request of the server, and advances its call.
    fn handle_request(&mut self, now: Instant, client: usize, received: &IncomingMessage<'_>) {
        let inner = received.params.as_ref().or(received.extra.as_ref());
        let token = received.token.as_deref().or(inner.and_then(|inner| inner.token.as_deref()));
        let (Some(token), Some(mid), t) = (token, received.mid, received.t) else { return };
        let ufrag = inner.and_then(|inner| inner.ufrag.as_deref());
        let number = ufrag.and_then(|ufrag| ufrag.strip_prefix(UFRAG_PREFIX)?.parse::<u64>().ok());
        let extra = match (t, number) {
            (51, Some(number)) if self.is_at(number, client, |call| call.callee) => {
                format!(r#","extra":{{"ufrag":"{UFRAG_PREFIX}{number}",{ICE}}}"#)
            }
            (52, Some(number)) if self.is_at(number, client, |call| call.caller) => {
                let text = format!(r#"{{"t":-52,"mid":{mid},"token":"{token}","code":200}}"#);
                self.outputs.push_back((client, text));
                if self.answered(now, number) {
                    let text = format!(r#"{{"t":55,"mid":{number},"token":"{token}"}}"#);
                    self.outputs.push_back((client, text));
                }
                return;
            }
            (51 | 52, _) => {
                self.measured.misdelivered += 1;
                return;
            }
            (53, _) => r#","extra":{"punching":false}"#.to_owned(),
            _ => String::new(),
        };
        let text = format!(r#"{{"t":-{t},"mid":{mid},"token":"{token}","code":200{extra}}}"#);
        self.outputs.push_back((client, text));
    }

    /// Returns whether a message about call `number` is for `client`; `true` for a call that was forgotten.
    fn is_at(&mut self, number: u64, client: usize, end: impl Fn(&LoadCall) -> usize) -> bool {
        number < self.first || self.find(number).is_some_and(|call| end(call) == client)
    }

    /// Handles t=52; returns whether it is the first one of its call.
    fn answered(&mut self, now: Instant, number: u64) -> bool {
        let Some(call) = self.find(number).filter(|call| !call.is_over) else { return false };
        call.is_over = true;
        let (begun, is_measured) = (call.begun, call.is_measured);
        self.ended.push(begun);
        if is_measured {
            let took = now.saturating_duration_since(begun).as_nanos();
            self.measured.answered += 1;
            self.measured.latency.record(u64::try_from(took).unwrap_or(u64::MAX));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::time;
    use crate::signaling::{Config, ConnId, Hub, Limits, Output};

    /// Passes messages between the hub and the clients until there are none.
    fn exchange(hub: &mut Hub, clients: &mut SignalingClients, mut drop: impl FnMut(&str) -> bool) {
        while let Some((client, text)) = clients.poll_output() {
            hub.handle_websocket_text(time::now(), ConnId(client as u64), &text);
            while let Some(output) = hub.poll_output() {
                if let Output::Text { conn, text } = output
                    && !drop(&text)
                {
                    clients.handle(time::mono(), conn.0 as usize, text.as_bytes());
                }
            }
        }
    }

    fn hub(clients: usize, limits: Limits) -> Hub {
        let mut hub = Hub::new(Config { limits, ..Config::default() }, [3; 32]);
        (0..clients).for_each(|client| {
            hub.handle_websocket_opened(time::now(), ConnId(client as u64), [127, 0, 0, 1].into())
        });
        hub
    }

    fn registered(count: usize) -> (Hub, SignalingClients) {
        let (mut hub, mut clients) = (hub(count, Limits::default()), SignalingClients::new(count, None));
        (0..count).for_each(|client| clients.register(time::mono(), client));
        exchange(&mut hub, &mut clients, |_| false);
        assert_eq!((clients.online(), clients.waiting(), hub.clients()), (count, 0, count));
        (hub, clients)
    }

    #[test]
    fn every_call_is_answered_measured_and_ended() {
        let (mut hub, mut clients) = registered(5);
        clients.call(time::mono());
        exchange(&mut hub, &mut clients, |_| false);
        assert_eq!((clients.measured.begun, clients.measured.answered), (0, 0), "nothing is measured yet");
        clients.measure(true);
        for _ in 0..20 {
            clients.call(time::mono());
            exchange(&mut hub, &mut clients, |_| false);
        }
        let measured = &clients.measured;
        assert_eq!((measured.begun, measured.answered, measured.misdelivered), (20, 20, 0));
        assert_eq!((measured.latency.len(), hub.calls()), (20, 0));
        assert_eq!(std::iter::from_fn(|| clients.poll_ended()).count(), 21);
    }

    #[test]
    fn refusals_are_counted_and_a_lost_tag_is_replaced() {
        let (mut hub, mut clients) = registered(2);
        hub.handle_websocket_closed(time::now(), ConnId(1));
        clients.measure(true);
        clients.call(time::mono());
        exchange(&mut hub, &mut clients, |_| false);
        assert_eq!(clients.refused.get(&203), Some(&1));
        assert_eq!((clients.measured.begun, clients.measured.answered), (1, 0));
        hub.handle_websocket_opened(time::now(), ConnId(1), [127, 0, 0, 1].into());
        clients.heartbeats(2);
        exchange(&mut hub, &mut clients, |_| false);
        assert_eq!((clients.lost_tags, clients.online(), hub.clients()), (1, 2, 2));
    }

    #[test]
    fn a_lost_registration_is_retransmitted_and_counts_once() {
        let mut hub = hub(3, Limits::default());
        let mut clients = SignalingClients::new(3, None);
        let start = time::mono();
        (0..3).for_each(|client| clients.register(start, client));
        let mut received = 0;
        exchange(&mut hub, &mut clients, |text| {
            received += usize::from(text.contains(r#""t":-1,"#));
            received == 2
        });
        assert_eq!((clients.online(), clients.waiting()), (2, 1));
        clients.retry_requests(start + RETRY / 2);
        assert!(clients.poll_output().is_none());
        clients.retry_requests(start + RETRY);
        exchange(&mut hub, &mut clients, |_| false);
        assert_eq!((clients.online(), clients.waiting()), (3, 0));
    }

    #[test]
    fn a_message_for_another_client_is_misdelivered() {
        let (mut hub, mut clients) = registered(3);
        clients.measure(true);
        clients.call(time::mono());
        let (caller, _) = clients.outputs[0].clone();
        let mut copied = None;
        exchange(&mut hub, &mut clients, |text| {
            let is_notice = text.contains(r#""t":51,"#);
            copied = copied.take().or(is_notice.then(|| text.to_owned()));
            is_notice
        });
        clients.handle(time::mono(), caller, copied.unwrap().as_bytes());
        assert_eq!((clients.measured.misdelivered, clients.measured.answered), (1, 0));
    }
}
