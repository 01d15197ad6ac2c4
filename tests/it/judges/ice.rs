//! ICE agents of others against [`ginnel::ice`]. In this file `is`, the agent of str0m, in one thread with a virtual clock: both roles, trickle,
//! restart, a change of path. In the folder those that run in real time.

mod aioice;
mod chromium;
mod driver;
mod libnice;
mod node;
mod process;
mod rice;
mod webrtc_ice;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ginnel::ice::{Candidate, CandidateTransport, IceAgent, IceConfig, IceCredentials, IceRole, IceState};
use is::stun::{StunMessage, StunPacket};
use is::{IceAgentEvent, IceCreds};

/// One way.
const DELAY: Duration = Duration::from_millis(20);
const OURS: [&str; 2] = ["192.0.2.1:4000", "192.0.2.3:4000"];
const THEIRS: &str = "192.0.2.2:5000";

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A datagram: when it arrives, whether at our agent, destination, source, bytes.
type Packet = (Instant, bool, SocketAddr, SocketAddr, Vec<u8>);

struct Pair {
    ours: IceAgent,
    theirs: is::IceAgent,
    now: Instant,
    packets: Vec<Packet>,
    /// The local addresses of our agent whose datagrams are lost.
    lost: Vec<SocketAddr>,
    /// What their agent sends data on: local and remote address.
    nominated: Option<(SocketAddr, SocketAddr)>,
}

impl Pair {
    fn new(role: IceRole, seed: u8) -> Self {
        let now = Instant::now();
        let mut config = IceConfig::new(role);
        config.renomination = false;
        let mut ours = IceAgent::new(config, [seed; 32]);
        let mut theirs = is::IceAgent::new(IceCreds::new());
        theirs.set_controlling(role == IceRole::Controlled);
        for (at, text) in OURS.iter().enumerate() {
            let candidate =
                Candidate::host(CandidateTransport::Udp, address(text), 65_535 - 1000 * at as u16);
            ours.add_local_candidate(now, candidate);
        }
        // Without a first call it never asks for another one.
        theirs.handle_timeout(now);
        theirs.add_local_candidate(is::Candidate::host(address(THEIRS), "udp").unwrap());
        Self { ours, theirs, now, packets: Vec::new(), lost: Vec::new(), nominated: None }
    }

    fn signal(&mut self) {
        self.signal_ours();
        self.signal_theirs();
    }

    fn signal_ours(&mut self) {
        let credentials = self.ours.local_credentials();
        let (ufrag, pass) = (credentials.ufrag().to_owned(), credentials.password().to_owned());
        self.theirs.set_remote_credentials(IceCreds { ufrag, pass });
        for candidate in self.ours.local_candidates() {
            self.theirs.add_remote_candidate(is::Candidate::from_sdp_string(&candidate.to_string()).unwrap());
        }
    }

    fn signal_theirs(&mut self) {
        let IceCreds { ufrag, pass } = self.theirs.local_credentials().clone();
        self.ours.set_remote_credentials(self.now, IceCredentials::new(&ufrag, &pass).unwrap());
        let texts: Vec<String> =
            self.theirs.local_candidates().map(|candidate| candidate.to_sdp_string()).collect();
        for text in texts {
            self.ours.add_remote_candidate(self.now, text.parse().unwrap());
        }
    }

    fn step(&mut self) {
        while let Some(transmit) = self.ours.poll_transmit() {
            if !self.lost.contains(&transmit.local) {
                let packet = (self.now + DELAY, false, transmit.remote, transmit.local, transmit.bytes);
                self.packets.push(packet);
            }
        }
        while let Some(transmit) = self.theirs.poll_transmit() {
            if !self.lost.contains(&transmit.destination) {
                let bytes = transmit.contents.to_vec();
                self.packets.push((self.now + DELAY, true, transmit.destination, transmit.source, bytes));
            }
        }
        while self.ours.poll_event().is_some() {}
        while let Some(event) = self.theirs.poll_event() {
            if let IceAgentEvent::NominatedSend { source, destination, .. } = event {
                self.nominated = Some((source, destination));
            }
        }
        self.now += Duration::from_millis(1);
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.packets).into_iter().partition(|packet| packet.0 <= self.now);
        self.packets = later;
        for (_, is_ours, to, from, bytes) in due {
            if is_ours {
                self.ours.handle_message(self.now, to, from, &bytes);
            } else {
                let message = StunMessage::parse(&bytes).unwrap();
                let proto = "udp".try_into().unwrap();
                let packet = StunPacket { proto, source: from, destination: to, message };
                assert!(self.theirs.handle_packet(self.now, packet), "their agent refuses a message");
            }
        }
        if self.ours.poll_timeout().is_some_and(|at| at <= self.now) {
            self.ours.handle_timeout(self.now);
        }
        if self.theirs.poll_timeout().is_some_and(|at| at <= self.now) {
            self.theirs.handle_timeout(self.now);
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    /// Whether both send on the same pair, with this local address of ours.
    fn is_agreed_on(&self, ours: &str) -> bool {
        let selected = self.ours.selected().map(|pair| (pair.remote.address, pair.local.base));
        self.ours.state() == IceState::Connected
            && selected == Some((address(THEIRS), address(ours)))
            && self.nominated == selected
    }
}

const ROLES: [IceRole; 2] = [IceRole::Controlling, IceRole::Controlled];

#[test]
fn the_agent_of_str0m_connects_in_both_roles() {
    for role in ROLES {
        for seed in 0..10 {
            let mut pair = Pair::new(role, seed);
            pair.signal();
            pair.run(Duration::from_secs(3));
            assert!(
                pair.is_agreed_on(OURS[0]),
                "{role:?} {seed}: {:?} {:?}",
                pair.ours.selected(),
                pair.nominated
            );
            // For a while: consent on both sides.
            pair.run(Duration::from_secs(120));
            assert!(pair.is_agreed_on(OURS[0]) && pair.theirs.state().is_connected(), "{role:?} {seed}");
        }
    }
}

#[test]
fn the_agent_of_str0m_learns_of_ours_by_its_checks() {
    for role in ROLES {
        let mut pair = Pair::new(role, 1);
        pair.signal_theirs();
        pair.run(Duration::from_millis(200));
        pair.signal_ours();
        pair.run(Duration::from_secs(3));
        assert!(pair.is_agreed_on(OURS[0]), "{role:?}: {:?} {:?}", pair.ours.selected(), pair.nominated);
    }
}

#[test]
fn the_agent_of_str0m_follows_ours_to_another_path() {
    let mut pair = Pair::new(IceRole::Controlling, 1);
    pair.signal();
    pair.run(Duration::from_secs(3));
    assert!(pair.is_agreed_on(OURS[0]));
    pair.lost.push(address(OURS[0]));
    // Without data the silence is noticed at the next check for consent.
    pair.run(Duration::from_secs(8));
    assert_eq!(pair.ours.selected().unwrap().local.base, address(OURS[1]));
    // It leaves a dead pair after 15 to 24 s.
    pair.run(Duration::from_secs(30));
    assert!(pair.is_agreed_on(OURS[1]), "{:?} {:?}", pair.ours.selected(), pair.nominated);
}

#[test]
fn the_agent_of_str0m_restarts_with_ours() {
    for role in ROLES {
        let mut pair = Pair::new(role, 1);
        pair.signal();
        pair.run(Duration::from_secs(3));
        let now = pair.now;
        pair.ours.restart(now);
        pair.theirs.ice_restart(IceCreds::new(), true);
        pair.signal();
        pair.run(Duration::from_secs(3));
        assert!(pair.is_agreed_on(OURS[0]), "{role:?}: {:?} {:?}", pair.ours.selected(), pair.nominated);
    }
}
