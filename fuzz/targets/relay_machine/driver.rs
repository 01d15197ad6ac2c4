//! The relays, and the driver that carries out their outputs.

use super::*;

pub(super) fn shared(setup: u8, more: u8) -> SharedState {
    let own = vec![RELAY_V4, RELAY_V6];
    let addresses: Vec<_> = own.iter().map(|ip| RelayAddress { local: *ip, advertised: *ip }).collect();
    let limited = |rate: Rate, bit: u8| if more & bit != 0 { rate } else { Rate::bytes(0) };
    let limits = AllocationLimits {
        permissions: if more & 1 != 0 { 3 } else { 128 },
        new_peers: limited(Rate::with_burst_time(1, Duration::from_secs(2)), 2),
        allocation_bandwidth: limited(Rate::bytes(BANDWIDTH), 4),
        user_bandwidth: limited(Rate::bytes(BANDWIDTH), 8),
        ..AllocationLimits::default()
    };
    let mut config = RelayConfig::new(authenticator(), &addresses);
    config.ports = 50_000..=50_000 + u16::from(setup >> 4);
    config.policy.own_addresses = own;
    config.policy.own_ports = vec![3478];
    (config.allocations_per_user, config.max_allocations) = (3, 5);
    config.limits = limits;
    config.features.add_family = setup & 4 != 0;
    SharedState::new(config, [6; 32])
}

pub(super) fn authenticator() -> Authenticator {
    let keys = |user: usize| UserKeys { md5: Some(DIGESTS[user]), sha256: None };
    let users = (0..2).map(|user| (USERS[user].to_owned(), keys(user))).collect();
    let realm = RealmCredentials { name: REALM.to_owned(), users, ..RealmCredentials::default() };
    let (known, unknown) = (Duration::from_secs(60), Duration::from_secs(10));
    let lookup = Some(LookupCacheConfig { known, unknown, entries: 4 });
    Authenticator::with(
        AuthenticatorConfig { realms: vec![realm], lookup, ..AuthenticatorConfig::default() },
        &[5; 32],
    )
}

impl World {
    pub(super) fn new(now: Now, setup: u8, more: u8) -> Self {
        let shared = shared(setup, more);
        let relay = |worker: u16| Relay::with_shared(now, shared.for_worker(worker), [7 + worker as u8; 32]);
        Self {
            relays: [relay(0), relay(1)],
            shared,
            now,
            sockets: BTreeMap::new(),
            listeners: BTreeMap::new(),
            connections: BTreeMap::new(),
            closed: Vec::new(),
            tickets: Vec::new(),
            allocated: 0,
            forwarded: BTreeMap::new(),
            log: DefaultHasher::new(),
            granted: BTreeMap::new(),
            nonces: HashMap::new(),
            token: None,
            reservations: Vec::new(),
            refusing: false,
            transactions: 0,
        }
    }

    /// Carries out the relays' outputs; returns their responses.
    pub(super) fn drain(&mut self) -> Vec<(FiveTuple, Vec<u8>)> {
        let mut replies = Vec::new();
        for worker in [0, 1, 0] {
            while let Some(output) = self.relays[worker].poll_output() {
                self.log_output(&output);
                self.handle_output(worker, output, &mut replies);
            }
        }
        assert!(self.relays[1].poll_output().is_none());
        replies
    }

    /// Adds an output to the digest. Most bytes are hashed as they are: formatting them is slow.
    fn log_output(&mut self, output: &Output) {
        let log = &mut self.log;
        match output {
            Output::Response { client, bytes, auth } => (client, bytes, format!("{auth:?}")).hash(log),
            Output::ForwardRequest { client, worker, bytes } => (client, worker, bytes).hash(log),
            other => format!("{other:?}").hash(log),
        }
    }

    pub(super) fn handle_output(
        &mut self,
        worker: usize,
        output: Output,
        replies: &mut Vec<(FiveTuple, Vec<u8>)>,
    ) {
        let now = self.now;
        match output {
            Output::Response { client, bytes, .. } => replies.push((client, bytes)),
            Output::OpenRelaySocket { relay, address, tcp } => {
                assert!(self.shared.ports.is_leased(address), "a socket needs a leased port");
                let mut open = self.sockets.values().chain(self.listeners.values());
                assert!(open.all(|open| *open != address), "no port is opened twice");
                if !self.refusing {
                    let kind = if tcp { &mut self.listeners } else { &mut self.sockets };
                    kind.insert((worker, relay), address);
                }
                let opened = match (self.refusing, relay % 2) {
                    (false, _) => Ok(()),
                    (true, 0) => Err(RelaySocketError::PortInUse),
                    (true, _) => Err(RelaySocketError::NoSocket),
                };
                self.relays[worker].handle_relay_opened(now, relay, opened);
            }
            Output::CloseRelaySocket { relay } => {
                let socket = (worker, relay);
                let closed = self.sockets.remove(&socket).or_else(|| self.listeners.remove(&socket));
                let closed = |address: &SocketAddr| Some(*address) == closed;
                self.granted
                    .values_mut()
                    .for_each(|allocation| allocation.addresses.retain(|address| !closed(address)));
            }
            Output::LookUpUser { query: question, .. } => {
                let keys = UserKeys { md5: Some(DIGESTS[2]), sha256: None };
                let verdict = match question.user == USERS[2] {
                    true => LookupResult::Known { keys, expires_unix: None },
                    false => LookupResult::Unknown,
                };
                self.shared.authenticator.store_lookup(now, Arc::clone(&question), verdict);
                self.relays[worker].handle_lookup_done(now, &question, true);
            }
            Output::Connect { connection, from, to } => {
                assert!(self.listeners.values().any(|own| *own == from) || self.refusing);
                assert!(!to.ip().is_loopback() && to.port() != 0, "a denied peer");
                self.add_connection(connection, worker, Stage::Connecting);
            }
            Output::BindConnection { client, connection, response: reply, .. } => {
                let link = self.connections.get_mut(&connection).expect("a connection that is there");
                assert_eq!(link.stage, Stage::Offered, "joined once");
                link.stage = Stage::Joined;
                replies.push((client, reply));
            }
            Output::Disconnect { connection } => {
                assert!(self.connections.remove(&connection).is_some(), "a connection ends once");
                self.closed.push(connection);
            }
            Output::ForwardRequest { client, worker, bytes } => {
                let number = client_of(client);
                self.forwarded.insert(number, worker.into());
                let frame = ClientFrame::parse(&bytes).expect("a request is sound");
                let forward = self.relays[usize::from(worker)].handle_client(now, client, IP_HEADER, frame);
                assert!(matches!(forward, Forward::Control));
            }
            Output::ClientLeft { client } => {
                let number = client_of(client);
                if self.forwarded.get(&number) == Some(&worker) {
                    self.forwarded.remove(&number);
                }
            }
            other => unreachable!("an output that the model does not know: {other:?}"),
        }
    }

    /// Adds a connection; [`World::assign_connection`] sets its client.
    pub(super) fn add_connection(&mut self, connection: ConnectionId, worker: usize, stage: Stage) {
        let link = PeerConnection { id: usize::MAX, worker, user: 0, stage, since: self.now.mono };
        assert!(self.connections.insert(connection, link).is_none(), "a connection's name is its own");
    }

    /// The worker that serves a client.
    pub(super) fn worker(&self, client: u8) -> usize {
        self.forwarded.get(&client).copied().unwrap_or(usize::from(client) % WORKERS)
    }

    /// Handles what a client sends; returns the relay port, the peer and the payload that remove_client, or stay within the server.
    pub(super) fn send_frame(&mut self, client: u8, bytes: &[u8]) -> Option<(Socket, SocketAddr, Vec<u8>)> {
        let worker = self.worker(client);
        let frame = ClientFrame::parse(bytes)?;
        let before = self.relays[worker].counters().bytes_to_peers;
        let forward = self.relays[worker].handle_client(self.now, tuple(client), IP_HEADER, frame);
        forward.hash(&mut self.log);
        let (route, to, payload) = match forward {
            Forward::Peer(ToPeer { relay, peer, payload, .. }) => {
                return Some(((worker, relay), peer, bytes[payload].to_vec()));
            }
            Forward::LocalClient(to) => (None, Some(to), bytes),
            Forward::OtherWorker(InternalPacket { worker, route, ip_header, payload }) => {
                let payload = &bytes[payload];
                let to =
                    self.relays[usize::from(worker)].handle_internal(self.now, route, ip_header, payload);
                (Some(route), to.ok(), payload)
            }
            Forward::Drop(_) => {
                // The sender is charged even where the receiver does not permit it.
                let charged = self.relays[worker].counters().bytes_to_peers - before;
                if charged > 0 {
                    self.charge(client, charged as usize);
                }
                return None;
            }
            _ => return None,
        };
        to.hash(&mut self.log);
        let delivered = to.map(|to| (frame_of(&to, payload), to.payload));
        let (from, peer) = match (&delivered, route) {
            (_, Some(route)) => (route.from, route.to),
            (Some(((receiver, data), _)), None) => {
                (self.sender_in(*receiver, data), self.destination(client, bytes)?)
            }
            (None, None) => return None,
        };
        if let Some(((receiver, _), range)) = &delivered {
            self.assert_owned(*receiver, peer);
            self.assert_permitted(*receiver, from);
            self.charge(*receiver, range.len());
        }
        let relay = *self.sockets.iter().find(|(_, address)| **address == from).expect("the port is open").0;
        let sent = delivered.map_or_else(|| payload.to_vec(), |(_, range)| payload[range].to_vec());
        Some((relay, peer, sent))
    }

    /// Returns the sender of data as its receiver sees it.
    fn sender_in(&self, receiver: u8, data: &[u8]) -> SocketAddr {
        match parse_channel_data(data) {
            Some((number, _)) => self.granted[&receiver].channels[&number].0,
            None => {
                let message = Message::parse(data).expect("a Data indication is sound");
                message.unverified().xor_address(attr::XOR_PEER_ADDRESS).unwrap().expect("it names the peer")
            }
        }
    }

    /// Returns the peer of a client's frame.
    fn destination(&self, client: u8, bytes: &[u8]) -> Option<SocketAddr> {
        match ClientFrame::parse(bytes)? {
            ClientFrame::ChannelData(bytes) => {
                let (number, _) = parse_channel_data(bytes)?;
                self.granted.get(&client)?.channels.get(&number).map(|(peer, _)| *peer)
            }
            ClientFrame::Stun(message) => {
                message.unverified().xor_address(attr::XOR_PEER_ADDRESS).ok()?.map(canonical)
            }
        }
    }

    pub(super) fn peer_sends(
        &mut self,
        (worker, relay): Socket,
        peer: SocketAddr,
        payload: &[u8],
    ) -> Option<(u8, Vec<u8>)> {
        let forward = self.relays[worker].handle_peer(self.now, relay, peer, IP_HEADER, payload);
        forward.hash(&mut self.log);
        forward.ok().map(|to| frame_of(&to, payload))
    }

    pub(super) fn peer_refuses(
        &mut self,
        (worker, relay): Socket,
        peer: SocketAddr,
    ) -> Option<(u8, Vec<u8>)> {
        let error = IcmpError { peer, kind: 3, code: 3, data: [0; 4] };
        self.relays[worker].handle_peer_error(self.now, relay, error).map(|to| frame_of(&to, &[]))
    }
}
