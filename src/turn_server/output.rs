//! The outputs of the relay: what its driver has to do.

use super::FiveTuple;
use super::auth::UserQuery;
use super::pending_connections::{ConnectionId, UserBandwidth};
use super::relay_port::RelayId;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Whether the sender of a request is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestAuth {
    /// The request's integrity was verified.
    Verified,
    /// The source address may be forged: the response is rate limited and never much longer than the request.
    Unverified {
        /// Length of the request, which may have been received long before.
        request_len: usize,
    },
}

/// One action for the driver of a [`Relay`](super::Relay).
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output {
    /// Send a response or an indication to a client.
    Response {
        /// The client.
        client: FiveTuple,
        /// A whole STUN message.
        bytes: Vec<u8>,
        /// Whether the sender of the request is verified.
        auth: RequestAuth,
    },
    /// Bind a socket to `address` and report the result to [`Relay::handle_relay_opened`](super::Relay::handle_relay_opened).
    OpenRelaySocket {
        /// The relay port.
        relay: RelayId,
        /// The local address.
        address: SocketAddr,
        /// `false` for a UDP socket, `true` for a TCP listener.
        tcp: bool,
    },
    /// Close a relay port's socket.
    CloseRelaySocket {
        /// The relay port.
        relay: RelayId,
    },
    /// Look a user up and report the result to [`Relay::handle_lookup_done`](super::Relay::handle_lookup_done).
    LookUpUser {
        /// The user and the realm.
        query: Arc<UserQuery>,
        /// The IP address of the request, which has answered a challenge.
        from: IpAddr,
        /// Whether an earlier look-up found the user.
        is_known: bool,
    },
    /// Connect to a peer by TCP and report the result to [`Relay::handle_connected`](super::Relay::handle_connected).
    Connect {
        /// The connection's id from now on.
        connection: ConnectionId,
        /// The local address.
        from: SocketAddr,
        /// The peer.
        to: SocketAddr,
    },
    /// Send `response` to a client and relay all bytes between its connection and a peer's from then on (RFC 6062
    /// ConnectionBind).
    BindConnection {
        /// The client's connection.
        client: FiveTuple,
        /// The connection to the peer.
        connection: ConnectionId,
        /// The response to the client's request.
        response: Vec<u8>,
        /// The user's bandwidth limit.
        bandwidth: UserBandwidth,
    },
    /// Close a connection to a peer and the client's connection that is bound to it.
    Disconnect {
        /// The connection.
        connection: ConnectionId,
    },
    /// Pass a request to another worker's relay, which has the client's allocation (RFC 8016), and all later frames of the
    /// client.
    ForwardRequest {
        /// The client.
        client: FiveTuple,
        /// The worker.
        worker: u16,
        /// The request.
        bytes: Vec<u8>,
    },
    /// Stop forwarding a client's frames between workers: its allocation has moved or ended.
    ClientLeft {
        /// The client.
        client: FiveTuple,
    },
}
