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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::time::mono;
    use crate::stun::{Builder, Class, Message, Method, TransactionId, attr};
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;

    fn response(id: TransactionId, port: u16) -> Vec<u8> {
        let response = Builder::new(Class::Success, Method::BINDING, id);
        response.xor_address(attr::XOR_MAPPED_ADDRESS, ([203, 0, 113, 7], port).into()).finish()
    }

    #[test]
    fn a_forged_response_does_not_count_and_none_counts_twice() {
        let (mut rng, start) = (ChaCha20Rng::from_seed([1; 32]), mono());
        let mut sampling = Sampling::new(start, &mut rng);
        let requests = sampling.poll(start);
        assert_eq!(requests.len(), SAMPLES);
        let id = |index: usize| Message::parse(&requests[index].1).unwrap().transaction();
        // Of another request, of another socket, of no socket.
        sampling.handle(0, &response(TransactionId::new([9; 12]), 6000));
        sampling.handle(1, &response(id(0), 6000));
        sampling.handle(SAMPLES, &response(id(0), 6000));
        assert_eq!(sampling.conclude(start + ASK_TIME), Some(Vec::new()));
        for index in 0..SAMPLES - 1 {
            sampling.handle(index, &response(id(index), 4000 + u16::try_from(index).unwrap()));
            sampling.handle(index, &response(id(index), 7000));
        }
        assert_eq!(sampling.conclude(start), None);
        assert_eq!(sampling.poll(start + ASK_INTERVAL).len(), 1, "only the one without a response");
        let samples = sampling.conclude(start + ASK_TIME).unwrap();
        assert_eq!(samples.len(), SAMPLES - 1);
        assert!(samples.iter().all(|sample| sample.port() < 4100));
    }
}
