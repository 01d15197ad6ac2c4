//! Messages from other hubs, and the queries that wait for them.

use super::bus::{
    Destination, ForwardedCall, ForwardedLocate, HubMessage, HubPayload, Presence, RealmTag, Undelivered,
};
use super::client_addr::{ClientAddr, ConnId};
use super::machine::{Hub, RequestOrigin};
use super::nodes::NodeId;
use super::pending_queries::{PendingQuery, Query, merged};
use super::wire::{ErrorCode, Message, MessageType, ResponseBody, Tag};
use crate::clock::Now;
use std::collections::HashMap;

impl Hub {
    /// Handles a message from another hub.
    pub fn handle_hub_message(&mut self, now: Now, message: HubMessage) {
        self.counters.hub_messages_received += 1;
        match message.0 {
            // Timers start at the arrival, whatever the delay of the message.
            HubPayload::Forwarded(forwarded) => {
                self.handle_message(RequestOrigin { now, ..forwarded.0 }, forwarded.1)
            }
            HubPayload::Call(call) => {
                let origin = RequestOrigin { now, ..call.origin };
                self.handle_forwarded_call(ForwardedCall { origin, ..*call });
            }
            HubPayload::Locate(locate) => {
                let origin = RequestOrigin { now, ..locate.origin };
                self.handle_forwarded_locate(ForwardedLocate { origin, ..*locate });
            }
            HubPayload::ClientGone { addr } => self.remove_client(now, addr),
            HubPayload::ClientReleased { addr } => drop(self.registry.remove_addr(addr)),
            HubPayload::TagEnded { addr, by } => {
                if self.away.get(&addr) == Some(&by) {
                    self.away.remove(&addr);
                }
            }
            HubPayload::TagAssigned { addr, admin, realm, by } => {
                self.record_assignment(now, addr, by, (admin, realm))
            }
            HubPayload::CallerOffline { tag, addr } => self.fail_calls(now, &tag, addr),
            HubPayload::CallerRevoked { tag } => self.end_calls_of(now, &tag),
            HubPayload::Deliver { route, port, text } => self.send(route, port, &text),
            HubPayload::Close { conn } => self.disconnect(now, conn),
            HubPayload::Watch { id, by, wanted } => self.handle_watch_query(id, by, wanted),
            HubPayload::WatchState { id, by, presence } => self.handle_watch_state(now, (id, by), presence),
            HubPayload::Unwatch { by, ended } => {
                ended.iter().for_each(|what| self.subscriptions.end(what, by))
            }
            HubPayload::Presence { presence } => {
                self.queries.apply(&presence);
                self.apply_presence(now.mono, presence);
            }
            HubPayload::List { id, by, page } => {
                let (tags, more) = self.registry.page(&page);
                let own = self.nodes.own();
                self.publish(Destination::Node(by), HubPayload::Listed { id, by: own, tags, more });
            }
            HubPayload::Listed { id, by, tags, more } => self.handle_listed(now, (id, by), (tags, more)),
        }
        self.send_presence_changes(now.mono);
    }

    /// Handles a message that the bus did not accept: its client gets 206, or 203 if the callee's node is unreachable.
    pub fn handle_undelivered(&mut self, now: Now, undelivered: Undelivered) {
        self.counters.hub_messages_undelivered += 1;
        let (message, callee_code) = match undelivered {
            Undelivered::Unreachable(message) => (message, ErrorCode::NotOnline),
            Undelivered::Overloaded(message) => (message, ErrorCode::TooMany),
        };
        match message.0 {
            HubPayload::Forwarded(forwarded) => {
                let (origin, message) = *forwarded;
                // By UDP no error is sent: the client retransmits, and a flood would get an answer for each datagram.
                if let (Message::Request(request), ClientAddr::WebSocket(_)) = (message, origin.route.addr) {
                    self.fail(origin, request.body.message_type(), request.mid, ErrorCode::TooMany);
                }
            }
            HubPayload::Call(call) => self.fail(call.origin, MessageType::Call, call.mid, callee_code),
            HubPayload::Locate(locate) => {
                self.fail(locate.origin, MessageType::Locate, locate.mid, callee_code)
            }
            HubPayload::Watch { id, .. } | HubPayload::List { id, .. } => {
                if let Some(query) = self.queries.remove(id) {
                    self.fail_query(query);
                }
            }
            _ => {}
        }
        self.send_presence_changes(now.mono);
    }

    fn handle_watch_query(&mut self, id: u64, by: NodeId, wanted: Vec<RealmTag>) {
        let states = wanted.into_iter().map(|what| {
            let online = self.registry.is_online(&what);
            (what, online)
        });
        let presence: Presence = states.collect();
        for (what, _) in &presence {
            self.subscriptions.begin(what.clone(), by);
        }
        let own = self.nodes.own();
        self.publish(Destination::Node(by), HubPayload::WatchState { id, by: own, presence });
    }

    fn handle_watch_state(&mut self, now: Now, (id, by): (u64, NodeId), presence: Presence) {
        let tags: Vec<RealmTag> = presence.iter().map(|(what, _)| what.clone()).collect();
        let apply = |what: &mut Query| match what {
            Query::Watch { known, .. } => known.extend(presence),
            Query::List { .. } => {}
        };
        let complete = self.queries.take(id, by, apply);
        if complete.is_none() {
            // If no query waits for it any more, the subscription ends.
            return self.watches.unsubscribe(tags);
        }
        self.finish_query(now, complete);
    }

    fn handle_listed(&mut self, now: Now, (id, by): (u64, NodeId), part: (Vec<Tag>, bool)) {
        let complete = self.queries.take(id, by, |what| match what {
            Query::List { parts, .. } => parts.push(part),
            Query::Watch { .. } => {}
        });
        self.finish_query(now, complete);
    }

    fn finish_query(&mut self, now: Now, query: Option<PendingQuery>) {
        let Some(PendingQuery { origin, mid, what, .. }) = query else { return };
        let origin = RequestOrigin { now, ..origin };
        match what {
            Query::List { page, parts } => {
                let (tags, more) = merged(parts, page.most());
                self.answer(origin, MessageType::List, mid, Ok(ResponseBody::Listed { tags, more }));
            }
            Query::Watch { conn, wanted, known } => {
                let answered = self.begin_watch_of(conn, &wanted, &known);
                self.watches.unsubscribe(wanted);
                self.answer(origin, MessageType::Watch, mid, answered);
            }
        }
    }

    fn begin_watch_of(
        &mut self,
        conn: ConnId,
        wanted: &[RealmTag],
        known: &HashMap<RealmTag, bool>,
    ) -> Result<ResponseBody, ErrorCode> {
        // The WebSocket may have been closed, or have moved to another realm.
        let is_open =
            self.websockets.get(&conn).is_some_and(|web| wanted.iter().all(|(realm, _)| *realm == web.realm));
        if is_open { self.begin_watch(conn, wanted.to_vec(), known) } else { Err(ErrorCode::UnknownTag) }
    }

    fn fail_query(&mut self, query: PendingQuery) {
        let PendingQuery { origin, mid, what, .. } = query;
        let t = match what {
            Query::List { .. } => MessageType::List,
            Query::Watch { wanted, .. } => {
                self.watches.unsubscribe(wanted);
                MessageType::Watch
            }
        };
        self.fail(origin, t, mid, ErrorCode::TooMany);
    }
}
