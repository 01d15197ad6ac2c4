//! The checks at the end, when no client sends any more.

use super::{CALLS, Endpoint, TAGS, UDP, WEB, World};
use ginnel::internals::signaling::Hub;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// The number of the latest tags that are probed, besides the watched ones.
const LAST: usize = 8;
const HOUR: u64 = 3_600_000;

impl World {
    pub(super) fn end(&mut self) {
        self.settle();
        self.check();
        if self.is_unlimited {
            self.check_owners();
        }
        (0..WEB).for_each(|client| self.close(client));
        self.settle();
        self.wait(HOUR);
        self.check();
        assert_eq!(self.sum(Hub::calls), 0, "every call ends");
        assert!(self.hubs.iter().all(Hub::is_idle), "some state remains: {:#?}", self.hubs);
        self.check_capacity();
    }

    /// Checks that a tag has one owner, an owner has one tag, and each watcher knows the state.
    fn check_owners(&mut self) {
        // No tag expires during the check.
        self.refresh();
        self.wait(1000);
        self.settle();
        self.wait(1100);
        self.settle();
        let owners = self.probe();
        let distinct: BTreeSet<Endpoint> = owners.values().copied().collect();
        assert_eq!(distinct.len(), owners.len(), "one tag each: {owners:?}");
        for (watcher, view) in &self.model.views {
            for (tag, online) in view {
                assert_eq!(owners.contains_key(tag), *online, "the state of {tag} as {watcher:?} knows it");
            }
        }
        self.check();
    }

    /// Sends a heartbeat of every client for its last tag.
    fn refresh(&mut self) {
        for (endpoint, tag) in self.model.tag_of.clone() {
            if self.is_open(endpoint) {
                self.request(endpoint, 2, &json!({ "tag": tag }));
            }
        }
        self.settle();
    }

    /// Returns the owners of the tags: an endpoint owns a tag if its heartbeat succeeds. Probes every endpoint that the tag was issued to,
    /// and one other, by the number of requests.
    fn probe(&mut self) -> BTreeMap<String, Endpoint> {
        let watched = self.model.views.values().flat_map(BTreeMap::keys);
        let tags: BTreeSet<String> =
            self.model.tags.iter().rev().take(LAST).chain(watched).cloned().collect();
        let sides = (0..UDP + WEB).flat_map(|client| [(client, false), (client, true)]);
        let endpoints: BTreeSet<Endpoint> =
            sides.filter_map(|(client, punching)| self.endpoint(client, punching)).collect();
        let mut owners = BTreeMap::new();
        for tag in tags {
            let (issued, others): (Vec<Endpoint>, Vec<Endpoint>) =
                endpoints.iter().partition(|endpoint| self.model.was_issued(&tag, **endpoint));
            let turn = self.mid.unsigned_abs() as usize;
            let other = others.get(turn % others.len().max(1)).copied();
            for endpoint in issued.iter().copied().chain(other) {
                let mid = self.request(endpoint, 2, &json!({ "tag": tag }));
                self.settle();
                if self.model.successful.contains(&(endpoint, mid)) {
                    assert!(issued.contains(&endpoint), "{tag} was not issued to {endpoint:?}");
                    let other = owners.insert(tag.clone(), endpoint);
                    assert_eq!(other, None, "two have {tag}, and one is {endpoint:?}");
                }
            }
        }
        owners
    }

    /// Checks that all limits can be reached again, so that nothing was leaked.
    fn check_capacity(&mut self) {
        (0..WEB - 1).for_each(|client| self.open(client));
        self.settle();
        assert_eq!(self.webs.len(), usize::from(WEB) - 1, "closed connections are still counted");
        let clients: Vec<u8> = (UDP..UDP + WEB - 1).chain((0..UDP).step_by(2)).collect();
        for client in &clients {
            self.register(*client);
            self.settle();
        }
        assert_eq!((clients.len(), self.sum(Hub::clients)), (TAGS, TAGS), "expired tags are still counted");
        let tags: Vec<String> = self.model.tags.iter().rev().take(TAGS).rev().cloned().collect();
        for side in 0..CALLS {
            let endpoint = self.endpoint(clients[side], false).expect("a leg");
            self.call_between(endpoint, tags[side].clone(), tags[side + CALLS].clone());
            self.settle();
        }
        assert_eq!(self.sum(Hub::calls), CALLS, "ended calls are still counted");
    }
}
