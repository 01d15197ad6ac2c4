//! Replies to clients: cached for retransmissions, and limited in length until the client's address is proven.

use super::bus::{Destination, HubPayload};
use super::client_addr::{ClientAddr, ClientRoute, ServerPort};
use super::machine::{Hub, Output, RequestOrigin};
use super::response_cache::RequestKey;
use super::wire::{ErrorCode, MessageType, Response, ResponseBody};

/// The length of the IP and UDP headers, counted on both sides of the comparison with the request.
const HEADERS: usize = 28;
/// The maximum ratio of a reply to its request until the client's address is proven.
const AMPLIFICATION: usize = 3;
/// Requests whose retransmission must not take effect twice (S0-A14). A second heartbeat is harmless.
const ACTS_ONCE: [MessageType; 5] =
    [MessageType::Register, MessageType::List, MessageType::Call, MessageType::Trickle, MessageType::End];
/// The same on a WebSocket: nothing is retransmitted there, but a second call would notify twice.
const ACTS_ONCE_ON_WEB: [MessageType; 1] = [MessageType::Call];

impl Hub {
    /// Answers a request and caches the answer for retransmissions.
    pub(super) fn answer(
        &mut self,
        origin: RequestOrigin,
        t: MessageType,
        mid: Option<i64>,
        answered: Result<ResponseBody, ErrorCode>,
    ) {
        let response = match answered {
            Ok(body) => Response { mid, body },
            Err(code) => {
                self.counters.count_error(code);
                Response::failure(t, mid, code)
            }
        };
        tracing::debug!(?t, ok = is_success(&response), "request");
        let text = response.encode();
        if let Some(id) = origin.request_id(t, mid).filter(|_| !is_refusal(&response, ErrorCode::TooMany)) {
            self.responses.insert(id, &text, origin.now.mono);
        }
        self.reply(origin, &text);
        if let ResponseBody::Registered { tag, .. } = &response.body {
            self.counters.registrations += 1;
            for id in self.calls.by_tag(tag) {
                self.with_call(origin.now.mono, id, |call, _| call.notify_again(tag, origin.route));
            }
        }
    }

    /// Answers a retransmission from the cache; returns whether it was one.
    pub(super) fn answer_again(&mut self, origin: RequestOrigin, t: MessageType, mid: Option<i64>) -> bool {
        let text = origin.request_id(t, mid).and_then(|id| self.responses.get(id, origin.now.mono));
        if let Some(text) = &text {
            self.reply(origin, text);
        }
        text.is_some()
    }

    /// Sends a message to a client, by way of the node that the client is connected to.
    pub(super) fn send(&mut self, route: ClientRoute, port: ServerPort, text: &str) {
        if route.node != self.nodes.own() {
            let deliver = HubPayload::Deliver { route, port, text: text.to_owned() };
            return self.publish(Destination::Node(route.node), deliver);
        }
        match route.addr {
            ClientAddr::Udp(to) => {
                let payload = text.as_bytes().to_vec();
                self.outputs.push_back(Output::Datagram { port, to, from_ip: route.local_ip, payload });
            }
            ClientAddr::WebSocket(conn) if self.websockets.contains_key(&conn) => {
                self.outputs.push_back(Output::Text { conn, text: text.to_owned() });
            }
            // The WebSocket has been closed in the meantime.
            ClientAddr::WebSocket(_) => {}
        }
    }

    pub(super) fn fail(&mut self, origin: RequestOrigin, t: MessageType, mid: Option<i64>, code: ErrorCode) {
        self.counters.count_error(code);
        self.reply(origin, &Response::failure(t, mid, code).encode());
    }

    /// Answers from the port that received the request, unless the answer is too long for the origin.
    fn reply(&mut self, origin: RequestOrigin, text: &str) {
        if text.len() <= self.max_len(origin) {
            self.send(origin.route, origin.port, text);
        }
    }

    /// Returns the maximum length of a reply: three times the request until the address is proven, against amplification.
    pub(super) fn max_len(&self, origin: RequestOrigin) -> usize {
        let max_len = origin.route.max_len();
        let is_web = matches!(origin.route.addr, ClientAddr::WebSocket(_));
        if is_web || self.registry.by_addr(origin.route.addr).is_some_and(|client| client.proven) {
            return max_len;
        }
        max_len.min(AMPLIFICATION * (origin.size + HEADERS) - HEADERS).max(origin.max_len)
    }
}

impl RequestOrigin {
    /// Returns the id of a request that must not take effect twice.
    fn request_id(&self, t: MessageType, mid: Option<i64>) -> Option<RequestKey> {
        let once = match self.route.addr {
            ClientAddr::Udp(_) => &ACTS_ONCE[..],
            ClientAddr::WebSocket(_) => &ACTS_ONCE_ON_WEB,
        };
        mid.filter(|_| once.contains(&t)).map(|mid| (self.route.addr, t, mid, self.about))
    }
}

fn is_success(response: &Response) -> bool {
    !matches!(response.body, ResponseBody::Failed { .. })
}

fn is_refusal(response: &Response, with: ErrorCode) -> bool {
    matches!(response.body, ResponseBody::Failed { code, .. } if code == with)
}
