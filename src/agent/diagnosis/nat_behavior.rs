//! How a NAT maps and filters, in the terms of [RFC 4787](https://www.rfc-editor.org/rfc/rfc4787).

use crate::agent::hard_nat::{PredictedPorts, Prediction};
use std::net::SocketAddr;

/// What the sockets of NAT behaviour discovery have seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NatObservations {
    /// The local address of the socket of the mapping tests.
    pub(super) local: Option<SocketAddr>,
    /// Its mapping to the server.
    pub(super) first: Option<SocketAddr>,
    /// Its mapping to the server's second port.
    pub(super) second_port: Option<SocketAddr>,
    /// Its mapping to another address.
    pub(super) other_address: Option<SocketAddr>,
    /// Whether an answer from the server's other port arrived that nothing was sent to; `None` if the server cannot send one.
    pub(super) from_other_port: Option<bool>,
    /// The same for its other address.
    pub(super) from_other_address: Option<bool>,
    /// Whether two sockets behind the NAT reach each other by their mapped addresses.
    pub(super) hairpin: Option<bool>,
    /// The mappings of sockets that were opened one after the other.
    pub(super) samples: Vec<SocketAddr>,
}

/// How a mapping depends on the destination (RFC 4787 section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mapping {
    EndpointIndependent,
    /// The same for two ports of one address. Whether it is for other addresses cannot be tested without the server's second address.
    NotPortDependent,
    AddressDependent,
    AddressAndPortDependent,
}

impl Mapping {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::EndpointIndependent => "EIM",
            Self::NotPortDependent => "EIM or ADM",
            Self::AddressDependent => "ADM",
            Self::AddressAndPortDependent => "APDM",
        }
    }

    /// Returns whether each peer may get another port.
    pub(super) fn changes(self) -> bool {
        matches!(self, Self::AddressDependent | Self::AddressAndPortDependent)
    }
}

/// Whose packets pass to a mapping (RFC 4787 section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filtering {
    EndpointIndependent,
    /// Those from other ports of an address pass. Whether those from other addresses do cannot be tested without the server's second address.
    NotPortDependent,
    AddressDependent,
    AddressAndPortDependent,
}

impl Filtering {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::EndpointIndependent => "EIF",
            Self::NotPortDependent => "EIF or ADF",
            Self::AddressDependent => "ADF",
            Self::AddressAndPortDependent => "APDF",
        }
    }

    pub(super) fn words(self) -> &'static str {
        match self {
            Self::EndpointIndependent => "everybody let in",
            Self::NotPortDependent => "other ports of a known address let in",
            Self::AddressDependent => "only known addresses let in",
            Self::AddressAndPortDependent => "only answers let in",
        }
    }
}

/// Which ports a NAT uses that maps each destination to another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PortChoice {
    Sequential,
    /// Within so many ports.
    Block(u32),
    Random,
}

/// What is known about the NAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NatBehavior {
    /// Whether addresses are translated at all; a firewall only filters.
    pub(super) is_translated: bool,
    /// `None` without translation, or if it is unknown.
    pub(super) mapping: Option<Mapping>,
    pub(super) filtering: Option<Filtering>,
    pub(super) hairpin: Option<bool>,
    /// Only if the ports change.
    pub(super) port_choice: Option<PortChoice>,
    /// The mappings have different addresses.
    pub(super) has_pool: bool,
}

impl NatObservations {
    /// Returns the behaviour; `None` without any answer.
    pub(super) fn behavior(&self) -> Option<NatBehavior> {
        let first = self.first?;
        let is_translated = self.local != Some(first);
        let mapping = self.mapping(first).filter(|_| is_translated);
        let changes = mapping.is_some_and(Mapping::changes);
        let all =
            [self.second_port, self.other_address].into_iter().flatten().chain(self.samples.iter().copied());
        let has_pool = is_translated && all.into_iter().any(|other| other.ip() != first.ip());
        Some(NatBehavior {
            is_translated,
            mapping,
            filtering: self.filtering(),
            hairpin: self.hairpin.filter(|_| is_translated),
            port_choice: self.port_choice().filter(|_| changes),
            has_pool,
        })
    }

    fn mapping(&self, first: SocketAddr) -> Option<Mapping> {
        match (self.second_port, self.other_address) {
            (Some(second), _) if second != first => Some(Mapping::AddressAndPortDependent),
            (_, Some(other)) if other != first => Some(Mapping::AddressDependent),
            (_, Some(_)) => Some(Mapping::EndpointIndependent),
            (Some(_), None) => Some(Mapping::NotPortDependent),
            (None, None) => None,
        }
    }

    fn filtering(&self) -> Option<Filtering> {
        match (self.from_other_address, self.from_other_port) {
            (Some(true), _) => Some(Filtering::EndpointIndependent),
            (_, Some(false)) => Some(Filtering::AddressAndPortDependent),
            (Some(false), Some(true)) => Some(Filtering::AddressDependent),
            (None, Some(true)) => Some(Filtering::NotPortDependent),
            (_, None) => None,
        }
    }

    fn port_choice(&self) -> Option<PortChoice> {
        Some(match Prediction::new(&self.samples)?.ports {
            PredictedPorts::Sequence { .. } => PortChoice::Sequential,
            PredictedPorts::Range { low, high, .. } => {
                let size = u32::from(high) - u32::from(low) + 1;
                if size <= Prediction::LARGEST_BLOCK { PortChoice::Block(size) } else { PortChoice::Random }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: &str = "10.0.0.2:5000";
    const FIRST: &str = "203.0.113.21:6000";

    fn at(text: &str) -> Option<SocketAddr> {
        Some(text.parse().unwrap())
    }

    fn seen(second_port: Option<&str>, other_address: Option<&str>) -> NatObservations {
        let [second_port, other_address] =
            [second_port, other_address].map(|text| text.map(|text| text.parse().unwrap()));
        NatObservations {
            local: at(LOCAL),
            first: at(FIRST),
            second_port,
            other_address,
            ..Default::default()
        }
    }

    #[test]
    fn the_mapping_is_named_by_what_changes_it() {
        let other = Some("203.0.113.21:6001");
        for (second_port, other_address, expected) in [
            (Some(FIRST), Some(FIRST), Some(Mapping::EndpointIndependent)),
            (Some(FIRST), other, Some(Mapping::AddressDependent)),
            (other, Some("203.0.113.21:6002"), Some(Mapping::AddressAndPortDependent)),
            (other, None, Some(Mapping::AddressAndPortDependent)),
            (Some(FIRST), None, Some(Mapping::NotPortDependent)),
            (None, other, Some(Mapping::AddressDependent)),
            (None, None, None),
        ] {
            let behavior = seen(second_port, other_address).behavior().unwrap();
            assert_eq!((behavior.mapping, behavior.is_translated), (expected, true));
        }
        assert_eq!(NatObservations::default().behavior(), None);
        assert!(seen(Some("203.0.113.22:6000"), None).behavior().unwrap().has_pool);
    }

    #[test]
    fn the_filter_is_named_by_whose_answers_pass() {
        for (address, port, expected) in [
            (Some(true), None, Some(Filtering::EndpointIndependent)),
            (Some(false), Some(true), Some(Filtering::AddressDependent)),
            (Some(false), Some(false), Some(Filtering::AddressAndPortDependent)),
            (None, Some(false), Some(Filtering::AddressAndPortDependent)),
            (None, Some(true), Some(Filtering::NotPortDependent)),
            (None, None, None),
        ] {
            let observed =
                NatObservations { from_other_address: address, from_other_port: port, ..seen(None, None) };
            assert_eq!(observed.behavior().unwrap().filtering, expected);
        }
    }

    #[test]
    fn without_translation_there_is_no_mapping() {
        let observed = NatObservations { local: at(FIRST), hairpin: Some(false), ..seen(Some(FIRST), None) };
        let behavior = observed.behavior().unwrap();
        assert_eq!((behavior.is_translated, behavior.mapping, behavior.hairpin), (false, None, None));
    }

    #[test]
    fn the_choice_of_ports_is_named_only_where_they_change() {
        let samples = |ports: &[u16]| ports.iter().map(|port| ([203, 0, 113, 21], *port).into()).collect();
        let changing = |ports: &[u16]| NatObservations {
            samples: samples(ports),
            ..seen(Some("203.0.113.21:6001"), None)
        };
        let choice = |ports: &[u16]| changing(ports).behavior().unwrap().port_choice;
        assert_eq!(choice(&[7001, 7002, 7003, 7004]), Some(PortChoice::Sequential));
        assert_eq!(choice(&[4100, 4400, 4250, 4500, 4099]), Some(PortChoice::Block(512)));
        assert_eq!(choice(&[4100, 64_000, 20_000, 33_000]), Some(PortChoice::Random));
        assert_eq!(choice(&[4100]), None);
        let steady = NatObservations { samples: samples(&[1, 2, 3]), ..seen(Some(FIRST), None) };
        assert_eq!(steady.behavior().unwrap().port_choice, None);
    }
}
