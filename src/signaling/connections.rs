//! The WebSockets of a node.

use super::access::Realm;
use super::bus::{Destination, HubPayload};
use super::client_addr::{ClientAddr, ClientRoute, ConnId, ServerPort};
use super::machine::{Hub, Output, RequestOrigin};
use super::nodes::NodeId;
use super::wire::{ErrorCode, Tag};
use crate::clock::Now;
use crate::ids::Pii;
use crate::limits::{Exceeded, Limit, NetworkPrefix, Permit};
use std::net::IpAddr;

/// A WebSocket of this node.
#[derive(Debug)]
pub(super) struct WebSocketClient {
    pub(super) network: NetworkPrefix,
    _permit: Permit<NetworkPrefix>,
    /// The node that its tag belongs to, once it has one.
    pub(super) tag_at: Option<NodeId>,
    pub(super) admin: bool,
    pub(super) realm: Realm,
}

impl Hub {
    /// Handles a new WebSocket. One over a limit is closed at once.
    pub fn handle_websocket_opened(&mut self, _now: Now, conn: ConnId, peer_ip: IpAddr) {
        let network = NetworkPrefix::subscriber(peer_ip);
        if self.websockets.contains_key(&conn) {
            return;
        }
        let permit = match self.connections.acquire(network, 1) {
            Ok(permit) => permit,
            Err(exceeded) => {
                let limit = match exceeded {
                    Exceeded::Key => Limit::SignalingConnectionsPerNetwork,
                    Exceeded::Total => Limit::SignalingConnections,
                };
                limit.reached(self.connections.max(exceeded));
                tracing::debug!(ip = %Pii(peer_ip), limit = limit.name(), "too many connections");
                self.outputs.push_back(Output::Refuse { conn, limit });
                return;
            }
        };
        let web =
            WebSocketClient { network, _permit: permit, tag_at: None, admin: false, realm: Realm::default() };
        self.websockets.insert(conn, web);
    }

    /// Handles a WebSocket text.
    pub fn handle_websocket_text(&mut self, now: Now, conn: ConnId, text: &str) {
        if let Some(network) = self.websockets.get(&conn).map(|web| web.network) {
            let route = ClientRoute::websocket(self.nodes.own(), conn);
            let (port, size) = (ServerPort::Main, text.len());
            let origin = RequestOrigin { now, route, port, network, size, about: 0, max_len: 0 };
            self.handle_bytes(origin, text.as_bytes());
            self.send_presence_changes(now.mono);
        }
    }

    /// Handles the end of a WebSocket: its tag is offline at once (S0-A23).
    pub fn handle_websocket_closed(&mut self, now: Now, conn: ConnId) {
        self.close_websocket(now, conn);
        self.send_presence_changes(now.mono);
    }

    pub(super) fn close_websocket(&mut self, now: Now, conn: ConnId) {
        let Some(web) = self.websockets.remove(&conn) else { return };
        self.watches.forget(conn);
        let addr = ClientAddr::WebSocket(conn);
        match web.tag_at.filter(|at| *at != self.nodes.own()) {
            Some(at) => self.publish(Destination::Node(at), HubPayload::ClientGone { addr }),
            None => self.remove_client(now, addr),
        }
    }

    /// Closes a WebSocket of this node.
    pub(super) fn disconnect(&mut self, now: Now, conn: ConnId) {
        self.close_websocket(now, conn);
        self.outputs.push_back(Output::Close { conn });
    }

    /// Removes a client whose connection has ended, and ends its calls.
    pub(super) fn remove_client(&mut self, now: Now, addr: ClientAddr) {
        let Some(client) = self.registry.remove_addr(addr) else { return };
        let Some(tag) = client.tag() else { return };
        for at in client.called.iter() {
            self.publish(Destination::Node(at), HubPayload::CallerOffline { tag: tag.clone(), addr });
        }
        self.fail_calls(now, &tag, addr);
    }

    pub(super) fn fail_calls(&mut self, now: Now, tag: &Tag, addr: ClientAddr) {
        for id in self.calls.by_tag(tag) {
            self.with_call(now.mono, id, |call, _| {
                if call.role_of(addr).is_some() {
                    call.fail(ErrorCode::NotOnline);
                }
            });
        }
    }
}
