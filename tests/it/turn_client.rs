//! The library's TURN client with a blocking UDP socket. `raw_turn` sends what this client never sends.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ginnel::turn_client::{
    LongTermCredentials, Received, TurnClient, TurnClientConfig, TurnError, TurnEvent,
};

use crate::test_server::{PASSWORD, USER};

/// How long a payload may take.
const PAYLOAD: Duration = Duration::from_millis(500);
/// Longer than any wait for a retransmission, and shorter than the time until a renewal.
const IDLE: Duration = Duration::from_secs(60);
/// After this time, half the lifetime of an allocation, everything is renewed.
const RENEWAL: Duration = Duration::from_secs(300);

/// A client that blocks until each request is answered, or has timed out.
pub(crate) struct BlockingTurnClient {
    client: TurnClient,
    socket: UdpSocket,
    /// How far the client's clock is ahead.
    ahead: Duration,
    payloads: VecDeque<Vec<u8>>,
}

/// The settings of a client of the static user.
pub(crate) fn config() -> TurnClientConfig {
    config_of(&(USER.to_owned(), PASSWORD.to_owned()))
}

/// The settings of a client of a user with this name and password.
pub(crate) fn config_of((user, password): &(String, String)) -> TurnClientConfig {
    TurnClientConfig::new(Arc::new(LongTermCredentials::new(user, password)))
}

/// The error code of a response; 0 for a success response.
#[track_caller]
pub(crate) fn response_code<T>(result: Result<T, TurnError>) -> u16 {
    match result {
        Ok(_) => 0,
        Err(TurnError::Refused { code, .. }) => code,
        Err(error) => panic!("{error}"),
    }
}

impl BlockingTurnClient {
    /// Opens a socket at an address of this host, and sends nothing.
    pub(crate) fn new(config: TurnClientConfig, ip: Ipv4Addr, server: SocketAddr) -> Self {
        let socket = UdpSocket::bind((ip, 0)).unwrap();
        socket.connect(server).unwrap();
        let client = TurnClient::new(config, rand::random());
        Self { client, socket, ahead: Duration::ZERO, payloads: VecDeque::new() }
    }

    /// Allocates for the static user from an address of this host.
    pub(crate) fn allocate(ip: Ipv4Addr, server: SocketAddr) -> Self {
        let mut client = Self::new(config(), ip, server);
        client.try_allocate().unwrap();
        client
    }

    /// Allocates; returns the relayed transport address.
    pub(crate) fn try_allocate(&mut self) -> Result<SocketAddr, TurnError> {
        self.client.allocate(self.now());
        self.run(|event| match event {
            TurnEvent::Allocated { relayed, .. } => Some(relayed),
            _ => None,
        })
    }

    /// Returns the relayed transport address.
    pub(crate) fn relayed(&self) -> SocketAddr {
        self.client.relayed_addresses()[0]
    }

    /// Requests a permission for the address of `peer`, even if there is one.
    pub(crate) fn create_permission(&mut self, peer: SocketAddr) -> Result<(), TurnError> {
        self.client.remove_peer(peer);
        self.client.create_permission(self.now(), peer.ip()).unwrap();
        self.run(|event| (event == TurnEvent::PermissionInstalled(peer.ip())).then_some(()))
    }

    /// Binds a channel to `peer`, even if there is one. The first peer gets channel 0x4000, the second one 0x4001.
    pub(crate) fn bind_channel(&mut self, peer: SocketAddr) -> Result<(), TurnError> {
        self.client.remove_peer(peer);
        self.client.bind_channel(self.now(), peer).unwrap();
        self.run(|event| (event == TurnEvent::ChannelBound(peer)).then_some(()))
    }

    /// Advances the client's clock until it refreshes its allocation, permissions and channels; fails if one is refused.
    pub(crate) fn renew(&mut self) -> Result<(), TurnError> {
        self.ahead += RENEWAL;
        self.client.handle_timeout(self.now());
        loop {
            while let Some(event) = self.client.poll_event() {
                failure(event)?;
            }
            if self.client.poll_timeout().is_none_or(|at| at > self.now() + IDLE) {
                return Ok(());
            }
            self.step(Duration::MAX);
        }
    }

    /// Releases the allocation.
    pub(crate) fn release(&mut self) {
        self.client.release(self.now());
        self.run(|event| (event == TurnEvent::Released).then_some(())).unwrap();
    }

    /// Sends a payload to a peer: as ChannelData if a channel is bound, else in a Send indication.
    pub(crate) fn send(&mut self, peer: SocketAddr, payload: &[u8]) {
        let bytes = self.client.encode(peer, payload).unwrap();
        self.socket.send(&bytes).unwrap();
    }

    /// Waits for the next payload, for half a second.
    pub(crate) fn receive(&mut self) -> Option<Vec<u8>> {
        let deadline = Instant::now() + PAYLOAD;
        while self.payloads.is_empty() && Instant::now() < deadline {
            self.step(deadline.saturating_duration_since(Instant::now()));
        }
        self.payloads.pop_front()
    }

    /// Returns the socket, which is connected to the server: for what the library's client does not send or ignores.
    pub(crate) fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Waits for the next datagram of any kind, for half a second.
    pub(crate) fn receive_datagram(&self) -> Option<Vec<u8>> {
        self.socket.set_read_timeout(Some(PAYLOAD)).unwrap();
        let mut buffer = [0; 2048];
        let len = self.socket.recv(&mut buffer).ok()?;
        Some(buffer[..len].to_vec())
    }

    fn now(&self) -> Instant {
        Instant::now() + self.ahead
    }

    /// Runs until `find` finds its event, or a request has failed.
    fn run<T>(&mut self, mut find: impl FnMut(TurnEvent) -> Option<T>) -> Result<T, TurnError> {
        loop {
            while let Some(event) = self.client.poll_event() {
                if let Some(found) = find(failure(event)?) {
                    return Ok(found);
                }
            }
            self.step(Duration::MAX);
        }
    }

    /// Sends what waits, receives one datagram, and handles the client's timeout.
    fn step(&mut self, limit: Duration) {
        while let Some(bytes) = self.client.poll_transmit() {
            // Fails after the port was found closed: a server that starts opens TCP first. The client sends again.
            let _ = self.socket.send(&bytes);
        }
        let due = self.client.poll_timeout().map(|at| at.saturating_duration_since(self.now()));
        let wait = due.map_or(PAYLOAD, |due| due.min(PAYLOAD)).min(limit);
        self.socket.set_read_timeout(Some(wait.max(Duration::from_millis(1)))).unwrap();
        let mut buffer = [0; 2048];
        if let Ok(len) = self.socket.recv(&mut buffer)
            && let Received::Data { payload, .. } = self.client.handle(self.now(), &buffer[..len])
        {
            self.payloads.push_back(buffer[payload].to_vec());
        }
        self.client.handle_timeout(self.now());
    }
}

/// Returns the error of a request that has failed.
fn failure(event: TurnEvent) -> Result<TurnEvent, TurnError> {
    match event {
        TurnEvent::Failed(error) | TurnEvent::PeerFailed(error) => Err(error),
        other => Ok(other),
    }
}
