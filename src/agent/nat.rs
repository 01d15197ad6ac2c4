//! The type of a NAT, from the mapped addresses that two STUN servers report to one socket. It explains a path; no decision depends on it.

use crate::signaling::wire::NatType;
use crate::stun::{Builder, Class, Message, Method, TransactionId, attr};
use std::net::{IpAddr, SocketAddr};

/// The mapped addresses that the server's two ports report to one socket; `None` without a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Mappings {
    /// From the main port.
    pub(super) first: Option<SocketAddr>,
    /// From the second port.
    pub(super) second: Option<SocketAddr>,
}

/// Returns the type of the NAT; `None` if the responses do not determine it.
pub(super) fn classify(local_port: u16, local_ips: &[IpAddr], seen: Mappings) -> Option<NatType> {
    match (seen.first, seen.second) {
        (None, None) => Some(NatType::Blocked),
        (Some(mapped), _) | (_, Some(mapped))
            if mapped.port() == local_port && local_ips.contains(&mapped.ip()) =>
        {
            Some(NatType::Open)
        }
        (Some(first), Some(second)) => Some(if first == second { NatType::Easy } else { NatType::Hard }),
        _ => None,
    }
}

/// Encodes a Binding request.
pub(super) fn binding_request(random: [u8; 12]) -> Vec<u8> {
    Builder::new(Class::Request, Method::BINDING, TransactionId::new(random)).finish()
}

/// Returns the mapped address in the response to [`binding_request`]; `None` for any other message.
pub(super) fn binding_response(bytes: &[u8], random: [u8; 12]) -> Option<SocketAddr> {
    let message = Message::parse(bytes).ok()?;
    let ours = message.class() == Class::Success
        && message.method() == Method::BINDING
        && message.transaction() == TransactionId::new(random);
    let address = ours.then(|| message.unverified().xor_address(attr::XOR_MAPPED_ADDRESS))?;
    address.ok()?.map(|address| SocketAddr::new(address.ip().to_canonical(), address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Option<SocketAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn two_answers_name_the_nat() {
        let ips = ["10.0.0.5".parse().unwrap()];
        let table = [
            (at("10.0.0.5:4000"), at("10.0.0.5:4000"), Some(NatType::Open)),
            (at("10.0.0.5:4000"), None, Some(NatType::Open)),
            (at("203.0.113.9:4000"), at("203.0.113.9:4000"), Some(NatType::Easy)),
            (at("203.0.113.9:5000"), at("203.0.113.9:5001"), Some(NatType::Hard)),
            (at("203.0.113.9:5000"), at("203.0.113.8:5000"), Some(NatType::Hard)),
            (at("203.0.113.9:4000"), None, None),
            (None, None, Some(NatType::Blocked)),
        ];
        for (first, second, expected) in table {
            assert_eq!(classify(4000, &ips, Mappings { first, second }), expected, "{first:?} {second:?}");
        }
    }

    #[test]
    fn an_answer_is_read_only_by_its_own_transaction() {
        let address: SocketAddr = "203.0.113.9:5000".parse().unwrap();
        let id = TransactionId::new([3; 12]);
        let answer = Builder::new(Class::Success, Method::BINDING, id)
            .xor_address(attr::XOR_MAPPED_ADDRESS, address)
            .finish();
        assert_eq!(binding_response(&answer, [3; 12]), Some(address));
        assert_eq!(binding_response(&answer, [4; 12]), None);
        assert_eq!(binding_response(&binding_request([3; 12]), [3; 12]), None);
        assert_eq!(binding_response(b"", [3; 12]), None);
    }
}
