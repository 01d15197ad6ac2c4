//! How the relays are set up, and what carries out what they say.

use super::*;

pub(super) fn shared(setup: u8, more: u8) -> Shared {
    let own = vec![RELAY_V4, RELAY_V6];
    let addresses: Vec<_> = own.iter().map(|ip| RelayAddress { local: *ip, advertised: *ip }).collect();
    let ports = Arc::new(RelayPorts::new(&addresses, 50_000..=50_000 + u16::from(setup >> 4)));
    let policy = PolicyConfig { own_addresses: own, own_ports: vec![3478], ..Default::default() };
    let limited = |rate: Rate, bit: u8| if more & bit != 0 { rate } else { Rate::bytes(0) };
    let limits = Limits {
        permissions: if more & 1 != 0 { 3 } else { 128 },
        new_peers: limited(Rate::with_burst_time(1, Duration::from_secs(2)), 2),
        allocation_bandwidth: limited(Rate::bytes(BANDWIDTH), 4),
        user_bandwidth: limited(Rate::bytes(BANDWIDTH), 8),
        ..Limits::default()
    };
    Shared {
        authority: Arc::new(authority()),
        alternates: Arc::default(),
        policy: Arc::new(PeerPolicy::new(policy, Arc::clone(&ports))),
        ports,
        reservations: Arc::default(),
        quota: Arc::new(AllocationQuota::new(3, 5)),
        addresses: addresses.into(),
        connections: Arc::default(),
        tickets: Arc::new(MobilityTickets::new(&[6; 32]).unwrap()),
        worker: 0,
        limits,
        features: Features { add_family: setup & 4 != 0, ..Features::default() },
    }
}

pub(super) fn authority() -> Authenticator {
    let md5 = |user| UserKeys { md5: Some(long_term_digest(user, REALM, "pw")), sha256: None };
    let users = USERS[..2].iter().map(|user| ((*user).to_owned(), md5(user))).collect();
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
        let relay = |worker: u16| {
            let seed = ChaCha20Rng::from_seed([7 + worker as u8; 32]);
            Relay::new(now, Shared { worker, ..shared.clone() }, seed)
        };
        Self {
            relays: [relay(0), relay(1)],
            shared,
            now,
            sockets: BTreeMap::new(),
            listeners: BTreeMap::new(),
            links: BTreeMap::new(),
            over: Vec::new(),
            tickets: Vec::new(),
            births: 0,
            passed_on: BTreeMap::new(),
            log: DefaultHasher::new(),
            lives: BTreeMap::new(),
            nonces: HashMap::new(),
            token: None,
            set_aside: Vec::new(),
            refusing: false,
            transactions: 0,
        }
    }

    /// Carries out what the relays say; returns their replies.
    pub(super) fn drain(&mut self) -> Vec<(FiveTuple, Vec<u8>)> {
        let mut replies = Vec::new();
        for worker in [0, 1, 0] {
            while let Some(output) = self.relays[worker].poll_output() {
                format!("{output:?}").hash(&mut self.log);
                self.carry_out(worker, output, &mut replies);
            }
        }
        assert!(self.relays[1].poll_output().is_none());
        replies
    }

    pub(super) fn carry_out(
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
                self.lives.values_mut().for_each(|life| life.addresses.retain(|address| !closed(address)));
            }
            Output::LookUpUser { question, .. } => {
                let keys = UserKeys { md5: Some(long_term_digest(USERS[2], REALM, "pw")), sha256: None };
                let verdict = match question.user == USERS[2] {
                    true => LookupResult::Known { keys, expires_unix: None },
                    false => LookupResult::Unknown,
                };
                self.shared.authority.learn(now, Arc::clone(&question), verdict);
                self.relays[worker].handle_lookup_done(now, &question, true);
            }
            Output::Connect { connection, from, to } => {
                assert!(self.listeners.values().any(|own| *own == from) || self.refusing);
                assert!(!to.ip().is_loopback() && to.port() != 0, "a denied peer");
                self.link(connection, worker, Stage::Connecting);
            }
            Output::BindConnection { client, connection, response: reply, .. } => {
                let link = self.links.get_mut(&connection).expect("a connection that is there");
                assert_eq!(link.stage, Stage::Offered, "joined once");
                link.stage = Stage::Joined;
                replies.push((client, reply));
            }
            Output::Disconnect { connection } => {
                assert!(self.links.remove(&connection).is_some(), "a connection ends once");
                self.over.push(connection);
            }
            Output::ForwardRequest { client, worker, bytes } => {
                let number = client_of(client);
                self.passed_on.insert(number, worker.into());
                assert!(
                    self.relays[usize::from(worker)].handle_client(now, client, IP_HEADER, &bytes).is_none()
                );
            }
            Output::ClientLeft { client } => {
                let number = client_of(client);
                if self.passed_on.get(&number) == Some(&worker) {
                    self.passed_on.remove(&number);
                }
            }
        }
    }

    /// Notes a connection of whoever has asked, or is told, last.
    pub(super) fn link(&mut self, connection: ConnectionId, worker: usize, stage: Stage) {
        let link = Link { birth: usize::MAX, worker, user: 0, stage, since: self.now.mono };
        assert!(self.links.insert(connection, link).is_none(), "a connection's name is its own");
    }

    /// The worker that serves a client.
    pub(super) fn worker(&self, client: u8) -> usize {
        self.passed_on.get(&client).copied().unwrap_or(usize::from(client) % WORKERS)
    }

    pub(super) fn client_says(&mut self, client: u8, bytes: &[u8]) -> Option<(Socket, SocketAddr, Vec<u8>)> {
        let worker = self.worker(client);
        let forward = self.relays[worker].handle_client(self.now, tuple(client), IP_HEADER, bytes);
        forward.map(|to| (to.relay, to.peer, to.payload)).hash(&mut self.log);
        let forward = forward?;
        let ToPeer { relay, peer, payload, .. } = forward;
        let from = self.sockets.get(&(worker, relay)).copied();
        let within = match self.relays[worker].route(self.now, forward) {
            Forward::Peer(out) => {
                assert_eq!(out, forward);
                None
            }
            Forward::LocalClient(within) => Some(within),
            Forward::Drop => None,
            Forward::OtherWorker(InternalPacket { worker, route, marks, payload }) => {
                self.relays[usize::from(worker)].handle_internal(self.now, route, marks, payload)
            }
        };
        within.as_ref().map(|to| (to.client, to.header.as_bytes(), to.payload)).hash(&mut self.log);
        if let Some((receiver, _)) = frame(within) {
            self.assert_owned(receiver, peer);
            self.assert_permitted(receiver, from.expect("the port is open"));
            self.spend(receiver, payload.len());
        }
        Some(((worker, relay), peer, payload.to_vec()))
    }

    pub(super) fn peer_says(
        &mut self,
        (worker, relay): Socket,
        peer: SocketAddr,
        payload: &[u8],
    ) -> Option<(u8, Vec<u8>)> {
        let forward = self.relays[worker].handle_peer(self.now, relay, peer, IP_HEADER, payload);
        forward.map(|to| (to.client, to.header.as_bytes().to_vec(), to.payload)).hash(&mut self.log);
        frame(forward)
    }

    pub(super) fn peer_refuses(
        &mut self,
        (worker, relay): Socket,
        peer: SocketAddr,
    ) -> Option<(u8, Vec<u8>)> {
        let error = IcmpError { peer, kind: 3, code: 3, data: [0; 4] };
        frame(self.relays[worker].handle_peer_error(self.now, relay, error))
    }
}
