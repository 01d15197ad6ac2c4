//! The messages with which two agents agree on a spray. Numbers are big-endian; unknown kinds are ignored.

use super::prediction::PredictedPorts;
use std::net::{Ipv4Addr, SocketAddrV4};

/// The version of the format.
const VERSION: u8 = 1;

/// A message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::agent) struct SprayMessage {
    /// Chosen by the hard side for each attempt.
    pub(super) id: u32,
    pub(super) body: MessageBody,
}

/// The content of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MessageBody {
    /// Hard to easy: asks for an attempt.
    Request,
    /// Easy to hard: probes will come from here.
    Ready(SocketAddrV4),
    /// Either: no attempt, or no more.
    Refuse(SprayRefusal),
    /// Hard to easy: the sockets are open.
    Start {
        /// Counts from 0.
        round: u8,
        /// The address of the hard side's NAT.
        ip: Ipv4Addr,
        ports: PredictedPorts,
    },
    /// The probes of this round are being sent.
    Started { round: u8 },
    /// Between two hard sides: the next mappings.
    Window { round: u8, window: PortWindow },
    /// Between two hard sides: the leading one begins another round.
    Again { round: u8 },
}

/// The next mappings of a NAT that maps one port after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PortWindow {
    pub(super) ip: Ipv4Addr,
    pub(super) first: u16,
    pub(super) step: i16,
}

/// Why a side does not take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SprayRefusal {
    /// `--no-spray`.
    Off,
    /// Its server forbids it.
    Vetoed,
    /// The host takes part in another one.
    Busy,
    /// It has sprayed the same address within the last hour.
    Recent,
    /// The ports of its own NAT are hard to meet, or not known.
    Nat,
    /// The other side's address is private, the server's, or none of its candidates.
    Address,
    /// No probe has met a mapping.
    Failed,
}

const REFUSALS: [(u8, SprayRefusal); 7] = [
    (1, SprayRefusal::Off),
    (2, SprayRefusal::Vetoed),
    (3, SprayRefusal::Busy),
    (4, SprayRefusal::Recent),
    (5, SprayRefusal::Nat),
    (6, SprayRefusal::Address),
    (7, SprayRefusal::Failed),
];

impl SprayMessage {
    /// Writes the message.
    pub(in crate::agent) fn encode(self) -> Vec<u8> {
        let kind = match self.body {
            MessageBody::Request => 1,
            MessageBody::Ready(_) => 2,
            MessageBody::Refuse(_) => 3,
            MessageBody::Start { .. } => 4,
            MessageBody::Started { .. } => 5,
            MessageBody::Window { .. } => 6,
            MessageBody::Again { .. } => 7,
        };
        let mut bytes = vec![VERSION, kind];
        bytes.extend(self.id.to_be_bytes());
        match self.body {
            MessageBody::Request => {}
            MessageBody::Ready(address) => {
                bytes.extend(address.ip().octets());
                bytes.extend(address.port().to_be_bytes());
            }
            MessageBody::Refuse(refusal) => {
                bytes.extend(REFUSALS.iter().find(|(_, known)| *known == refusal).map(|(number, _)| *number));
            }
            MessageBody::Start { round, ip, ports } => {
                bytes.push(round);
                bytes.extend(ip.octets());
                let (kind, [a, b, c]) = match ports {
                    PredictedPorts::Sequence { first, step, count } => {
                        (0, [first.to_be_bytes(), step.to_be_bytes(), count.to_be_bytes()])
                    }
                    PredictedPorts::Range { low, high, probes } => {
                        (1, [low.to_be_bytes(), high.to_be_bytes(), probes.to_be_bytes()])
                    }
                };
                bytes.push(kind);
                bytes.extend([a, b, c].concat());
            }
            MessageBody::Started { round } | MessageBody::Again { round } => bytes.push(round),
            MessageBody::Window { round, window } => {
                bytes.push(round);
                bytes.extend(window.ip.octets());
                bytes.extend(window.first.to_be_bytes());
                bytes.extend(window.step.to_be_bytes());
            }
        }
        bytes
    }

    /// Reads a message; `None` if it is malformed or unknown.
    pub(in crate::agent) fn parse(bytes: &[u8]) -> Option<Self> {
        let (&[VERSION, kind, a, b, c, d], rest) = bytes.split_first_chunk::<6>()? else { return None };
        let number = |at: usize| Some(u16::from_be_bytes(rest.get(at..at + 2)?.try_into().ok()?));
        let ip = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(rest.get(at..at + 4)?).ok()?));
        let body = match kind {
            1 => MessageBody::Request,
            2 => MessageBody::Ready(SocketAddrV4::new(ip(0)?, number(4)?)),
            3 => {
                let refusal = REFUSALS.iter().find(|(number, _)| Some(number) == rest.first());
                MessageBody::Refuse(refusal?.1)
            }
            4 => {
                let (first, second, third) = (number(6)?, number(8)?, number(10)?);
                let ports = match rest.get(5)? {
                    0 => PredictedPorts::Sequence { first, step: second.cast_signed(), count: third },
                    1 => PredictedPorts::Range { low: first, high: second, probes: third },
                    _ => return None,
                };
                MessageBody::Start { round: *rest.first()?, ip: ip(1)?, ports }
            }
            5 => MessageBody::Started { round: *rest.first()? },
            6 => {
                let window = PortWindow { ip: ip(1)?, first: number(5)?, step: number(7)?.cast_signed() };
                MessageBody::Window { round: *rest.first()?, window }
            }
            7 => MessageBody::Again { round: *rest.first()? },
            _ => return None,
        };
        Some(Self { id: u32::from_be_bytes([a, b, c, d]), body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_encoded_can_be_parsed_and_a_part_of_it_cannot() {
        let ip = Ipv4Addr::new(203, 0, 113, 7);
        let refusals = REFUSALS.iter().map(|(_, refusal)| MessageBody::Refuse(*refusal));
        let others = [
            MessageBody::Request,
            MessageBody::Ready(SocketAddrV4::new(ip, 4000)),
            MessageBody::Start {
                round: 2,
                ip,
                ports: PredictedPorts::Sequence { first: 9, step: -2, count: 13 },
            },
            MessageBody::Start {
                round: 0,
                ip,
                ports: PredictedPorts::Range { low: 1024, high: 65_535, probes: 1024 },
            },
            MessageBody::Started { round: 1 },
            MessageBody::Window { round: 1, window: PortWindow { ip, first: 65_535, step: -5 } },
            MessageBody::Again { round: 2 },
        ];
        for body in others.into_iter().chain(refusals) {
            let message = SprayMessage { id: 0xdead_beef, body };
            let bytes = message.encode();
            assert_eq!(SprayMessage::parse(&bytes), Some(message));
            for len in 0..bytes.len() {
                assert_eq!(SprayMessage::parse(&bytes[..len]), None, "{body:?} {len}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = SprayMessage::parse(&bytes);
        }
    }
}
