//! Messages from other hubs, and the queries that wait for them.

use super::bus::{Destination, ForwardedCall, HubMessage, Payload, Presence, RealmTag, Undelivered};
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
            // Timers start at the arrival, however long the message was under way.
            Payload::Forwarded(heard) => self.handle_message(RequestOrigin { now, ..heard.0 }, heard.1),
            Payload::Call(call) => {
                let origin = RequestOrigin { now, ..call.origin };
                self.handle_forwarded_call(ForwardedCall { origin, ..*call });
            }
            Payload::ClientGone { addr } => self.leave(now, addr),
            Payload::ClientReleased { addr } => drop(self.registry.remove_addr(addr)),
            Payload::TagEnded { addr, by } => {
                if self.away.get(&addr) == Some(&by) {
                    self.away.remove(&addr);
                }
            }
            Payload::TagAssigned { addr, admin, realm, by } => {
                self.note_assigned(now, addr, by, (admin, realm))
            }
            Payload::CallerOffline { tag, addr } => self.fail_calls(now, &tag, addr),
            Payload::CallerRevoked { tag } => self.withdraw(now, &tag),
            Payload::Deliver { route, port, text } => self.send(route, port, &text),
            Payload::Close { conn } => self.disconnect(now, conn),
            Payload::Watch { id, by, wanted } => self.subscribe(id, by, wanted),
            Payload::WatchState { id, by, presence } => self.take_states(now, (id, by), presence),
            Payload::Unwatch { by, ended } => ended.iter().for_each(|what| self.subscriptions.end(what, by)),
            Payload::Presence { presence } => {
                self.queries.note(&presence);
                self.note_presence(now.mono, presence);
            }
            Payload::List { id, by, page } => {
                let (tags, more) = self.registry.page(&page);
                let own = self.nodes.own();
                self.publish(Destination::Node(by), Payload::Listed { id, by: own, tags, more });
            }
            Payload::Listed { id, by, tags, more } => self.take_page(now, (id, by), (tags, more)),
        }
        self.tell_changes(now.mono);
    }

    /// Handles a message that the bus did not take: the client behind it gets 206, or 203 if nobody answers for the callee.
    pub fn handle_undelivered(&mut self, now: Now, undelivered: Undelivered) {
        self.counters.hub_messages_undelivered += 1;
        let (message, callee_code) = match undelivered {
            Undelivered::Unreachable(message) => (message, ErrorCode::NotOnline),
            Undelivered::Overloaded(message) => (message, ErrorCode::TooMany),
        };
        match message.0 {
            Payload::Forwarded(heard) => {
                let (origin, message) = *heard;
                // By UDP no error is sent: the client retransmits, and a flood would get an answer for each datagram.
                if let (Message::Request(request), ClientAddr::WebSocket(_)) = (message, origin.route.addr) {
                    self.fail(origin, request.body.message_type(), request.mid, ErrorCode::TooMany);
                }
            }
            Payload::Call(call) => self.fail(call.origin, MessageType::Call, call.mid, callee_code),
            Payload::Watch { id, .. } | Payload::List { id, .. } => {
                if let Some(query) = self.queries.give_up(id) {
                    self.give_up(query);
                }
            }
            _ => {}
        }
        self.tell_changes(now.mono);
    }

    fn subscribe(&mut self, id: u64, by: NodeId, wanted: Vec<RealmTag>) {
        let states = wanted.into_iter().map(|what| {
            let online = self.registry.is_online(&what);
            (what, online)
        });
        let presence: Presence = states.collect();
        for (what, _) in &presence {
            self.subscriptions.begin(what.clone(), by);
        }
        let own = self.nodes.own();
        self.publish(Destination::Node(by), Payload::WatchState { id, by: own, presence });
    }

    fn take_states(&mut self, now: Now, (id, by): (u64, NodeId), presence: Presence) {
        let told: Vec<RealmTag> = presence.iter().map(|(what, _)| what.clone()).collect();
        let learn = |what: &mut Query| match what {
            Query::Watch { known, .. } => known.extend(presence),
            Query::List { .. } => {}
        };
        let done = self.queries.take(id, by, learn);
        if done.is_none() {
            // If nobody waits for it any more, the subscription ends.
            return self.watches.unsubscribe(told);
        }
        self.finish(now, done);
    }

    fn take_page(&mut self, now: Now, (id, by): (u64, NodeId), part: (Vec<Tag>, bool)) {
        let done = self.queries.take(id, by, |what| match what {
            Query::List { parts, .. } => parts.push(part),
            Query::Watch { .. } => {}
        });
        self.finish(now, done);
    }

    fn finish(&mut self, now: Now, query: Option<PendingQuery>) {
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
        // It may have ended, or have come into another realm.
        let is_there =
            self.websockets.get(&conn).is_some_and(|web| wanted.iter().all(|(realm, _)| *realm == web.realm));
        if is_there { self.begin_watch(conn, wanted.to_vec(), known) } else { Err(ErrorCode::UnknownTag) }
    }

    fn give_up(&mut self, query: PendingQuery) {
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
