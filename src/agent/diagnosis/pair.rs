//! The path that two hosts can expect, from a description of each one's network.

use super::nat_behavior::{Filtering, PortChoice};
use super::observations::{Observations, PortMappingSupport};
use super::verdict::Diagnosis;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// What a peer learns of this host's network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NetworkDescription {
    class: NetworkClass,
    /// The public IPv4 address.
    ipv4: Option<IpAddr>,
    /// UDP passes by IPv6.
    has_ipv6: bool,
    /// The router maps a port for everybody.
    has_mapped_port: bool,
    has_relay: bool,
}

/// The classes of networks by which pairs are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum NetworkClass {
    Open,
    Firewall,
    FullCone,
    AddressRestricted,
    PortRestricted,
    Sequential,
    Block,
    Random,
    UdpBlocked,
}

impl NetworkClass {
    /// Returns whether each peer gets another port.
    fn is_hard(self) -> bool {
        matches!(self, Self::Sequential | Self::Block | Self::Random)
    }

    /// Returns whether a packet passes from a port that nothing was sent to.
    fn admits_other_ports(self) -> bool {
        matches!(self, Self::Open | Self::FullCone | Self::AddressRestricted)
    }

    fn words(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Firewall => "firewall, only answers let in",
            Self::FullCone => "NAT, everybody let in",
            Self::AddressRestricted => "NAT, known addresses let in",
            Self::PortRestricted => "NAT, only answers let in",
            Self::Sequential => "NAT that changes ports, one after the other",
            Self::Block => "NAT that changes ports within a block",
            Self::Random => "NAT that changes ports at random",
            Self::UdpBlocked => "UDP blocked",
        }
    }
}

impl NetworkDescription {
    /// Describes the network of a diagnosis.
    pub(crate) fn new(seen: &Observations, diagnosis: &Diagnosis) -> Self {
        let class = match diagnosis.nat {
            None => NetworkClass::UdpBlocked,
            Some(nat) => match (nat.port_choice, nat.filtering) {
                (Some(PortChoice::Sequential), _) => NetworkClass::Sequential,
                (Some(PortChoice::Block(_)), _) => NetworkClass::Block,
                (Some(PortChoice::Random), _) => NetworkClass::Random,
                (None, _) if nat.mapping.is_some_and(|mapping| mapping.changes()) => NetworkClass::Random,
                (None, Some(Filtering::EndpointIndependent)) if !nat.is_translated => NetworkClass::Open,
                (None, _) if !nat.is_translated => NetworkClass::Firewall,
                (None, Some(Filtering::EndpointIndependent)) => NetworkClass::FullCone,
                (None, Some(Filtering::AddressDependent | Filtering::NotPortDependent)) => {
                    NetworkClass::AddressRestricted
                }
                (None, _) => NetworkClass::PortRestricted,
            },
        };
        Self {
            class,
            ipv4: seen.mapped(true),
            has_ipv6: seen.any_server(|server| server.stun_v6.works()),
            has_mapped_port: seen.port_mapping.all().into_iter().any(PortMappingSupport::maps),
            has_relay: seen.any_server(|server| server.relay_works()),
        }
    }

    /// Returns it in words.
    pub(super) fn words(&self) -> String {
        let extras =
            [(self.has_ipv6, "IPv6"), (self.has_mapped_port, "mapped port"), (self.has_relay, "relay")];
        let extras = extras.into_iter().filter(|(has, _)| *has).map(|(_, name)| name);
        std::iter::once(self.class.words()).chain(extras).collect::<Vec<_>>().join(" · ")
    }
}

/// How the path of a pair comes about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PairPrediction {
    DirectIpv6,
    DirectMappedPort,
    DirectSameNetwork,
    Direct,
    DirectTcp,
    DirectPeerReflexive,
    DirectPrediction,
    DirectSpray,
    RelayedUdpBlocked,
    RelayedBothHard,
    /// A relay is needed, and neither side has one.
    NoRelay,
}

impl PairPrediction {
    /// Returns whether the path is direct.
    pub(super) fn is_direct(self) -> bool {
        !matches!(self, Self::RelayedUdpBlocked | Self::RelayedBothHard | Self::NoRelay)
    }

    /// Returns its name in JSON.
    pub(super) fn code(self) -> &'static str {
        match self {
            Self::DirectIpv6 => "ipv6",
            Self::DirectMappedPort => "mapped_port",
            Self::DirectSameNetwork => "same_network",
            Self::Direct => "ice",
            Self::DirectTcp => "tcp",
            Self::DirectPeerReflexive => "peer_reflexive",
            Self::DirectPrediction => "port_prediction",
            Self::DirectSpray => "spray",
            Self::RelayedUdpBlocked => "udp_blocked",
            Self::RelayedBothHard => "both_change_ports",
            Self::NoRelay => "no_relay",
        }
    }

    /// Returns it in words.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::DirectIpv6 => "direct by IPv6",
            Self::DirectMappedPort => "direct by a port that a router maps",
            Self::DirectSameNetwork => {
                "direct inside the network that both are in, unless it keeps them apart"
            }
            Self::Direct => "direct",
            Self::DirectTcp => "direct by TCP, else relayed: UDP is blocked on one side",
            Self::DirectPeerReflexive => "direct: one NAT changes ports, and the other side lets that in",
            Self::DirectPrediction => "direct after a second or two, by prediction of ports",
            Self::DirectSpray => {
                "direct after some seconds, by many probes, where the server allows them; else relayed"
            }
            Self::RelayedUdpBlocked => "relayed: UDP is blocked on one side",
            Self::RelayedBothHard => "relayed: both NATs change ports",
            Self::NoRelay => "none: a relay is needed, and neither side has one",
        }
    }
}

/// Predicts the path of a pair.
pub(super) fn predict(a: &NetworkDescription, b: &NetworkDescription) -> PairPrediction {
    use NetworkClass::{Firewall, Open, PortRestricted, Sequential, UdpBlocked};
    let is_either = |class| a.class == class || b.class == class;
    let relayed = |prediction| if a.has_relay || b.has_relay { prediction } else { PairPrediction::NoRelay };
    if a.has_ipv6 && b.has_ipv6 {
        return PairPrediction::DirectIpv6;
    }
    if is_either(UdpBlocked) {
        return if is_either(Open) {
            PairPrediction::DirectTcp
        } else {
            relayed(PairPrediction::RelayedUdpBlocked)
        };
    }
    if a.ipv4.is_some() && a.ipv4 == b.ipv4 && !is_either(Open) && !is_either(Firewall) {
        return PairPrediction::DirectSameNetwork;
    }
    let (hard, easy) = match (a.class.is_hard(), b.class.is_hard()) {
        (false, false) => return PairPrediction::Direct,
        _ if a.has_mapped_port || b.has_mapped_port => return PairPrediction::DirectMappedPort,
        (true, true) if a.class == Sequential && b.class == Sequential => {
            return PairPrediction::DirectPrediction;
        }
        (true, true) => return relayed(PairPrediction::RelayedBothHard),
        (true, false) => (a, b),
        (false, true) => (b, a),
    };
    debug_assert!(easy.class.admits_other_ports() || matches!(easy.class, Firewall | PortRestricted));
    match hard.class {
        _ if easy.class.admits_other_ports() => PairPrediction::DirectPeerReflexive,
        Sequential => PairPrediction::DirectPrediction,
        _ => PairPrediction::DirectSpray,
    }
}

#[cfg(test)]
mod tests {
    use super::NetworkClass::*;
    use super::*;

    fn network(class: NetworkClass, last: u8) -> NetworkDescription {
        let ipv4 = Some(IpAddr::from([203, 0, 113, last]));
        NetworkDescription { class, ipv4, has_ipv6: false, has_mapped_port: false, has_relay: true }
    }

    /// The upper half of the matrix of `docs/nat-matrix.md`, in the order of its tags, without V6.
    #[test]
    fn every_pair_of_classes_has_the_path_that_the_matrix_shows() {
        const CLASSES: [NetworkClass; 9] = [
            Open,
            Firewall,
            FullCone,
            AddressRestricted,
            PortRestricted,
            Sequential,
            Block,
            Random,
            UdpBlocked,
        ];
        const MATRIX: [&str; 9] =
            ["DDDDDXXXT", "DDDDPBBR", "DDDXXXR", "DDXXXR", "DPBBR", "PRRR", "RRR", "RR", "R"];
        for (row, letters) in MATRIX.into_iter().enumerate() {
            for (offset, letter) in letters.chars().enumerate() {
                let (a, b) = (network(CLASSES[row], 1), network(CLASSES[row + offset], 2));
                let found = predict(&a, &b);
                assert_eq!(found, predict(&b, &a));
                let expected = match letter {
                    'D' => PairPrediction::Direct,
                    'X' => PairPrediction::DirectPeerReflexive,
                    'P' => PairPrediction::DirectPrediction,
                    'B' => PairPrediction::DirectSpray,
                    'T' => PairPrediction::DirectTcp,
                    _ if b.class == UdpBlocked => PairPrediction::RelayedUdpBlocked,
                    _ => PairPrediction::RelayedBothHard,
                };
                assert_eq!(found, expected, "{:?} x {:?}", a.class, b.class);
            }
        }
    }

    #[test]
    fn ipv6_a_mapped_port_and_a_common_network_come_before_a_relay() {
        let (a, b) = (network(Random, 1), network(Random, 2));
        let mapped = NetworkDescription { has_mapped_port: true, ..a.clone() };
        assert_eq!(predict(&mapped, &b), PairPrediction::DirectMappedPort);
        assert_eq!(predict(&a, &network(Random, 1)), PairPrediction::DirectSameNetwork);
        let with_ipv6 =
            |network: &NetworkDescription| NetworkDescription { has_ipv6: true, ..network.clone() };
        assert_eq!(predict(&with_ipv6(&mapped), &with_ipv6(&b)), PairPrediction::DirectIpv6);
        assert_eq!(predict(&with_ipv6(&a), &b), PairPrediction::RelayedBothHard);
        let without_relay = |network: NetworkDescription| NetworkDescription { has_relay: false, ..network };
        assert_eq!(predict(&without_relay(a), &without_relay(b)), PairPrediction::NoRelay);
    }

    #[test]
    fn a_description_of_another_version_is_understood_or_refused() {
        let text = serde_json::to_string(&network(Block, 1)).unwrap();
        assert_eq!(serde_json::from_str::<NetworkDescription>(&text).unwrap(), network(Block, 1));
        assert!(serde_json::from_str::<NetworkDescription>("{\"class\":\"other\"}").is_err());
        assert_eq!(network(Block, 1).words(), "NAT that changes ports within a block · relay");
    }
}
