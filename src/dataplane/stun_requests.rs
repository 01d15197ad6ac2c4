//! A worker's answers to Binding requests and, of RFC 3489, to Shared Secret Requests.

use super::worker::Worker;
use crate::clock::Now;
use crate::stun::{Class, Message, Method};
use crate::stun_server::shared_secret::{is_shared_secret_request, refused};
use crate::stun_server::{self, BindingCheck};
use crate::turn_server::{FiveTuple, Transport};

impl Worker {
    /// Responds to a Binding request, or a Shared Secret Request of RFC 3489; returns whether the message is one.
    pub(crate) fn answer_binding_request(
        &mut self,
        now: Now,
        client: FiveTuple,
        message: &Message<'_>,
    ) -> bool {
        match (message.class(), message.method()) {
            (Class::Request, Method::BINDING) => self.answer_binding(now, client, message),
            (Class::Request, Method::SHARED_SECRET) => {
                self.answer_shared_secret_request(now, client, message)
            }
            _ => false,
        }
    }

    fn answer_binding(&mut self, now: Now, client: FiveTuple, message: &Message<'_>) -> bool {
        let request_len = message.as_bytes().len();
        let check = self.secrets.check(now.unix, message);
        if let BindingCheck::Refused(code) = check {
            self.send_unverified(now, client, request_len, &refused(message, code));
            return true;
        }
        if client.transport != Transport::Udp {
            let Some(mut answer) = stun_server::respond(message, client.client) else { return false };
            check.sign(&mut answer);
            self.clients.send(client, &answer);
            return true;
        }
        let room = std::mem::take(&mut self.answer);
        let Some(mut answer) = self.discovery.respond(message, client.client, client.server, room) else {
            return false;
        };
        check.sign(&mut answer.bytes);
        let there = FiveTuple { client: answer.to, server: answer.from, transport: Transport::Udp };
        self.reply_unverified(now, there, request_len, &answer.bytes);
        self.answer = answer.bytes;
        true
    }

    fn answer_shared_secret_request(&mut self, now: Now, client: FiveTuple, message: &Message<'_>) -> bool {
        if !is_shared_secret_request(message) {
            return false;
        }
        let answer = self.secrets.answer(now.unix, message, client.transport == Transport::Tls);
        self.send_unverified(now, client, message.as_bytes().len(), &answer);
        true
    }

    /// Sends an answer that a datagram's source address may have asked for in another's name.
    fn send_unverified(&mut self, now: Now, client: FiveTuple, question: usize, answer: &[u8]) {
        match client.transport {
            Transport::Udp => self.reply_unverified(now, client, question, answer),
            _ => self.clients.send(client, answer),
        }
    }
}
