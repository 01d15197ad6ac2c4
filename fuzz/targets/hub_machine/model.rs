//! The messages that clients may receive, by the messages before.

use super::{Endpoint, WATCHES};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// A request to register.
pub(super) struct Registration {
    /// Whose secret or key was shown.
    pub(super) owner: Option<u8>,
    pub(super) epoch: Option<i64>,
    /// Whether its secret or proof is valid.
    pub(super) is_good: bool,
}

/// A request to call.
#[derive(Debug)]
pub(super) struct CallRequest {
    pub(super) endpoint: Endpoint,
    pub(super) mid: i64,
    pub(super) own: String,
    pub(super) other: String,
    pub(super) since: u64,
}

/// The call of one token.
#[derive(Debug, Default)]
pub(super) struct CallState {
    /// Its request, once the caller has received the token.
    call: Option<usize>,
    pub(super) endpoints: BTreeSet<Endpoint>,
    /// The notified endpoints, each with the number of the output.
    notified: Vec<(Endpoint, u64)>,
}

#[derive(Default)]
pub(super) struct Model {
    pub(super) tags: Vec<String>,
    pub(super) registrations: BTreeMap<(Endpoint, i64), Registration>,
    granted: BTreeSet<(Endpoint, i64)>,
    /// The owners of each tag by the number of the output.
    owners: BTreeMap<String, BTreeMap<u64, Endpoint>>,
    /// The last tag of each endpoint.
    pub(super) tag_of: BTreeMap<Endpoint, String>,
    pub(super) epochs: BTreeMap<u8, i64>,
    pub(super) nonces: BTreeMap<Endpoint, String>,
    /// The number of the output before each revocation, and the second at which it ends.
    pub(super) revoked: BTreeMap<String, (u64, u64)>,
    pub(super) call_requests: Vec<CallRequest>,
    pub(super) calls_by_token: BTreeMap<String, CallState>,
    /// Received notifications: the endpoint, `mid` and token.
    pub(super) notices: Vec<(Endpoint, i64, String)>,
    /// The watch requests: the tags, and whether to start or to stop.
    pub(super) watches: BTreeMap<(Endpoint, i64), (Vec<String>, bool)>,
    /// The state of each watched tag as its watcher knows it.
    pub(super) views: BTreeMap<Endpoint, BTreeMap<String, bool>>,
    /// Unanswered requests on WebSockets.
    pub(super) unanswered: BTreeSet<(u64, i64)>,
    /// Successful requests.
    pub(super) successful: BTreeSet<(Endpoint, i64)>,
}

impl Model {
    /// Removes what belongs to a closed WebSocket.
    pub(super) fn forget(&mut self, conn: u64) {
        self.unanswered.retain(|(whose, _)| *whose != conn);
        self.views.remove(&Endpoint::Web(conn));
        self.nonces.remove(&Endpoint::Web(conn));
        self.tag_of.remove(&Endpoint::Web(conn));
    }

    pub(super) fn check_answered(&self) {
        assert!(self.unanswered.is_empty(), "every request is answered: {:?}", self.unanswered);
    }

    /// Handles a message to a client: output number `at`, caused by the bus message with the number `sent`.
    pub(super) fn handle_message(
        &mut self,
        endpoint: Endpoint,
        message: &Value,
        (sent, at): (u64, u64),
        unix: u64,
    ) {
        let (t, mid) = (message["t"].as_i64().expect("a type"), message["mid"].as_i64());
        let (code, extra) = (message["code"].as_i64(), &message["extra"]);
        if let (Endpoint::Web(conn), Some(mid), true) = (endpoint, mid, code.is_some() || t < 0) {
            self.unanswered.remove(&(conn, mid));
        }
        if let (Some(mid), Some(200)) = (mid, code) {
            self.successful.insert((endpoint, mid));
        }
        match (t, code) {
            (-1, _) => self.on_registered(endpoint, mid, extra, (sent, unix)),
            (-4, _) => self.on_calling(endpoint, mid, extra),
            (-5, _) => {
                drop(self.nonces.insert(endpoint, extra["nonce"].as_str().expect("a nonce").to_owned()))
            }
            (-60, Some(200)) => self.on_watching(endpoint, mid, extra),
            (60, None) => self.on_presence(endpoint, &message["params"]),
            _ => {}
        }
        let Some(token) = message["token"].as_str() else { return };
        if (t, code) == (51, None) {
            self.on_notify(endpoint, message, at);
        }
        let call_state =
            self.calls_by_token.get(token).unwrap_or_else(|| panic!("a token that no call has: {message}"));
        assert!(
            call_state.endpoints.contains(&endpoint),
            "a token reaches a client that is not in its call: {message}"
        );
    }

    fn on_registered(
        &mut self,
        endpoint: Endpoint,
        mid: Option<i64>,
        extra: &Value,
        (sent, unix): (u64, u64),
    ) {
        let Some(tag) = extra["tag"].as_str() else { return };
        // A request that is repeated gets the same answer, whatever has happened since.
        if !mid.is_none_or(|mid| self.granted.insert((endpoint, mid))) {
            return;
        }
        if let Some(registration) = mid.and_then(|mid| self.registrations.get(&(endpoint, mid))) {
            let epoch = extra["epoch"].as_i64();
            assert!(registration.is_good, "a tag for a bad proof");
            assert!(
                registration.epoch.is_none() || registration.epoch == epoch,
                "another epoch than was shown"
            );
            if let (Some(owner), Some(epoch)) = (registration.owner, epoch) {
                self.epochs.insert(owner, epoch);
            }
        }
        if let Some((at, until)) = self.revoked.get(tag) {
            assert!(sent <= *at || unix >= *until, "a revoked tag is issued");
        }
        self.owners.entry(tag.to_owned()).or_default().insert(sent, endpoint);
        self.tag_of.insert(endpoint, tag.to_owned());
        if !self.tags.iter().any(|known| known == tag) {
            self.tags.push(tag.to_owned());
        }
    }

    /// Returns whether a tag was issued to an endpoint, at any time.
    pub(super) fn was_issued(&self, tag: &str, endpoint: Endpoint) -> bool {
        self.owners.get(tag).is_some_and(|owners| owners.values().any(|whose| *whose == endpoint))
    }

    /// Returns whether an endpoint had a tag at some time.
    fn had(&self, tag: &str, endpoint: Endpoint, since: u64, until: u64) -> bool {
        let Some(owners) = self.owners.get(tag) else { return false };
        let mut ends = owners.keys().skip(1).copied().chain([u64::MAX]);
        owners.iter().any(|(from, whose)| {
            let end = ends.next().unwrap_or(u64::MAX);
            *whose == endpoint && *from <= until && end > since
        })
    }

    fn on_calling(&mut self, endpoint: Endpoint, mid: Option<i64>, extra: &Value) {
        let Some(token) = extra["token"].as_str() else { return };
        let call =
            self.call_requests.iter().position(|call| call.endpoint == endpoint && Some(call.mid) == mid);
        let call = call.expect("only the caller gets a token");
        let call_state = self.calls_by_token.entry(token.to_owned()).or_default();
        call_state.endpoints.insert(endpoint);
        call_state.call = Some(call);
        let notified = call_state.notified.clone();
        for (whom, sent) in notified {
            self.check_notified(token, whom, sent);
        }
    }

    fn on_notify(&mut self, endpoint: Endpoint, message: &Value, sent: u64) {
        let token = message["token"].as_str().unwrap_or_default();
        let mid = message["mid"].as_i64().expect("a mid");
        self.notices.push((endpoint, mid, token.to_owned()));
        let call_state = self.calls_by_token.entry(token.to_owned()).or_default();
        // Retransmissions go to the endpoint that had the tag at the time of the call.
        if call_state.endpoints.insert(endpoint) {
            call_state.notified.push((endpoint, sent));
            let own = message["params"]["ltag"].as_str().expect("who calls");
            let mut calls = self.call_requests.iter().filter(|call| call.own == own);
            assert!(
                calls.any(|call| self.had(&call.other, endpoint, call.since, sent)),
                "no call is for it: {message}"
            );
            self.check_notified(token, endpoint, sent);
        }
    }

    /// Checks that the notified endpoint had the called tag at some time since the request.
    fn check_notified(&self, token: &str, whom: Endpoint, sent: u64) {
        if let Some(call) = self.calls_by_token[token].call.map(|call| &self.call_requests[call]) {
            assert!(
                self.had(&call.other, whom, call.since, sent),
                "only the owner of the tag is notified: {call:?}"
            );
        }
    }

    fn on_watching(&mut self, endpoint: Endpoint, mid: Option<i64>, extra: &Value) {
        let Some((tags, watch)) = mid.and_then(|mid| self.watches.get(&(endpoint, mid))) else { return };
        let view = self.views.entry(endpoint).or_default();
        if !watch {
            view.retain(|tag, _| !tags.contains(tag));
            return;
        }
        let states_of: BTreeMap<String, bool> = states(extra).collect();
        assert_eq!(states_of.keys().collect::<BTreeSet<_>>(), tags.iter().collect(), "all requested tags");
        view.extend(states_of);
        assert!(view.len() <= WATCHES, "the limit of watched tags holds");
    }

    fn on_presence(&mut self, endpoint: Endpoint, params: &Value) {
        let mut view = self.views.get_mut(&endpoint);
        for (tag, online) in states(params) {
            let known_state = view
                .as_mut()
                .and_then(|view| view.get_mut(&tag))
                .expect("an event of a tag that is not watched");
            assert_ne!(*known_state, online, "an event without a change");
            *known_state = online;
        }
    }
}

fn states(states_of: &Value) -> impl Iterator<Item = (String, bool)> + '_ {
    let of = |field: &str, online| {
        let tags = states_of[field].as_array().into_iter().flatten();
        tags.map(move |tag| (tag.as_str().expect("a tag").to_owned(), online))
    };
    of("online", true).chain(of("offline", false))
}
