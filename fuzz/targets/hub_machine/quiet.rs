//! What must be so when everybody has fallen silent.

use super::{CALLS, Leg, TAGS, UDP, WEB, World};
use ginnel::internals::signaling::Hub;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// Of so many tags, the last ones, and of those that are watched, everybody is asked.
const LAST: usize = 8;
const HOUR: u64 = 3_600_000;

impl World {
    pub(super) fn end(&mut self) {
        self.settle();
        self.check();
        if self.is_patient {
            self.check_owners();
        }
        (0..WEB).for_each(|client| self.close(client));
        self.settle();
        self.wait(HOUR);
        self.check();
        assert_eq!(self.sum(Hub::calls), 0, "every act ends");
        assert!(self.hubs.iter().all(Hub::is_idle), "something is left: {:#?}", self.hubs);
        self.check_room();
    }

    /// A tag has one owner, an owner has one tag, and who watches it knows.
    fn check_owners(&mut self) {
        // Whoever has a tag keeps it for a while.
        self.refresh();
        self.wait(1000);
        self.settle();
        self.wait(1100);
        self.settle();
        let owners = self.probe();
        let distinct: BTreeSet<Leg> = owners.values().copied().collect();
        assert_eq!(distinct.len(), owners.len(), "one tag each: {owners:?}");
        for (watcher, view) in &self.model.views {
            for (tag, online) in view {
                assert_eq!(owners.contains_key(tag), *online, "what {watcher:?} believes of {tag}");
            }
        }
        self.check();
    }

    /// Lets every client send a heartbeat for its last tag.
    fn refresh(&mut self) {
        for (leg, tag) in self.model.told.clone() {
            if self.is_open(leg) {
                self.ask(leg, 2, &json!({ "tag": tag }));
            }
        }
        self.settle();
    }

    /// Asks everybody for the tags that it has.
    fn probe(&mut self) -> BTreeMap<String, Leg> {
        let watched = self.model.views.values().flat_map(BTreeMap::keys);
        let tags: BTreeSet<String> =
            self.model.tags.iter().rev().take(LAST).chain(watched).cloned().collect();
        let sides = (0..UDP + WEB).flat_map(|client| [(client, false), (client, true)]);
        let legs: BTreeSet<Leg> = sides.filter_map(|(client, hole)| self.leg(client, hole)).collect();
        let mut owners = BTreeMap::new();
        for tag in tags {
            for leg in &legs {
                let mid = self.ask(*leg, 2, &json!({ "tag": tag }));
                self.settle();
                if self.model.good.contains(&(*leg, mid)) {
                    let other = owners.insert(tag.clone(), *leg);
                    assert_eq!(other, None, "two have {tag}, and one is {leg:?}");
                }
            }
        }
        owners
    }

    /// Everything that there may be at one time finds room again.
    fn check_room(&mut self) {
        (0..WEB - 1).for_each(|client| self.open(client));
        self.settle();
        assert_eq!(self.webs.len(), usize::from(WEB) - 1, "connections are counted that there are not");
        let clients: Vec<u8> = (UDP..UDP + WEB - 1).chain((0..UDP).step_by(2)).collect();
        for client in &clients {
            self.register(*client);
            self.settle();
        }
        assert_eq!(
            (clients.len(), self.sum(Hub::clients)),
            (TAGS, TAGS),
            "tags are counted that there are not"
        );
        let tags: Vec<String> = self.model.tags.iter().rev().take(TAGS).rev().cloned().collect();
        for side in 0..CALLS {
            let leg = self.leg(clients[side], false).expect("a leg");
            self.call_between(leg, tags[side].clone(), tags[side + CALLS].clone());
            self.settle();
        }
        assert_eq!(self.sum(Hub::calls), CALLS, "acts are counted that there are not");
    }
}
