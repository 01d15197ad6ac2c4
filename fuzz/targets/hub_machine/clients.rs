//! The clients' actions.

use super::model::{CallRequest, Registration};
use super::{Endpoint, Input, UDP, WEB, World};
use data_encoding::BASE64URL_NOPAD;
use ginnel::internals::signaling::wire::{Proof, Tag};
use ginnel::internals::signaling::{ConnId, NodeId, ServerPort};
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;

const SECRETS: [&str; 2] = ["the first owner's secret", "the second owner's secret"];
/// The number of the latest tags and calls that actions refer to.
const RECENT: usize = 8;
const REVOKED_FOR: u64 = 60;
/// A field that no reader knows and that makes a request long.
static PADDING: LazyLock<String> = LazyLock::new(|| format!(r#","pad":"{}""#, "x".repeat(500)));
/// The key pairs of the owners that have no secret.
static PAIRS: LazyLock<[Ed25519KeyPair; 2]> =
    LazyLock::new(|| [0, 1].map(|key| Ed25519KeyPair::from_seed_unchecked(&[key; 32]).expect("a key")));

impl World {
    /// Returns an endpoint of a client: its signalling socket, its punching socket, or its WebSocket if it has one.
    pub(super) fn endpoint(&self, client: u8, punching: bool) -> Option<Endpoint> {
        match client % (UDP + WEB) {
            client if client < UDP => {
                let port = 1000 + u16::from(client) * 2 + u16::from(punching);
                Some(Endpoint::Udp(([192, 0, 2, 1 + client / 2], port).into()))
            }
            client => self.webs.get(&client).map(|conn| Endpoint::Web(*conn)),
        }
    }

    /// Returns the hub that serves an endpoint.
    pub(super) fn hub_of(&self, endpoint: Endpoint) -> usize {
        let count = self.hubs.len();
        match endpoint {
            Endpoint::Udp(SocketAddr::V4(address)) => usize::from(address.ip().octets()[3]) % count,
            Endpoint::Udp(SocketAddr::V6(_)) => 0,
            Endpoint::Web(conn) => conn as usize % count,
        }
    }

    /// Returns one of the latest tags.
    fn tag(&self, which: u8) -> String {
        let known = self.model.tags.iter().rev().take(RECENT);
        known
            .clone()
            .nth(usize::from(which) % known.len().max(1))
            .cloned()
            .unwrap_or_else(|| "nobody".to_owned())
    }

    /// Returns the client's tag, or a foreign one.
    fn own_tag(&self, client: u8, which: u8) -> String {
        let own = self.endpoint(client, false).and_then(|endpoint| self.model.tag_of.get(&endpoint));
        own.filter(|_| which < 0x80).cloned().unwrap_or_else(|| self.tag(which))
    }

    pub(super) fn is_open(&self, endpoint: Endpoint) -> bool {
        match endpoint {
            Endpoint::Udp(_) => true,
            Endpoint::Web(conn) => self.webs.values().any(|open| *open == conn),
        }
    }

    pub(super) fn open(&mut self, client: u8) {
        let client = UDP + client % WEB;
        if self.webs.contains_key(&client) {
            return;
        }
        self.next_conn += 1;
        let (conn, ip) = (self.next_conn, IpAddr::from([198, 51, 100, client]));
        self.webs.insert(client, conn);
        let index = self.hub_of(Endpoint::Web(conn));
        self.hubs[index].handle_websocket_opened(self.now, ConnId(conn), ip);
        self.drain(index, None);
    }

    pub(super) fn close(&mut self, client: u8) {
        if let Some(conn) = self.webs.remove(&(UDP + client % WEB)) {
            self.model.forget(conn);
            let index = self.hub_of(Endpoint::Web(conn));
            self.hubs[index].handle_websocket_closed(self.now, ConnId(conn));
            self.drain(index, None);
        }
    }

    /// Revokes a tag for a minute.
    pub(super) fn revoke(&mut self, which: u8) {
        let (tag, until) = (self.tag(which), self.now.unix + REVOKED_FOR);
        self.revoked.revoke(self.now.unix, &tag, until).expect("room");
        self.model.revoked.insert(tag.clone(), (self.output_number, until));
        let tag = Tag::new(tag).expect("a tag");
        let hub = NodeId::of_tag(&tag, self.hubs.len()).index();
        self.hubs[hub].handle_revoked(self.now, &tag);
        self.drain(hub, None);
    }

    fn send(&mut self, endpoint: Endpoint, port: ServerPort, bytes: &[u8]) {
        let index = self.hub_of(endpoint);
        let hub = &mut self.hubs[index];
        match endpoint {
            Endpoint::Udp(from) => hub.handle_datagram(self.now, port, from, None, bytes),
            Endpoint::Web(conn) => match std::str::from_utf8(bytes) {
                Ok(text) => hub.handle_websocket_text(self.now, ConnId(conn), text),
                Err(_) => return,
            },
        }
        self.drain(index, None);
    }

    /// Sends a request that is long enough for any response.
    pub(super) fn request(&mut self, endpoint: Endpoint, t: i64, params: &Value) -> i64 {
        self.mid += 1;
        // Only a datagram limits the length of its answer.
        let padding = if matches!(endpoint, Endpoint::Udp(_)) { PADDING.as_str() } else { "" };
        let mid = self.mid;
        let bytes = format!(r#"{{"t":{t},"mid":{mid},"params":{params}{padding}}}"#).into_bytes();
        if let Endpoint::Web(conn) = endpoint {
            self.model.unanswered.insert((conn, self.mid));
        }
        self.last = Some((endpoint, bytes.clone()));
        self.send(endpoint, ServerPort::Main, &bytes);
        self.mid
    }

    /// Repeats the last request, as in a retransmission.
    pub(super) fn repeat(&mut self) {
        let Some((endpoint, bytes)) = self.last.clone() else { return };
        if self.is_open(endpoint) {
            self.send(endpoint, ServerPort::Main, &bytes);
        }
    }

    pub(super) fn register(&mut self, client: u8) {
        let Some(endpoint) = self.endpoint(client, false) else { return };
        self.registration(endpoint, Registration { owner: None, epoch: None, is_good: true }, json!({}));
    }

    fn registration(&mut self, endpoint: Endpoint, registration: Registration, mut params: Value) {
        if let Some(epoch) = registration.epoch {
            params["epoch"] = json!(epoch);
        }
        self.model.registrations.insert((endpoint, self.mid + 1), registration);
        self.request(endpoint, 1, &params);
    }

    /// Returns the epoch that an owner shows: none, an older one, the last one, or a newer one.
    fn epoch(&self, owner: u8, which: u8) -> Option<i64> {
        let last = self.model.epochs.get(&owner).copied().unwrap_or(5);
        [None, None, Some(last - 1), Some(last), Some(last + 1)][usize::from(which) % 5]
    }

    /// Registers with a secret.
    pub(super) fn own(&mut self, client: u8, operand: u8) {
        let Some(endpoint) = self.endpoint(client, false) else { return };
        let owner = operand % 2;
        let registration =
            Registration { owner: Some(owner), epoch: self.epoch(owner, operand >> 1), is_good: true };
        self.registration(endpoint, registration, json!({ "secret": SECRETS[usize::from(owner)] }));
    }

    pub(super) fn challenge(&mut self, client: u8) {
        if let Some(endpoint) = self.endpoint(client, false) {
            self.request(endpoint, 5, &json!({}));
        }
    }

    /// Registers with a key, with its own or a foreign nonce, and a right or a wrong signature.
    pub(super) fn prove(&mut self, client: u8, operand: u8) {
        let Some(endpoint) = self.endpoint(client, false) else { return };
        let (key, flaw) = (operand % 2, operand >> 5);
        let mut nonces = self.model.nonces.iter();
        let nonce = if flaw == 6 {
            nonces.find(|(whose, _)| **whose != endpoint)
        } else {
            nonces.find(|(whose, _)| **whose == endpoint)
        };
        let Some((_, nonce)) = nonce else { return };
        let pair = &PAIRS[usize::from(key)];
        let public: [u8; 32] = pair.public_key().as_ref().try_into().expect("32 bytes");
        let owner = SECRETS.len() as u8 + key;
        let epoch = self.epoch(owner, operand >> 1);
        let proof = Proof { public, nonce: nonce.clone(), signature: Vec::new() };
        let signed = if flaw == 7 { Some(1) } else { epoch };
        let signature = pair.sign(proof.text(signed).as_bytes());
        let [public, sig] = [&public[..], signature.as_ref()].map(|bytes| BASE64URL_NOPAD.encode(bytes));
        let params = json!({ "pub": public, "nonce": nonce, "sig": sig });
        self.registration(
            endpoint,
            Registration { owner: Some(owner), epoch, is_good: flaw != 6 && signed == epoch },
            params,
        );
    }

    pub(super) fn heartbeat(&mut self, client: u8, which: u8) {
        if let Some(endpoint) = self.endpoint(client, false) {
            self.request(endpoint, 2, &json!({ "tag": self.own_tag(client, which) }));
        }
    }

    pub(super) fn list(&mut self, client: u8, which: u8) {
        if let Some(endpoint) = self.endpoint(client, false) {
            self.request(endpoint, 3, &json!({ "tag": self.own_tag(client, which) }));
        }
    }

    pub(super) fn call(&mut self, client: u8, own: u8, other: u8) {
        if let Some(endpoint) = self.endpoint(client, true) {
            self.call_between(endpoint, self.own_tag(client, own), self.tag(other));
        }
    }

    pub(super) fn call_between(&mut self, endpoint: Endpoint, own: String, other: String) -> i64 {
        let params = json!({ "tag": own, "rtag": other });
        self.model.call_requests.push(CallRequest {
            endpoint,
            mid: self.mid + 1,
            own,
            other,
            since: self.output_number,
        });
        self.request(endpoint, 4, &params)
    }

    /// Starts or stops watching up to three tags.
    pub(super) fn watch(&mut self, client: u8, which: u8, watch: bool) {
        let Some(endpoint) = self.endpoint(UDP + client % WEB, false) else { return };
        let tags: Vec<String> = (0..which / 64).map(|next| self.tag(which.wrapping_add(next))).collect();
        let params = json!({ "tags": tags, "watch": watch });
        self.model.watches.insert((endpoint, self.mid + 1), (tags, watch));
        self.request(endpoint, 60, &params);
    }

    /// Accepts or refuses a call, from an endpoint that was notified or from another one.
    pub(super) fn answer(&mut self, client: u8, which: u8, refuse: bool) {
        let notices = self.model.notices.iter().rev().take(RECENT);
        let notice = notices.clone().nth(usize::from(which) % notices.len().max(1)).cloned();
        let Some((receiver, mid, token)) = notice else { return };
        let endpoint = if client < 0x80 { Some(receiver) } else { self.endpoint(client, which & 0x80 != 0) };
        let Some(endpoint) = endpoint.filter(|endpoint| self.is_open(*endpoint)) else { return };
        let same_host = match (endpoint, receiver) {
            (Endpoint::Udp(one), Endpoint::Udp(other)) => one.ip() == other.ip(),
            (one, other) => one == other,
        };
        if !same_host {
            // Another host cannot know the `mid`.
            return;
        }
        // The callee may answer from another socket than the one that it was notified on.
        self.model.calls_by_token.entry(token.clone()).or_default().endpoints.insert(endpoint);
        let code = if refuse { 204 } else { 200 };
        let t = if refuse { 51 } else { -51 };
        let message = json!({ "t": t, "mid": mid, "token": token, "code": code });
        self.send(endpoint, ServerPort::Aux, message.to_string().as_bytes());
    }

    /// Trickles, ends a call, or answers t=53, with the token of its own or of another call.
    pub(super) fn send_in_call(&mut self, client: u8, which: u8, what: u8) {
        let calls_by_token = &self.model.calls_by_token;
        let Some((token, call_state)) =
            calls_by_token.iter().nth(usize::from(which) % calls_by_token.len().max(1))
        else {
            return;
        };
        let party =
            call_state.endpoints.iter().nth(usize::from(client) % call_state.endpoints.len().max(1)).copied();
        let endpoint = if what & 32 == 0 { party } else { self.endpoint(client, what & 0x80 != 0) };
        let (Some(endpoint), token) = (endpoint.filter(|endpoint| self.is_open(*endpoint)), token.clone())
        else {
            return;
        };
        self.mid += 1;
        let message = match what % 3 {
            0 => json!({ "t": 54, "mid": self.mid, "token": token, "params": { "cands": ["candidate:1"] } }),
            1 => json!({ "t": 55, "mid": self.mid, "token": token, "params": { "reason": "x" } }),
            _ => {
                json!({ "t": -53, "mid": self.mid, "token": token, "extra": { "punching": what & 64 == 0 } })
            }
        };
        self.send(endpoint, ServerPort::Main, message.to_string().as_bytes());
    }

    pub(super) fn send_garbage(&mut self, client: u8, len: u8, input: &mut Input<'_>) {
        let bytes: Vec<u8> = (0..len % 64).map(|_| input.byte()).collect();
        if let Some(endpoint) = self.endpoint(client, false) {
            self.send(endpoint, ServerPort::Main, &bytes);
        }
    }
}
