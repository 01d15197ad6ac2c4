//! TCP allocations: [RFC 6062](https://www.rfc-editor.org/rfc/rfc6062).
//!
//! A client connects to peers with Connect, receives a ConnectionAttempt for each connection that a peer opens, and binds a connection of its own to
//! each with ConnectionBind. The driver owns the streams.

use super::allocation::{Family, PeerTransport};
use super::denial_counters::PeerOperation;
use super::forward::DropReason;
use super::machine::{AllocationId, Relay, Timer};
use super::output::Output;
use super::pending_connections::ConnectionId;
use super::pending_connections::UserBandwidth;
use super::policy::PeerAddr;
use super::relay_port::RelayId;
use super::requests::Request;
use super::response::{Responder, StunErrorCode};
use crate::clock::Now;
use crate::limits::Limit;
use crate::stun::{Builder, Class, Method, TransactionId, attr};
use rand::Rng;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// How long a peer may take to accept, and a client to bind (RFC 6062 sections 5.2 and 5.3: at least 30 s).
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// Most peer connections of one allocation at a time.
const MAX_CONNECTIONS: usize = 64;

/// A connection to a peer.
#[derive(Debug)]
pub(super) struct PeerConnection {
    pub(super) allocation: AllocationId,
    peer: PeerAddr,
    /// Present until the peer has accepted.
    connecting: Option<Responder>,
}

impl Relay {
    /// Follows [RFC 6062 section 5.2](https://www.rfc-editor.org/rfc/rfc6062#section-5.2).
    pub(super) fn handle_connect(&mut self, now: Now, request: &Request<'_>) -> Result<(), StunErrorCode> {
        let id = self.owned_allocation(now, request)?;
        if self.allocations[id].control.peer_transport != PeerTransport::Tcp {
            return Err(StunErrorCode::BadRequest);
        }
        let at = self.tick_base.ticks(now.mono);
        let peer = request
            .attributes
            .xor_address(attr::XOR_PEER_ADDRESS)
            .ok()
            .flatten()
            .ok_or(StunErrorCode::BadRequest)?;
        let peer = self.authorize_peer(at, id, PeerOperation::Connect, peer)?;
        let ports = &self.shared.ports;
        if ports.is_leased(peer.socket_addr()) && !ports.takes_connections(peer.socket_addr()) {
            // A port that takes only datagrams or waits for its Allocate: another program may listen there.
            return Err(StunErrorCode::Forbidden);
        }
        if peer.port() == 0 {
            return Err(StunErrorCode::BadRequest);
        }
        // RFC 6062 requires this only of earlier Connects. It holds for accepted connections too: TCP has no two connections
        // between the same addresses.
        if self.has_connection(id, peer) {
            return Err(StunErrorCode::ConnectionExists);
        }
        let relay = self.allocations[id].relay_port(Family::of(peer.ip()));
        let relay = relay.ok_or(StunErrorCode::PeerFamilyMismatch)?;
        if !self.allocations[id].takes_new_peer(&self.shared.limits, at) {
            self.counters.new_peers_refused += 1;
            return Err(StunErrorCode::InsufficientCapacity);
        }
        let connection = self.add_connection(id, peer, Some(request.responder.clone()));
        let connection = connection.ok_or(StunErrorCode::InsufficientCapacity)?;
        self.deadlines.set(Timer::Connection(connection), now.mono + CONNECTION_TIMEOUT);
        let from = self.relays[relay].address();
        self.outputs.push_back(Output::Connect { connection, from, to: peer.socket_addr() });
        Ok(())
    }

    /// Handles the result of [`Output::Connect`].
    pub fn handle_connected(&mut self, now: Now, connection: ConnectionId, connected: bool) {
        let Some(peer_connection) = self.connections.get_mut(&connection) else {
            // Timed out meanwhile.
            return self.outputs.push_back(Output::Disconnect { connection });
        };
        let Some(responder) = peer_connection.connecting.take() else { return };
        let id = peer_connection.allocation;
        let client = self.allocations[id].client();
        if !connected {
            self.close_connection(connection);
            return self.respond(client, responder.error(StunErrorCode::ConnectionFailed));
        }
        self.publish_connection(id, connection);
        self.deadlines.set(Timer::Connection(connection), now.mono + CONNECTION_TIMEOUT);
        let bytes =
            responder.success(|builder| builder.attribute(attr::CONNECTION_ID, &connection.to_be_bytes()));
        self.respond(client, bytes);
    }

    /// Handles a connection that a peer has opened to a relayed address
    /// ([RFC 6062 section 5.3](https://www.rfc-editor.org/rfc/rfc6062#section-5.3)). Returns its id, or `None` if it is to be closed.
    pub fn handle_accepted(&mut self, now: Now, relay: RelayId, from: SocketAddr) -> Option<ConnectionId> {
        let peer = self.local_peer(from);
        let port = self.relays.get(relay).filter(|port| port.serves(PeerTransport::Tcp))?;
        let address = port.address();
        let id = port.owner;
        let allocation = self.allocations.get(id)?;
        let at = self.tick_base.ticks(now.mono);
        if !allocation.is_live(at) || !allocation.has_permission(at, peer) {
            self.drops.increment(DropReason::NoPermission);
            return None;
        }
        let client = allocation.client();
        if let Err(denied) = self.shared.policy.check(peer) {
            self.denials.record(at, PeerOperation::Accept, peer, denied);
            return None;
        }
        tracing::debug!(port = address.port(), "a peer connects");
        let connection = self.add_connection(id, peer, None)?;
        self.publish_connection(id, connection);
        self.deadlines.set(Timer::Connection(connection), now.mono + CONNECTION_TIMEOUT);
        let named = self.shared.ports.advertised(peer.socket_addr());
        let id = TransactionId::new(self.rng.random());
        let bytes = Builder::new(Class::Indication, Method::CONNECTION_ATTEMPT, id)
            .attribute(attr::CONNECTION_ID, &connection.to_be_bytes())
            .xor_address(attr::XOR_PEER_ADDRESS, named)
            .finish();
        self.respond(client, bytes);
        Some(connection)
    }

    /// Follows [RFC 6062 section 5.4](https://www.rfc-editor.org/rfc/rfc6062#section-5.4): the client connection that the
    /// request was received on is bound to the peer connection, which may belong to another worker.
    pub(super) fn handle_connection_bind(
        &mut self,
        _: Now,
        request: &Request<'_>,
    ) -> Result<(), StunErrorCode> {
        if !request.client.transport.is_tcp() {
            return Err(StunErrorCode::BadRequest);
        }
        if self.allocation_of(request.client).is_some() {
            return Err(StunErrorCode::BadRequest);
        }
        let connection = request.attributes.u32(attr::CONNECTION_ID).ok_or(StunErrorCode::BadRequest)?;
        let bandwidth =
            self.shared.connections.take(connection, &request.user).ok_or(StunErrorCode::BadRequest)?;
        let response = request.responder.success(|builder| builder);
        self.outputs.push_back(Output::BindConnection {
            client: request.client,
            connection,
            response,
            bandwidth,
        });
        Ok(())
    }

    /// Removes a peer connection that the client or the peer has closed.
    pub fn handle_connection_closed(&mut self, connection: ConnectionId) {
        if let Some(peer_connection) = self.connections.remove(&connection) {
            self.deadlines.clear(Timer::Connection(connection));
            self.shared.connections.remove(connection);
            if let Some(allocation) = self.allocations.get_mut(peer_connection.allocation) {
                allocation.control.connections.retain(|other| *other != connection);
            }
        }
    }

    /// Closes a peer connection that was not accepted or bound in time.
    pub(super) fn connection_timed_out(&mut self, connection: ConnectionId) {
        let Some(peer_connection) = self.connections.get_mut(&connection) else { return };
        if let Some(responder) = peer_connection.connecting.take() {
            let client = self.allocations[peer_connection.allocation].client();
            self.respond(client, responder.error(StunErrorCode::ConnectionFailed));
            self.close_connection(connection);
        } else if self.shared.connections.remove(connection) {
            self.close_connection(connection);
        }
    }

    /// Closes a peer connection, and the client connection that is bound to it.
    pub(super) fn close_connection(&mut self, connection: ConnectionId) {
        self.handle_connection_closed(connection);
        self.outputs.push_back(Output::Disconnect { connection });
    }

    /// Adds a connection that the client may bind; bytes count towards its user's bandwidth.
    fn publish_connection(&self, id: AllocationId, connection: ConnectionId) {
        let allocation = &self.allocations[id];
        let limiter = Arc::clone(&allocation.user_limiter);
        let bandwidth =
            UserBandwidth { limiter, rate: self.shared.limits.user_bandwidth, base: self.tick_base };
        self.shared.connections.insert(connection, Arc::clone(allocation.user()), bandwidth);
    }

    fn has_connection(&self, id: AllocationId, peer: PeerAddr) -> bool {
        self.allocations[id].control.connections.iter().any(|connection| {
            self.connections.get(connection).is_some_and(|peer_connection| peer_connection.peer == peer)
        })
    }

    fn add_connection(
        &mut self,
        allocation: AllocationId,
        peer: PeerAddr,
        connecting: Option<Responder>,
    ) -> Option<ConnectionId> {
        if self.allocations[allocation].control.connections.len() >= MAX_CONNECTIONS {
            Limit::TcpPeersPerAllocation.reached(MAX_CONNECTIONS);
            return None;
        }
        let connection = loop {
            let drawn: ConnectionId = self.rng.random();
            if !self.connections.contains_key(&drawn) && !self.shared.connections.contains(drawn) {
                break drawn;
            }
        };
        self.connections.insert(connection, PeerConnection { allocation, peer, connecting });
        self.allocations[allocation].control.connections.push(connection);
        Some(connection)
    }
}
