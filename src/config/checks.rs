//! What the addresses and ports of a server must be together, whether a file or the command line has set them.

use super::ConfigError;
use crate::server::Config;
use std::net::{IpAddr, Ipv4Addr};

/// Most threads of the data plane.
const MAX_WORKERS: usize = 1024;

fn value(key: &'static str, rule: &'static str) -> ConfigError {
    ConfigError::Value { key, rule }
}

/// Checks the addresses, the ports and the number of workers.
pub(super) fn check(server: &Config) -> Result<(), ConfigError> {
    check_listen(&server.listen)?;
    if !server.public.iter().all(is_one_host) {
        return Err(value("public", "must hold addresses of hosts, such as 203.0.113.7"));
    }
    if server.workers.is_some_and(|workers| !(1..=MAX_WORKERS).contains(&workers)) {
        return Err(value("workers", "must be 1 to 1024; leave it out for one per core"));
    }
    check_ports(server)?;
    check_relay(server)
}

fn check_listen(listen: &[IpAddr]) -> Result<(), ConfigError> {
    if listen.is_empty() {
        return Err(value("listen", "must name at least one address"));
    }
    if listen.iter().any(|ip| ip.is_multicast() || *ip == IpAddr::V4(Ipv4Addr::BROADCAST)) {
        return Err(value("listen", "must hold addresses of this host: see ip address"));
    }
    for (index, ip) in listen.iter().enumerate() {
        let same_family = |other: &&IpAddr| other.is_ipv6() == ip.is_ipv6();
        let mut others = listen[..index].iter().chain(&listen[index + 1..]).filter(same_family);
        if others.any(|other| other == ip || ip.is_unspecified()) {
            return Err(value(
                "listen",
                "must hold each address once, and 0.0.0.0 or :: beside no other of its family",
            ));
        }
    }
    Ok(())
}

fn check_ports(server: &Config) -> Result<(), ConfigError> {
    let (aux, tls) = (server.aux_port.unwrap_or(0), server.tls.port.unwrap_or(0));
    if aux != 0 && (aux == server.port || aux == tls) {
        return Err(value("aux_port", "must differ from `port` and `tls.port`; 0 for none"));
    }
    if server.aux_port == Some(0) && !server.nat_discovery.is_empty() {
        return Err(value("aux_port", "must not be 0 where stun.nat_discovery is set: it takes two ports"));
    }
    #[cfg(feature = "messaging")]
    if server.messaging.enabled {
        let messaging = &server.messaging;
        let others = [server.port, aux, tls];
        for (key, port) in [
            ("messaging.port", Some(messaging.port)),
            ("messaging.tls_port", messaging.tls_port),
            ("messaging.dispatcher_port", messaging.dispatcher_port),
        ] {
            if port.is_some_and(|port| port != 0 && others.contains(&port)) {
                return Err(value(key, "must differ from `port`, `aux_port` and `tls.port`"));
            }
        }
    }
    let gateway = &server.gateway;
    let ports = [gateway.server_port, gateway.hmac_port, gateway.tls_port];
    let ports: Vec<_> = ports.into_iter().flatten().filter(|port| *port != 0).collect();
    if !ports.is_empty() && gateway.server_listen.is_empty() {
        return Err(value(
            "gateway.server_listen",
            "must name an address where a port of the gateway is set",
        ));
    }
    if ports.iter().enumerate().any(|(index, port)| ports[..index].contains(port)) {
        return Err(value("gateway.server_port", "must differ from gateway.hmac_port and gateway.tls_port"));
    }
    Ok(())
}

fn check_relay(server: &Config) -> Result<(), ConfigError> {
    let turn = &server.turn;
    let relay = &turn.relay_addresses;
    let of_family = |v6| relay.iter().filter(|ip| ip.is_ipv6() == v6).count();
    if of_family(false) > 1 || of_family(true) > 1 || !relay.iter().all(is_one_host) {
        return Err(value(
            "turn.relay_addresses",
            "must hold at most one address of this host for each family",
        ));
    }
    if turn.alternate_server.iter().any(|at| at.port() == 0 || !is_one_host(&at.ip())) {
        return Err(value("turn.alternate_server", "must hold ADDRESS:PORT of other servers"));
    }
    if turn.alternate_domain.is_some() && turn.alternate_server.is_empty() {
        return Err(value("turn.alternate_domain", "needs turn.alternate_server"));
    }
    Ok(())
}

/// Returns whether an address can be one host's.
fn is_one_host(ip: &IpAddr) -> bool {
    !ip.is_unspecified() && !ip.is_multicast() && *ip != IpAddr::V4(Ipv4Addr::BROADCAST)
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn senseless_addresses_and_ports_are_refused_by_name() {
        for (text, named) in [
            ("workers = 0", "`workers` must be 1 to 1024"),
            ("workers = 1025", "`workers`"),
            ("listen = ['224.0.0.1']", "`listen`"),
            ("listen = ['127.0.0.1', '127.0.0.1']", "`listen`"),
            ("listen = ['127.0.0.1', '0.0.0.0']", "`listen`"),
            ("listen = ['::', '::1']", "`listen`"),
            ("public = ['0.0.0.0']", "`public`"),
            ("public = ['ff02::1']", "`public`"),
            ("aux_port = 3478", "`aux_port`"),
            ("aux_port = 5349\n[tls]\nport = 5349", "`aux_port`"),
            ("aux_port = 0\n[stun]\nnat_discovery = ['192.0.2.1', '192.0.2.2']", "`aux_port`"),
            ("[messaging]\nenabled = true\nport = 3478", "`messaging.port`"),
            ("[messaging]\nenabled = true\ntls_port = 5349\n[tls]\nport = 5349", "`messaging.tls_port`"),
            ("[gateway]\nserver_port = 4000\nhmac_port = 4000", "`gateway.server_port`"),
            ("[gateway]\nserver_listen = []\nserver_port = 4000", "`gateway.server_listen`"),
            ("[turn]\nrelay_addresses = ['192.0.2.1', '192.0.2.2']", "`turn.relay_addresses`"),
            ("[turn]\nrelay_addresses = ['0.0.0.0']", "`turn.relay_addresses`"),
            ("[turn]\nalternate_server = ['192.0.2.1:0']", "`turn.alternate_server`"),
            ("[turn]\nalternate_domain = 'turn.example'", "`turn.alternate_domain`"),
        ] {
            let error = Config::parse(text).unwrap_err().to_string();
            assert!(error.contains(named) && error.lines().count() == 1, "{text}: {error}");
        }
        for sound in
            ["listen = ['0.0.0.0', '::']", "listen = ['0.0.0.0', '::1']", "workers = 1", "aux_port = 0"]
        {
            assert!(Config::parse(sound).is_ok(), "{sound}");
        }
    }

    #[test]
    fn an_address_alone_is_a_prefix_in_every_list() {
        let text = "proxy_protocol_from = ['192.0.2.1']\nmetrics_from = ['2001:db8::1']\n\
                    [limits]\nunlimited_from = ['192.0.2.2']\n[turn]\nallow_peers = ['10.0.0.1', '10.1.2.3/8']\ndeny_peers = ['10.0.0.2']";
        let server = Config::parse(text).unwrap().server;
        let shown = |list: &[crate::limits::NetworkPrefix]| {
            list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(shown(&server.trusted_proxies), "192.0.2.1/32");
        assert_eq!(shown(&server.metrics_from), "2001:db8::1/128");
        assert_eq!(shown(&server.limits.unauthenticated.unlimited_from), "192.0.2.2/32");
        assert_eq!(shown(&server.turn.allow_peers), "10.0.0.1/32 10.0.0.0/8");
        assert_eq!(shown(&server.turn.deny_peers), "10.0.0.2/32");
        let error = Config::parse("[turn]\nallow_peers = ['10.0.0.300']").unwrap_err().to_string();
        assert!(
            error.contains("10.0.0.300") && error.contains("ADDRESS/LENGTH such as 10.0.0.0/8"),
            "{error}"
        );
    }
}
