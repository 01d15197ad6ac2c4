//! Watches (t=60): the watchers of each tag, the state that was sent last, and when the next event is due.
//!
//! A watcher gets the state of a tag, not its changes: at most one event in [`Times::presence`] about one tag, and at most one in
//! [`GAP`] about all, with the last state. So a client that comes and goes quickly causes no more events.

use super::bus::RealmTag;
use super::client_addr::ConnId;
use super::config::{Limits, Times};
use super::wire::Tag;
use crate::clock::Deadlines;
use crate::limits::Limit;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

/// The minimum time between two events to a watcher; changes in between are sent in one text.
const GAP: Duration = Duration::from_millis(50);

/// The id of a watched tag, for its timer.
type WatchId = u64;

/// Tags that are online, and tags that are not.
pub(super) type States = (Vec<Tag>, Vec<Tag>);

/// A limit would be exceeded.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

/// All watches.
#[derive(Debug)]
pub(super) struct Watches {
    quiet: Duration,
    cap: usize,
    cap_per_client: usize,
    cap_per_tag: usize,
    count: usize,
    watched: HashMap<RealmTag, Watched>,
    by_conn: HashMap<ConnId, HashSet<RealmTag>>,
    /// Numbers tags in the order they were first watched.
    next: WatchId,
    due: Deadlines<WatchId>,
    /// The state of tags whose event is not due yet.
    waiting: HashMap<WatchId, (RealmTag, bool)>,
    /// Tags whose last watch has ended.
    unsubscribed: Vec<RealmTag>,
    news: BTreeMap<ConnId, States>,
    quiet_until: Option<Instant>,
}

#[derive(Debug)]
struct Watched {
    id: WatchId,
    by: Vec<ConnId>,
    /// The state that all watchers were sent, so that one event is right for all.
    online: bool,
    quiet_until: Option<Instant>,
}

impl Watches {
    pub(super) fn new(times: &Times, limits: &Limits) -> Self {
        Self {
            quiet: times.presence,
            cap: limits.watches,
            cap_per_client: limits.watches_per_client,
            cap_per_tag: limits.watchers_per_tag,
            count: 0,
            watched: HashMap::new(),
            by_conn: HashMap::new(),
            next: 0,
            due: Deadlines::default(),
            waiting: HashMap::new(),
            unsubscribed: Vec::new(),
            news: BTreeMap::new(),
            quiet_until: None,
        }
    }

    /// Returns whether a tag is watched, so that its state is known.
    pub(super) fn has(&self, what: &RealmTag) -> bool {
        self.watched.contains_key(what)
    }

    /// Returns the state of a watched tag, sent or not.
    pub(super) fn state(&self, what: &RealmTag) -> Option<bool> {
        let watched = self.watched.get(what)?;
        Some(self.waiting.get(&watched.id).map_or(watched.online, |(_, online)| *online))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.watched.is_empty()
    }

    /// Returns whether the limits permit `conn` to watch all of `wanted` in addition.
    pub(super) fn has_room(&self, conn: ConnId, wanted: &[RealmTag]) -> bool {
        let own = self.by_conn.get(&conn);
        let is_fresh = |what: &&RealmTag| !own.is_some_and(|own| own.contains(*what));
        let fresh: HashSet<&RealmTag> = wanted.iter().filter(is_fresh).collect();
        let is_crowded = |what: &&RealmTag| {
            self.watched.get(*what).is_some_and(|watched| watched.by.len() >= self.cap_per_tag)
        };
        let of_client = own.map_or(0, HashSet::len) + fresh.len();
        let (limit, value) = if of_client > self.cap_per_client {
            (Limit::SignalingWatchesPerClient, self.cap_per_client)
        } else if self.count + fresh.len() > self.cap {
            (Limit::SignalingWatches, self.cap)
        } else if fresh.iter().any(is_crowded) {
            (Limit::SignalingWatchersPerTag, self.cap_per_tag)
        } else {
            return true;
        };
        limit.reached(value);
        false
    }

    /// Adds watches of `conn`: all of `wanted`, or none if a limit forbids one. Returns the states. A state that other watchers were sent takes
    /// precedence over the current one, because the event that corrects it follows.
    pub(super) fn begin(
        &mut self,
        conn: ConnId,
        wanted: Vec<RealmTag>,
        is_online: impl Fn(&RealmTag) -> bool,
    ) -> Result<States, Full> {
        if !self.has_room(conn, &wanted) {
            return Err(Full);
        }
        let (mut online, mut offline) = (Vec::new(), Vec::new());
        let mut seen = HashSet::new();
        for what in wanted.into_iter().filter(|what| seen.insert(what.clone())) {
            let state = is_online(&what);
            let id = self.next;
            self.next += 1;
            let new = || Watched { id, by: Vec::new(), online: state, quiet_until: None };
            let watched = self.watched.entry(what.clone()).or_insert_with(new);
            let states = if watched.online { &mut online } else { &mut offline };
            states.push(what.1.clone());
            if self.by_conn.entry(conn).or_default().insert(what) {
                watched.by.push(conn);
                self.count += 1;
            }
        }
        Ok((online, offline))
    }

    /// Ends some watches of `conn`; tags that it does not watch are ignored.
    pub(super) fn stop(&mut self, conn: ConnId, ended: &[RealmTag]) {
        for what in ended {
            let Some(own) = self.by_conn.get_mut(&conn) else { return };
            if own.remove(what) {
                if own.is_empty() {
                    self.by_conn.remove(&conn);
                }
                self.unlink(conn, what);
            }
        }
    }

    /// Ends all watches of `conn`.
    pub(super) fn forget(&mut self, conn: ConnId) {
        self.news.remove(&conn);
        for what in self.by_conn.remove(&conn).unwrap_or_default() {
            self.unlink(conn, &what);
        }
    }

    /// Marks tags that may have no watch.
    pub(super) fn unsubscribe(&mut self, what: Vec<RealmTag>) {
        self.unsubscribed.extend(what);
    }

    /// Returns the tags that may have lost their last watch since the last call.
    pub(super) fn take_unsubscribed(&mut self) -> Vec<RealmTag> {
        std::mem::take(&mut self.unsubscribed)
    }

    fn unlink(&mut self, conn: ConnId, what: &RealmTag) {
        self.count -= 1;
        let Some(watched) = self.watched.get_mut(what) else { return };
        watched.by.retain(|by| *by != conn);
        if watched.by.is_empty() {
            let id = watched.id;
            self.watched.remove(what);
            self.unsubscribed.push(what.clone());
            self.clear_timer(id);
        }
    }

    /// Applies a tag's state. A change is sent now, or as soon as the minimum interval permits.
    pub(super) fn apply(&mut self, now: Instant, what: &RealmTag, online: bool) {
        let Some(watched) = self.watched.get_mut(what) else { return };
        if watched.online == online {
            let id = watched.id;
            return self.clear_timer(id);
        }
        if let Some(at) = watched.quiet_until.max(self.quiet_until).filter(|at| *at > now) {
            self.waiting.insert(watched.id, (what.clone(), online));
            return self.due.set(watched.id, at);
        }
        watched.online = online;
        watched.quiet_until = Some(now + self.quiet);
        for conn in &watched.by {
            let (came, went) = self.news.entry(*conn).or_default();
            if online { came.push(what.1.clone()) } else { went.push(what.1.clone()) }
        }
        let id = watched.id;
        self.clear_timer(id);
    }

    fn clear_timer(&mut self, id: WatchId) {
        self.due.clear(id);
        self.waiting.remove(&id);
    }

    /// Queues the events that are due.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        while let Some(id) = self.due.pop_due(now) {
            if let Some((what, online)) = self.waiting.remove(&id) {
                self.apply(now, &what, online);
            }
        }
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.next()
    }

    /// Returns the event of each watcher.
    pub(super) fn take_news(&mut self, now: Instant) -> BTreeMap<ConnId, States> {
        if !self.news.is_empty() {
            self.quiet_until = Some(now + GAP);
        }
        std::mem::take(&mut self.news)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::time::now;
    use crate::signaling::access::Realm;

    fn watches(cap: usize, per_client: usize, per_tag: usize) -> Watches {
        let limits = Limits {
            watches: cap,
            watches_per_client: per_client,
            watchers_per_tag: per_tag,
            ..Limits::default()
        };
        Watches::new(&Times::default(), &limits)
    }

    fn tags(names: &[&str]) -> Vec<Tag> {
        names.iter().map(|name| Tag::new(*name).unwrap()).collect()
    }

    fn wanted(names: &[&str]) -> Vec<RealmTag> {
        tags(names).into_iter().map(|tag| (Realm::default(), tag)).collect()
    }

    #[test]
    fn either_all_tags_of_a_request_are_watched_or_none_and_the_limits_are_enforced() {
        let mut watches = watches(4, 3, 2);
        let mut begin = |conn, names: &[&str]| watches.begin(ConnId(conn), wanted(names), |_| false).is_ok();
        assert!(begin(1, &["a", "b", "a"]));
        assert!(!begin(1, &["c", "d"]), "of one client");
        assert!(begin(2, &["a"]));
        assert!(!begin(3, &["c", "a"]), "of one tag");
        assert!(begin(3, &["c"]));
        assert!(!begin(3, &["d"]), "in all");
        assert!(begin(1, &["a"]), "what one has costs nothing");
        assert_eq!(watches.len(), 4);
        watches.stop(ConnId(1), &wanted(&["a", "c", "x"]));
        watches.forget(ConnId(3));
        assert_eq!(watches.len(), 2);
        watches.forget(ConnId(1));
        watches.forget(ConnId(2));
        assert_eq!(
            (watches.len(), watches.watched.len(), watches.by_conn.len(), watches.waiting.len()),
            (0, 0, 0, 0)
        );
    }

    #[test]
    fn a_tag_causes_one_event_a_second_with_its_last_state() {
        let (mut watches, start) = (watches(9, 9, 9), now().mono);
        let a = wanted(&["a"]).remove(0);
        watches.begin(ConnId(1), wanted(&["a"]), |_| false).unwrap();
        watches.apply(start, &a, true);
        assert_eq!(watches.take_news(start).remove(&ConnId(1)), Some((tags(&["a"]), Vec::new())));
        watches.apply(start, &a, false);
        assert!(watches.take_news(start).is_empty());
        // A new watcher gets the state that the others know, so that the next event is right for both.
        let (online, _) = watches.begin(ConnId(2), wanted(&["a"]), |_| false).unwrap();
        assert_eq!(online, tags(&["a"]));
        let due = watches.next_due().unwrap();
        assert_eq!(due, start + Duration::from_secs(1));
        watches.handle_timeout(due);
        assert_eq!(watches.take_news(due).len(), 2);
        // The tag is back within the second, so that no event is sent.
        watches.apply(due, &a, true);
        watches.apply(due, &a, false);
        assert_eq!(watches.next_due(), None);
    }

    #[test]
    fn changes_within_the_interval_are_sent_in_one_event() {
        let (mut watches, start) = (watches(9, 9, 9), now().mono);
        watches.begin(ConnId(1), wanted(&["a", "b", "c"]), |_| false).unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| wanted(&[name]).remove(0));
        watches.apply(start, &a, true);
        assert_eq!(watches.take_news(start).len(), 1);
        watches.apply(start, &b, true);
        watches.apply(start, &c, true);
        assert!(watches.take_news(start).is_empty());
        let due = watches.next_due().unwrap();
        assert_eq!(due, start + GAP);
        watches.handle_timeout(due);
        assert_eq!(watches.take_news(due)[&ConnId(1)].0.len(), 2);
    }
}
