//! A worker's answers to Binding requests and, of RFC 3489, to Shared Secret Requests.

use super::worker::Worker;
use crate::clock::Now;
use crate::stun::Message;
use crate::stun_server::shared_secret::{is_shared_secret_request, refused};
use crate::stun_server::{self, BindingCheck};
use crate::turn_server::{FiveTuple, Transport};

/// The types of the two requests that are answered here.
const BINDING_REQUEST: [u8; 2] = [0, 1];
const SHARED_SECRET_REQUEST: [u8; 2] = [0, 2];

impl Worker {
    /// Answers a Binding or Shared Secret Request; says whether it is one.
    pub(crate) fn answer_classic_stun(&mut self, now: Now, client: FiveTuple, bytes: &[u8]) -> bool {
        match bytes.first_chunk() {
            Some(&BINDING_REQUEST) => self.answer_binding(now, client, bytes),
            Some(&SHARED_SECRET_REQUEST) => self.answer_shared_secret_request(now, client, bytes),
            _ => false,
        }
    }

    /// Answers a Binding request; says whether it is one.
    fn answer_binding(&mut self, now: Now, client: FiveTuple, bytes: &[u8]) -> bool {
        let Ok(message) = Message::parse(bytes) else { return false };
        let check = self.secrets.check(now.unix, &message);
        if let BindingCheck::Refused(code) = check {
            self.send_unverified(now, client, bytes.len(), &refused(&message, code));
            return true;
        }
        if client.transport != Transport::Udp {
            let Some(mut answer) = stun_server::answer(&message, client.client) else { return false };
            check.sign(&mut answer);
            self.clients.send(client, &answer);
            return true;
        }
        let room = std::mem::take(&mut self.answer);
        let Some(mut answer) = self.discovery.answer(&message, client.client, client.server, room) else {
            return false;
        };
        check.sign(&mut answer.bytes);
        let there = FiveTuple { client: answer.to, server: answer.from, transport: Transport::Udp };
        self.reply_unverified(now, there, bytes.len(), &answer.bytes);
        self.answer = answer.bytes;
        true
    }

    /// Answers a Shared Secret Request; says whether it is one.
    fn answer_shared_secret_request(&mut self, now: Now, client: FiveTuple, bytes: &[u8]) -> bool {
        let Some(message) = Message::parse(bytes).ok().filter(is_shared_secret_request) else { return false };
        let answer = self.secrets.answer(now.unix, &message, client.transport == Transport::Tls);
        self.send_unverified(now, client, bytes.len(), &answer);
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
