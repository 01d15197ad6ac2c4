//! What clients may hear, by what was said and heard before.

use super::{Leg, WATCHES};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// A registration that was asked for.
pub(super) struct Claim {
    /// Whose secret or key was shown.
    pub(super) owner: Option<u8>,
    pub(super) epoch: Option<i64>,
    /// It is not to be refused for what it shows, its epoch aside.
    pub(super) is_good: bool,
}

/// A call that was asked for.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) leg: Leg,
    pub(super) mid: i64,
    pub(super) own: String,
    pub(super) other: String,
    pub(super) since: u64,
}

/// Who may hear of a token.
#[derive(Debug, Default)]
pub(super) struct Act {
    /// Which of the calls, once the caller has heard of it.
    call: Option<usize>,
    pub(super) legs: BTreeSet<Leg>,
    /// Who was notified, and when.
    notified: Vec<(Leg, u64)>,
}

#[derive(Default)]
pub(super) struct Model {
    pub(super) tags: Vec<String>,
    pub(super) claims: BTreeMap<(Leg, i64), Claim>,
    granted: BTreeSet<(Leg, i64)>,
    /// Whom each tag was given to, and when.
    owners: BTreeMap<String, BTreeMap<u64, Leg>>,
    /// The tag that each leg was told last.
    pub(super) told: BTreeMap<Leg, String>,
    pub(super) epochs: BTreeMap<u8, i64>,
    pub(super) nonces: BTreeMap<Leg, String>,
    /// When a tag was revoked, and until which second.
    pub(super) revoked: BTreeMap<String, (u64, u64)>,
    pub(super) calls: Vec<Asked>,
    pub(super) acts: BTreeMap<String, Act>,
    /// Notifications that were heard: where, their `mid` and their token.
    pub(super) notices: Vec<(Leg, i64, String)>,
    /// What watchers have asked for: the tags, and whether to begin or to end.
    pub(super) watches: BTreeMap<(Leg, i64), (Vec<String>, bool)>,
    /// What each watcher believes.
    pub(super) views: BTreeMap<Leg, BTreeMap<String, bool>>,
    /// Requests on WebSockets that are not answered yet.
    pub(super) asked: BTreeSet<(u64, i64)>,
    /// Answers that were good.
    pub(super) good: BTreeSet<(Leg, i64)>,
}

impl Model {
    /// A WebSocket is over.
    pub(super) fn forget(&mut self, conn: u64) {
        self.asked.retain(|(whose, _)| *whose != conn);
        self.views.remove(&Leg::Web(conn));
        self.nonces.remove(&Leg::Web(conn));
        self.told.remove(&Leg::Web(conn));
    }

    pub(super) fn check_answered(&self) {
        assert!(self.asked.is_empty(), "who asks is answered: {:?}", self.asked);
    }

    /// Takes what a client hears, what was put out as number `at`, and perhaps said as number `said` before it was passed on.
    pub(super) fn hear(&mut self, leg: Leg, message: &Value, (said, at): (u64, u64), unix: u64) {
        let (t, mid) = (message["t"].as_i64().expect("a type"), message["mid"].as_i64());
        let (code, extra) = (message["code"].as_i64(), &message["extra"]);
        if let (Leg::Web(conn), Some(mid), true) = (leg, mid, code.is_some() || t < 0) {
            self.asked.remove(&(conn, mid));
        }
        if let (Some(mid), Some(200)) = (mid, code) {
            self.good.insert((leg, mid));
        }
        match (t, code) {
            (-1, _) => self.hear_tag(leg, mid, extra, (said, unix)),
            (-4, _) => self.hear_token(leg, mid, extra),
            (-5, _) => drop(self.nonces.insert(leg, extra["nonce"].as_str().expect("a nonce").to_owned())),
            (-60, Some(200)) => self.hear_standing(leg, mid, extra),
            (60, None) => self.hear_presence(leg, &message["params"]),
            _ => {}
        }
        let Some(token) = message["token"].as_str() else { return };
        if (t, code) == (51, None) {
            self.hear_call(leg, message, at);
        }
        let act = self.acts.get(token).unwrap_or_else(|| panic!("a token that nobody was given: {message}"));
        assert!(act.legs.contains(&leg), "a token reaches somebody else: {message}");
    }

    fn hear_tag(&mut self, leg: Leg, mid: Option<i64>, extra: &Value, (said, unix): (u64, u64)) {
        let Some(tag) = extra["tag"].as_str() else { return };
        // A request that is repeated gets the same answer, whatever has happened since.
        if !mid.is_none_or(|mid| self.granted.insert((leg, mid))) {
            return;
        }
        if let Some(claim) = mid.and_then(|mid| self.claims.get(&(leg, mid))) {
            let epoch = extra["epoch"].as_i64();
            assert!(claim.is_good, "a tag for a bad proof");
            assert!(claim.epoch.is_none() || claim.epoch == epoch, "another epoch than was shown");
            if let (Some(owner), Some(epoch)) = (claim.owner, epoch) {
                self.epochs.insert(owner, epoch);
            }
        }
        if let Some((at, until)) = self.revoked.get(tag) {
            assert!(said <= *at || unix >= *until, "a revoked tag is given away");
        }
        self.owners.entry(tag.to_owned()).or_default().insert(said, leg);
        self.told.insert(leg, tag.to_owned());
        if !self.tags.iter().any(|known| known == tag) {
            self.tags.push(tag.to_owned());
        }
    }

    /// Says whether a leg had a tag at some time.
    fn had(&self, tag: &str, leg: Leg, since: u64, until: u64) -> bool {
        let Some(owners) = self.owners.get(tag) else { return false };
        let mut ends = owners.keys().skip(1).copied().chain([u64::MAX]);
        owners.iter().any(|(from, whose)| {
            let end = ends.next().unwrap_or(u64::MAX);
            *whose == leg && *from <= until && end > since
        })
    }

    fn hear_token(&mut self, leg: Leg, mid: Option<i64>, extra: &Value) {
        let Some(token) = extra["token"].as_str() else { return };
        let call = self.calls.iter().position(|call| call.leg == leg && Some(call.mid) == mid);
        let call = call.expect("only who asks gets a token");
        let act = self.acts.entry(token.to_owned()).or_default();
        act.legs.insert(leg);
        act.call = Some(call);
        let notified = act.notified.clone();
        for (whom, said) in notified {
            self.check_notified(token, whom, said);
        }
    }

    fn hear_call(&mut self, leg: Leg, message: &Value, said: u64) {
        let token = message["token"].as_str().unwrap_or_default();
        let mid = message["mid"].as_i64().expect("a mid");
        self.notices.push((leg, mid, token.to_owned()));
        let act = self.acts.entry(token.to_owned()).or_default();
        // Copies still go to where the tag was when it was called.
        if act.legs.insert(leg) {
            act.notified.push((leg, said));
            let own = message["params"]["ltag"].as_str().expect("who calls");
            let mut calls = self.calls.iter().filter(|call| call.own == own);
            assert!(
                calls.any(|call| self.had(&call.other, leg, call.since, said)),
                "nobody called it: {message}"
            );
            self.check_notified(token, leg, said);
        }
    }

    /// Whoever is notified of a call had the tag that was called, from when it was asked for.
    fn check_notified(&self, token: &str, whom: Leg, said: u64) {
        if let Some(call) = self.acts[token].call.map(|call| &self.calls[call]) {
            assert!(self.had(&call.other, whom, call.since, said), "notified is who owns the tag: {call:?}");
        }
    }

    fn hear_standing(&mut self, leg: Leg, mid: Option<i64>, extra: &Value) {
        let Some((tags, watch)) = mid.and_then(|mid| self.watches.get(&(leg, mid))) else { return };
        let view = self.views.entry(leg).or_default();
        if !watch {
            view.retain(|tag, _| !tags.contains(tag));
            return;
        }
        let told: BTreeMap<String, bool> = states(extra).collect();
        assert_eq!(told.keys().collect::<BTreeSet<_>>(), tags.iter().collect(), "all that was asked for");
        view.extend(told);
        assert!(view.len() <= WATCHES, "one watches more than it may");
    }

    fn hear_presence(&mut self, leg: Leg, params: &Value) {
        let mut view = self.views.get_mut(&leg);
        for (tag, online) in states(params) {
            let believed =
                view.as_mut().and_then(|view| view.get_mut(&tag)).expect("an event that nobody asked for");
            assert_ne!(*believed, online, "an event without news");
            *believed = online;
        }
    }
}

fn states(told: &Value) -> impl Iterator<Item = (String, bool)> + '_ {
    let of = |field: &str, online| {
        let tags = told[field].as_array().into_iter().flatten();
        tags.map(move |tag| (tag.as_str().expect("a tag").to_owned(), online))
    };
    of("online", true).chain(of("offline", false))
}
