//! Carries out what a worker's relay and DTLS sessions return as output: responses, relay sockets, connections to peers, look-ups.

use super::counters::WorkerDropReason;
use super::dtls;
use super::worker::{Worker, register};
use crate::clock::Now;
use crate::net::udp::{BatchUdpSocket, Role, RxBuffers, RxSlice};
use crate::turn_server::{FiveTuple, Output, RelayId, RelaySocketError, RequestAuth, Transport};
use mio::Token;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

impl Worker {
    /// Carries out all output; `received_len` is the length of the datagram that caused it, which limits what an unauthenticated client is
    /// sent.
    pub(super) fn handle_outputs(&mut self, now: Now, received_len: usize, rx: &RxBuffers) {
        loop {
            if self.relay.has_output() {
                // The output may close sockets that queued datagrams leave by.
                self.flush_sends(rx);
                while let Some(output) = self.relay.poll_output() {
                    self.handle_relay_output(now, output);
                }
            }
            match self.clients.dtls.poll_output() {
                None => return,
                Some(dtls::Output::Datagram { client, bytes }) => {
                    self.clients.send_datagram(client, &bytes);
                }
                Some(dtls::Output::Challenge { client, bytes }) => {
                    let client = FiveTuple { transport: Transport::Udp, ..client };
                    self.send_unverified(now, client, received_len, &bytes);
                }
                Some(dtls::Output::Frame { client, bytes }) => {
                    self.handle_frame(now, client, RxSlice::outside(&bytes));
                }
                Some(dtls::Output::Closed { client }) => self.relay.handle_client_gone(client),
            }
        }
    }

    fn handle_relay_output(&mut self, now: Now, output: Output) {
        match output {
            Output::Response { client, bytes, auth: RequestAuth::Unverified { request_len } } => {
                self.send_unverified(now, client, request_len, &bytes);
            }
            Output::Response { client, bytes, auth } => {
                if auth == RequestAuth::Verified {
                    self.clients.mark_authenticated(client);
                }
                self.clients.send(client, &bytes);
            }
            Output::OpenRelaySocket { relay, address, tcp } => {
                let opened =
                    if tcp { self.peer_tcp.listen(relay, address) } else { self.open_relay(relay, address) };
                let opened = opened.map_err(|error| {
                    tracing::debug!(%error, "relay socket not opened");
                    match error.kind() {
                        io::ErrorKind::AddrInUse => RelaySocketError::PortInUse,
                        _ => RelaySocketError::NoSocket,
                    }
                });
                self.relay.handle_relay_opened(now, relay, opened);
            }
            Output::CloseRelaySocket { relay } => {
                if !self.peer_tcp.close(relay)
                    && let Some(socket) = self.relay_sockets.get_mut(relay)
                {
                    *socket = None;
                }
            }
            Output::Connect { connection, from, to } => self.peer_tcp.connect(connection, from, to),
            Output::BindConnection { client, connection, response, bandwidth } => {
                let peer_stream = self.peer_tcp.join(connection, response, bandwidth).map(Box::new);
                self.clients.join(client, peer_stream);
            }
            Output::Disconnect { connection } => self.peer_tcp.disconnect(connection),
            Output::ForwardRequest { client, worker, bytes } => {
                if !self.clients.moved.send_frame(client, worker, &bytes) {
                    self.clients.drops.add(WorkerDropReason::WorkerQueueFull, 1);
                }
            }
            Output::ClientLeft { client } => self.clients.moved.send_left(client),
            Output::LookUpUser { query, from, is_known } => {
                if !self.lookups.enqueue(now, from, (Arc::clone(&query), is_known)) {
                    self.relay.handle_lookup_done(now, &query, false);
                }
            }
        }
    }

    fn open_relay(&mut self, relay: RelayId, address: SocketAddr) -> io::Result<()> {
        let socket = BatchUdpSocket::bind(address, Role::Relay)?;
        register(&self.poll, &socket, Token(self.clients.listeners.len() + relay))?;
        if relay >= self.relay_sockets.len() {
            self.relay_sockets.resize_with(relay + 1, || None);
        }
        self.relay_sockets[relay] = Some(socket);
        Ok(())
    }
}
