//! The machine against a model: whatever clients do and in whichever order the store answers, a message that was accepted reaches the device
//! that it is for, in order, and nobody else.

use super::json_sending_tests::encrypted;
use super::json_session_tests::{WebSocket, device_login, key};
use super::machine::{Output, RequestId};
use super::machine_tests::Server;
use super::store_request::{StoreReply, StoreRequest};
use crate::messaging_wire::*;
use crate::store::StoreError;
use proptest::prelude::*;
use std::collections::BTreeSet;

const USERS: [&str; 3] = ["alice", "bob", "carol"];

#[derive(Debug, Clone)]
enum Op {
    Send {
        from: usize,
        to: usize,
        id: u8,
    },
    Acknowledge(usize),
    Follow(usize),
    Reconnect(usize),
    Congest(usize),
    Drain(usize),
    /// The store does the oldest call.
    Call,
    /// The machine gets one of the results.
    Deliver(usize),
}

/// A user with one device.
struct User {
    client: WebSocket,
    number: i64,
    /// The request id and the message id of each send that has no answer.
    asked: Vec<(u64, String)>,
    /// What it was told to be stored: the recipient and the message id.
    accepted: BTreeSet<(usize, String)>,
    /// Sequence number, sender and id of each message that it got, with those of earlier connections.
    received: BTreeSet<(u64, String, String)>,
    last_of_connection: u64,
    /// The request id of each follow, and where it begins.
    follows: Vec<(u64, u64)>,
    /// By request id: the recipient.
    recipients: Vec<(u64, usize)>,
}

struct Model {
    server: Server,
    users: Vec<User>,
    results: Vec<(RequestId, Result<StoreReply, StoreError>, bool)>,
    next: u64,
}

impl Model {
    fn new() -> Self {
        let mut server = Server::new();
        let mut users = Vec::new();
        for (index, name) in USERS.into_iter().enumerate() {
            let seed = u8::try_from(10 * index + 1).unwrap();
            let number = server.register_device(name, seed);
            let client = server.log_in(name, seed + 1);
            users.push(User {
                client,
                number,
                asked: Vec::new(),
                accepted: BTreeSet::new(),
                received: BTreeSet::new(),
                last_of_connection: 0,
                follows: Vec::new(),
                recipients: Vec::new(),
            });
        }
        server.is_paused = true;
        Self { server, users, results: Vec::new(), next: 1_000_000 }
    }

    fn request(&mut self, user: usize, request: &Request) -> u64 {
        self.next += 1;
        let client = self.users[user].client;
        self.server.text(client, &request.to_frame(self.next));
        self.next
    }

    fn call(&mut self) {
        if self.server.kept.is_empty() {
            return;
        }
        let Output::Store { id, request } = self.server.kept.remove(0) else { panic!("no job is started") };
        let is_append = matches!(request, StoreRequest::Append(_));
        self.results.push((id, self.server.call(request), is_append));
    }

    fn deliver(&mut self, which: usize) {
        if self.results.is_empty() {
            return;
        }
        let which = which % self.results.len();
        // Appends come back in their order.
        let which = match self.results[which].2 {
            true => self.results.iter().position(|(_, _, is_append)| *is_append).unwrap(),
            false => which,
        };
        let (id, result, _) = self.results.remove(which);
        self.server.machine.handle_store_result(self.server.now, id, result);
        self.server.drain();
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Send { from, to, id } => {
                let message_id = format!("{from}-{to}-{id}");
                let copies = [(self.users[to].number, message_id.as_bytes())];
                let send = encrypted(&format!("user:{}", USERS[to]), &message_id, &copies);
                let request = self.request(from, &send);
                self.users[from].asked.push((request, message_id));
                self.users[from].recipients.push((request, to));
            }
            Op::Acknowledge(user) => {
                let up_to = self.users[user].last_of_connection;
                self.request(user, &Request::Ack(Ack { up_to }));
            }
            Op::Follow(user) => {
                let after = self.users[user].last_of_connection;
                let id = self.request(user, &Request::Follow(Follow { after }));
                self.users[user].follows.push((id, after));
            }
            Op::Reconnect(user) => {
                let earlier = self.users[user].client;
                self.server.machine.handle_closed(earlier.id);
                self.server.drain();
                let seed = u8::try_from(10 * user + 2).unwrap();
                let client = self.server.websocket();
                let user = &mut self.users[user];
                (user.client, user.last_of_connection) = (client, 0);
                user.asked.clear();
                self.next += 1;
                let login = device_login(client, USERS[usize::from(seed / 10)], &key(seed));
                self.server.text(client, &login.to_frame(self.next));
            }
            Op::Congest(user) => self.server.machine.handle_congested(self.users[user].client.id),
            Op::Drain(user) => {
                self.server.machine.handle_drained(self.server.now, self.users[user].client.id);
                self.server.drain();
            }
            Op::Call => self.call(),
            Op::Deliver(which) => self.deliver(which),
        }
        for user in 0..USERS.len() {
            self.read(user);
        }
    }

    /// Reads what a user got.
    fn read(&mut self, user: usize) {
        for text in self.server.events(self.users[user].client) {
            let user = &mut self.users[user];
            match text["type"].as_str().unwrap() {
                "message" => {
                    let message: Message = serde_json::from_value(text).unwrap();
                    user.receive(message);
                }
                "ok" if text["state"] == "stored" => {
                    let id = text["id"].as_u64().unwrap();
                    let place = user.asked.iter().position(|(asked, _)| *asked == id).unwrap();
                    let (_, message_id) = user.asked.remove(place);
                    let (_, to) = user.recipients.iter().find(|(asked, _)| *asked == id).unwrap();
                    user.accepted.insert((*to, message_id));
                }
                "ok" => {
                    // What follows begins anew.
                    if let Some((_, after)) = user.follows.iter().find(|(id, _)| text["id"] == *id) {
                        user.last_of_connection = *after;
                    }
                }
                "receipt" => user.last_of_connection = text["sequence"].as_u64().unwrap(),
                _ => assert_ne!(text["code"], "unavailable", "{text}"),
            }
        }
    }

    /// Lets everything happen that is left, and reads what is stored.
    fn end(mut self) {
        for user in 0..USERS.len() {
            self.apply(Op::Drain(user));
        }
        while !self.server.kept.is_empty() || !self.results.is_empty() {
            self.apply(Op::Call);
            self.apply(Op::Deliver(0));
        }
        self.server.is_paused = false;
        for (user, name) in USERS.into_iter().enumerate() {
            self.server.machine.handle_closed(self.users[user].client.id);
            self.server.drain();
            let client = self.server.log_in(name, u8::try_from(10 * user + 2).unwrap());
            (self.users[user].client, self.users[user].last_of_connection) = (client, 0);
            self.server.ok(client, &Request::Follow(Follow { after: 0 }));
            self.read(user);
        }
        for from in &self.users {
            for (to, message_id) in &from.accepted {
                let got = self.users[*to].received.iter().filter(|(_, _, id)| id == message_id).count();
                assert_eq!(got, 1, "{message_id} is stored once under one number");
            }
        }
        for (to, user) in self.users.iter().enumerate() {
            for (_, sender, id) in &user.received {
                let from = USERS.iter().position(|name| *sender == format!("user:{name}")).unwrap();
                assert!(id.starts_with(&format!("{from}-{to}-")), "{id} came to {to}");
            }
            self.server.machine.handle_closed(user.client.id);
        }
        let machine = &self.server.machine;
        assert_eq!((machine.held_bytes(), machine.json_sessions.len(), machine.readers.len()), (0, 0, 0));
    }
}

impl User {
    fn receive(&mut self, message: Message) {
        assert!(message.sequence > self.last_of_connection, "in order");
        self.last_of_connection = message.sequence;
        let body = message.body.unwrap();
        assert_eq!(body.0, message.message_id.as_bytes());
        self.received.insert((message.sequence, message.from, message.message_id));
    }
}

fn op() -> impl Strategy<Value = Op> {
    let user = 0..USERS.len();
    prop_oneof![
        6 => (user.clone(), user.clone(), 0_u8..20).prop_map(|(from, to, id)| Op::Send { from, to, id }),
        2 => user.clone().prop_map(Op::Acknowledge),
        2 => user.clone().prop_map(Op::Follow),
        1 => user.clone().prop_map(Op::Reconnect),
        1 => user.clone().prop_map(Op::Congest),
        2 => user.prop_map(Op::Drain),
        12 => Just(Op::Call),
        12 => any::<usize>().prop_map(Op::Deliver),
    ]
}

proptest! {
    #[test]
    fn what_is_accepted_reaches_its_device_once_in_order_and_nobody_else(
        ops in prop::collection::vec(op(), 0..200),
    ) {
        let mut model = Model::new();
        for op in ops {
            model.apply(op);
        }
        model.end();
    }
}
