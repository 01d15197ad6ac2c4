//! The worker threads and what they share.

use super::auth_hook::Lookups;
use super::dtls::{Dtls, Identity};
use super::inbox::Inbox;
use super::neighbours::Inboxes;
use super::tcp_relay::PeerStreams;
use super::worker::{DoorSocket, Parts, Worker};
use super::{Config, Facts, ServerError};
use crate::net::addresses::Addresses;
use crate::net::gate::{Gate, GateConfig};
use crate::net::time;
use crate::net::udp::UdpPort;
use crate::signaling::Handle;
use crate::stun_server::{Discovery, SecretKeys, SharedSecrets};
use crate::turn_server::alternate::Alternates;
use crate::turn_server::auth::Authority;
use crate::turn_server::machine::{Relay, Shared};
use crate::turn_server::mobility::Tickets;
use crate::turn_server::policy::{PeerPolicy, PolicyConfig};
use crate::turn_server::ports::RelayPorts;
use crate::turn_server::quota::Quota;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use std::hash::RandomState;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;
use tokio::sync::mpsc;

/// The sockets of one worker: its own, and handles on others' to send by.
pub(super) type Place = (Vec<DoorSocket>, Vec<UdpPort>);

/// Running threads, and the ways to reach them.
type Crew = (Vec<JoinHandle<()>>, Arc<[Inbox]>);

/// What every worker gets a copy or a share of.
pub(super) struct Staff {
    pub(super) shared: Shared,
    pub(super) identity: Identity,
    pub(super) discovery: Discovery,
    pub(super) secret_keys: Arc<SecretKeys>,
    pub(super) strangers: GateConfig,
    pub(super) signaling: Handle,
    pub(super) lookups: Lookups,
}

impl Staff {
    /// Starts one worker thread a place.
    pub(super) fn hire(
        self,
        places: Vec<Place>,
        seeds: &mut ChaCha20Rng,
        failed: &mpsc::UnboundedSender<ServerError>,
    ) -> io::Result<Crew> {
        let dropped = Arc::new(AtomicU64::new(0));
        let (all_inboxes, peer_streams) = (Inboxes::default(), PeerStreams::default());
        let (mut workers, mut inboxes) = (Vec::new(), Vec::new());
        let count = places.len();
        for (index, (doors, elsewhere)) in places.into_iter().enumerate() {
            let number = u16::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?;
            let shared = Shared { worker: number, ..self.shared.clone() };
            let mut rng = || ChaCha20Rng::from_seed(seeds.random());
            let parts = Parts {
                doors,
                elsewhere,
                discovery: self.discovery.clone(),
                secrets: SharedSecrets::new(Arc::clone(&self.secret_keys), rng()),
                dtls: Dtls::new(time::now(), self.identity.clone(), rng()),
                gate: Gate::new(&self.strangers, count, time::now(), RandomState::new()),
                relay: Relay::new(time::now(), shared, rng()),
                signaling: self.signaling.clone(),
                lookups: self.lookups.of(index, count),
                number,
                inboxes: Arc::clone(&all_inboxes),
                peer_streams: peer_streams.clone(),
                dropped: Arc::clone(&dropped),
            };
            let (worker, inbox) = Worker::new(parts)?;
            inboxes.push(inbox);
            workers.push(spawn(index, worker, failed.clone())?);
        }
        let inboxes: Arc<[Inbox]> = inboxes.into();
        let _ = all_inboxes.set(Arc::clone(&inboxes));
        Ok((workers, inboxes))
    }
}

fn spawn(
    index: usize,
    worker: Worker,
    failed: mpsc::UnboundedSender<ServerError>,
) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(format!("ginnel-{index}")).spawn(move || {
        if let Err(reason) = last_words(|| worker.run()) {
            // The receiver is gone only when the server is.
            let _ = failed.send(ServerError::Worker { index, reason });
        }
    })
}

/// Runs a worker to its end and says why it came, of a panic too: a server does not go on with a part of it missing.
fn last_words(run: impl FnOnce() -> io::Result<()>) -> Result<(), String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(ended) => ended.map_err(|error| error.to_string()),
        Err(panic) => {
            let said = panic.downcast_ref::<&str>().copied();
            let said = said.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
            Err(format!("panicked: {}", said.unwrap_or("without a word")))
        }
    }
}

/// Makes what all workers' relays share.
pub(super) fn shared(
    config: &Config,
    own: &Addresses,
    facts: &Facts,
    (authority, tickets): (Arc<Authority>, Tickets),
) -> Shared {
    let turn = &config.turn;
    let ports = Arc::new(RelayPorts::new(&facts.relay, turn.relay_ports.clone()));
    let second = config.nat_discovery.iter().map(|home| &home.public);
    let policy = PolicyConfig {
        allow_peers: turn.allow_peers.clone(),
        deny_peers: turn.deny_peers.clone(),
        own_addresses: config.public.iter().chain(second).copied().filter(|ip| !ip.is_loopback()).collect(),
        interfaces: Arc::clone(own),
        own_ports: facts.ports(),
    };
    Shared {
        authority,
        alternates: Arc::new(Alternates::new(turn.alternate_server.clone(), turn.alternate_domain.clone())),
        policy: Arc::new(PeerPolicy::new(policy, Arc::clone(&ports))),
        ports,
        reservations: Arc::default(),
        quota: Arc::new(Quota::new(turn.allocations_per_user, turn.max_allocations)),
        addresses: facts.relay.as_slice().into(),
        connections: Arc::default(),
        tickets: Arc::new(tickets),
        worker: 0,
        limits: turn.limits,
        features: turn.features,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_panics_is_reported_like_one_that_fails() {
        assert_eq!(last_words(|| Ok(())), Ok(()));
        assert_eq!(last_words(|| Err(io::Error::other("no poll"))), Err("no poll".to_owned()));
        assert_eq!(last_words(|| panic!("slot {}", 7)), Err("panicked: slot 7".to_owned()));
    }
}
