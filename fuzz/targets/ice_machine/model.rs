//! What was sent and answered.

use super::{Class, Duration, IceTransmit, Instant, Message, SocketAddr};
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

/// A pair of a side: whether it is TCP, local base and remote address.
type Pair = (bool, SocketAddr, SocketAddr);

const CONSENT: Duration = Duration::from_secs(30);
/// Packets in a second to an address that has not answered, and one for the ends of the second.
const TO_STRANGER: usize = 121;

#[derive(Default)]
pub(super) struct Model {
    /// The pairs on which a check was sent, by side and transaction.
    checks: BTreeMap<(usize, Vec<u8>), Pair>,
    /// When a check of a pair was answered last.
    answered: BTreeMap<(usize, Pair), Instant>,
    addresses: BTreeMap<(usize, IpAddr), Address>,
}

#[derive(Default)]
struct Address {
    answered: Option<Instant>,
    /// When packets were sent while it had not answered.
    sent: VecDeque<Instant>,
}

impl Model {
    pub(super) fn on_sent(&mut self, now: Instant, side: usize, transmit: &IceTransmit) {
        let message = Message::parse(&transmit.bytes).unwrap();
        if message.class() == Class::Request {
            let id = transmit.bytes[8..20].to_vec();
            self.checks.insert((side, id), (transmit.is_tcp, transmit.local, transmit.remote));
        }
        let address = self.addresses.entry((side, transmit.remote.ip())).or_default();
        if address.answered.is_some_and(|at| now < at + CONSENT) {
            address.sent.clear();
            return;
        }
        while address.sent.front().is_some_and(|at| *at + Duration::from_secs(1) <= now) {
            address.sent.pop_front();
        }
        address.sent.push_back(now);
        assert!(address.sent.len() <= TO_STRANGER, "too much to {}", transmit.remote.ip());
    }

    /// Handles that a side has accepted a message.
    pub(super) fn on_handled(&mut self, now: Instant, side: usize, pair: Pair, bytes: &[u8]) {
        let message = Message::parse(bytes).unwrap();
        if message.class() == Class::Request {
            return;
        }
        let checked = self.checks.remove(&(side, bytes[8..20].to_vec()));
        assert_eq!(checked, Some(pair), "a response without a check of its pair is handled");
        self.addresses.entry((side, pair.2.ip())).or_default().answered = Some(now);
        if message.class() == Class::Success {
            self.answered.insert((side, pair), now);
        }
    }

    pub(super) fn on_response(&mut self, _side: usize, response: &IceTransmit, request: usize) {
        assert!(response.bytes.len() <= request, "a response is longer than its request");
    }

    /// Checks that a pair may carry data.
    pub(super) fn check_use(&self, now: Instant, side: usize, pair: Pair) {
        let answered = self.answered.get(&(side, pair));
        let answered = answered.unwrap_or_else(|| panic!("{pair:?} is used and was never answered"));
        assert!(now <= *answered + CONSENT, "{pair:?} is used without consent");
    }
}
