//! A worker's responses to Binding requests and, for RFC 3489, to Shared Secret Requests.

use super::worker::Worker;
use crate::clock::Now;
use crate::stun::{Class, Message, Method};
use crate::stun_server::shared_secret::{is_shared_secret_request, refused};
use crate::stun_server::{self, BindingCheck};
use crate::turn_server::{FiveTuple, Transport};

impl Worker {
    /// Responds to a Binding request or a Shared Secret Request; returns `false` for other messages.
    pub(super) fn answer_binding_request(
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
            let Some(mut response) = stun_server::respond(message, client.client) else { return false };
            check.sign(&mut response);
            self.clients.send(client, &response);
            return true;
        }
        let buffer = std::mem::take(&mut self.binding_buffer);
        let Some(mut response) = self.discovery.respond(message, client.client, client.server, buffer) else {
            return false;
        };
        check.sign(&mut response.bytes);
        let to = FiveTuple { client: response.to, server: response.from, transport: Transport::Udp };
        self.send_unverified(now, to, request_len, &response.bytes);
        self.binding_buffer = response.bytes;
        true
    }

    fn answer_shared_secret_request(&mut self, now: Now, client: FiveTuple, message: &Message<'_>) -> bool {
        if !is_shared_secret_request(message) {
            return false;
        }
        let response = self.secrets.answer(now.unix, message, client.transport == Transport::Tls);
        self.send_unverified(now, client, message.as_bytes().len(), &response);
        true
    }
}
