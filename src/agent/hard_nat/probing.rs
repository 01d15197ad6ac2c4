//! What the easy side sends: one probe to each port.

use super::limits::{MAX_PACKETS, Pacer};
use super::prediction::PredictedPorts;
use rand::Rng;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

/// The probes of the easy side.
#[derive(Debug)]
pub(super) struct Probing {
    pub(super) ip: Ipv4Addr,
    round: Option<u8>,
    /// The last one is next.
    ports: Vec<u16>,
    probed: Vec<u16>,
    pacer: Pacer,
}

impl Probing {
    pub(super) fn new(now: Instant, ip: Ipv4Addr) -> Self {
        Self { ip, round: None, ports: Vec::new(), probed: Vec::new(), pacer: Pacer::new(now) }
    }

    /// Begins a round, unless it has begun before.
    pub(super) fn begin(&mut self, round: u8, ports: PredictedPorts, rng: &mut impl Rng) {
        if self.round.is_none_or(|known| known < round) {
            self.round = Some(round);
            self.ports = ports.to_probe(&self.probed, MAX_PACKETS - self.probed.len(), rng);
            self.ports.reverse();
        }
    }

    /// Returns the next address that is to be probed now.
    pub(super) fn poll(&mut self, now: Instant) -> Option<SocketAddr> {
        let port = *self.ports.last()?;
        self.pacer.take(now).then(|| {
            self.ports.pop();
            self.probed.push(port);
            (self.ip, port).into()
        })
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        (!self.ports.is_empty()).then(|| self.pacer.next())
    }
}
