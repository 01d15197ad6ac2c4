//! Redirection to another server: ALTERNATE-SERVER and ALTERNATE-DOMAIN
//! ([RFC 8489 section 10](https://www.rfc-editor.org/rfc/rfc8489#section-10)).

use super::{FiveTuple, Transport};
use std::net::SocketAddr;
use std::sync::{PoisonError, RwLock};

/// The server that one client is redirected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AlternateServer {
    /// The address, of the client's family.
    pub server: SocketAddr,
    /// The name in the server's certificate, for clients that verify one.
    pub domain: Option<String>,
}

/// The servers that new clients are redirected to; none by default.
#[derive(Debug, Default)]
pub struct AlternateServers(RwLock<(Vec<SocketAddr>, Option<String>)>);

impl AlternateServers {
    /// Creates the list from the servers and the name in their certificates.
    #[must_use]
    pub fn new(servers: Vec<SocketAddr>, domain: Option<String>) -> Self {
        Self(RwLock::new((servers, domain)))
    }

    /// Replaces the servers; an empty list ends the redirection.
    pub fn set(&self, servers: Vec<SocketAddr>, domain: Option<String>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = (servers, domain);
    }

    /// Returns the alternate server of `client`, one of its address family. The same client gets the same one.
    #[must_use]
    pub(crate) fn of(&self, client: FiveTuple) -> Option<AlternateServer> {
        let choice = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let (servers, domain) = &*choice;
        let v6 = client.client.ip().to_canonical().is_ipv6();
        let of_family: Vec<_> = servers.iter().filter(|server| server.is_ipv6() == v6).collect();
        let server = **of_family.get(usize::from(client.client.port()) % of_family.len().max(1))?;
        let verifies = matches!(client.transport, Transport::Tls | Transport::Dtls);
        Some(AlternateServer { server, domain: domain.clone().filter(|_| verifies) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_sent_to_a_server_of_its_family_and_told_a_name_only_where_it_verifies_one() {
        let four = "192.0.2.9:3478".parse().unwrap();
        let alternates = AlternateServers::new(vec![four], Some("b.example.org".into()));
        let client = |client: &str, transport| FiveTuple {
            client: client.parse().unwrap(),
            server: "192.0.2.1:3478".parse().unwrap(),
            transport,
        };
        let plain = AlternateServer { server: four, domain: None };
        assert_eq!(alternates.of(client("198.51.100.1:4000", Transport::Udp)), Some(plain));
        let named = AlternateServer { server: four, domain: Some("b.example.org".into()) };
        assert_eq!(alternates.of(client("198.51.100.1:4000", Transport::Tls)), Some(named));
        assert_eq!(alternates.of(client("[2001:db8::1]:4000", Transport::Udp)), None);
        alternates.set(Vec::new(), None);
        assert_eq!(alternates.of(client("198.51.100.1:4000", Transport::Udp)), None);
    }
}
