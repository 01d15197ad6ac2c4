//! Requests to the server from fresh sockets, whose mappings tell where the next ones may be.

use super::prediction::SAMPLES;
use crate::agent::nat;
use rand::Rng;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Waits after the requests to the server, and when those that were answered must do.
const ASK_INTERVAL: Duration = Duration::from_millis(150);
const ASK_TIME: Duration = Duration::from_millis(900);

/// The requests of [`SAMPLES`] sockets.
#[derive(Debug)]
pub(super) struct Sampling {
    /// Transaction ids and answers by socket.
    asked: Vec<([u8; 12], Option<SocketAddr>)>,
    next: Instant,
    end: Instant,
}

impl Sampling {
    pub(super) fn new(now: Instant, rng: &mut impl Rng) -> Self {
        let asked = (0..SAMPLES).map(|_| (rng.random(), None)).collect();
        Self { asked, next: now, end: now + ASK_TIME }
    }

    /// Handles a message of the server that arrived at a socket.
    pub(super) fn handle(&mut self, socket: usize, bytes: &[u8]) {
        if let Some((id, answer)) = self.asked.get_mut(socket) {
            *answer = answer.or(nat::binding_response(bytes, *id));
        }
    }

    /// Returns the mappings, once all are known or the time is over.
    pub(super) fn conclude(&self, now: Instant) -> Option<Vec<SocketAddr>> {
        let samples: Vec<SocketAddr> = self.asked.iter().filter_map(|(_, answer)| *answer).collect();
        (samples.len() == SAMPLES || self.end <= now).then_some(samples)
    }

    /// Returns the requests that are due, and their sockets.
    pub(super) fn poll(&mut self, now: Instant) -> Vec<(usize, Vec<u8>)> {
        if now < self.next {
            return Vec::new();
        }
        self.next = now + ASK_INTERVAL;
        let open = self.asked.iter().enumerate().filter(|(_, (_, answer))| answer.is_none());
        open.map(|(socket, (id, _))| (socket, nat::binding_request(*id))).collect()
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        self.next.min(self.end)
    }
}
