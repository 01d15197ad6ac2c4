//! What the server determines at its start: its addresses, and the URLs that it offers to clients.

use super::gateway::GatewayAddrs;
use super::listeners::{Listeners, TLS_PORT};
use super::{Config, ServerError, TlsConfig, TurnConfig};
use crate::net::certificate::Certificate;
use crate::net::interfaces;
use crate::net::time;
use crate::signaling::{Admitted, IceServers};
use crate::state::State;
use crate::turn_server::auth::RestSecret;
use crate::turn_server::ports::RelayAddress;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};

/// The port that hardly any network blocks.
const HTTPS: u16 = 443;

/// What the server determined at its start.
#[derive(Debug, Clone)]
pub struct ServerInfo {
    /// Addresses of the listeners, both UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// The second UDP port; `None` where there is none.
    pub aux_port: Option<u16>,
    /// The separate TLS and DTLS port; the main port accepts both too.
    pub tls_port: Option<u16>,
    /// Whether the server signs its certificate itself.
    pub tls_self_signed: bool,
    /// The host in `turns:` URLs; none with a self-signed certificate.
    pub tls_name: Option<String>,
    /// Addresses offered to clients, the most widely reachable first.
    pub advertised: Vec<SocketAddr>,
    /// Local addresses of relay sockets, and the addresses that peers see.
    pub relay: Vec<RelayAddress>,
    /// Worker threads.
    pub workers: usize,
    /// Where the gateway's servers connect; `None` where there is no gateway.
    pub gateway: Option<GatewayAddrs>,
    pub(super) ice: IceServers,
}

impl ServerInfo {
    /// Collects the information once the ports are open.
    pub(super) fn gather(
        config: &Config,
        state: &State,
        own: &[IpAddr],
        certificate: &Certificate,
        listeners: &Listeners,
    ) -> Result<Self, ServerError> {
        let advertised = advertised(config, own, listeners.port);
        let (secret, _) = config.auth.secrets(&config.turn, state);
        let mut ice = ice_servers(&config.turn, &advertised, secret);
        let tls_name = tls_name(&config.tls, certificate);
        let turns =
            tls_name.as_deref().map(|name| turns_url(name, turns_port(listeners.port, listeners.tls_port)));
        ice.turn_urls.extend(turns);
        Ok(Self {
            listen: listeners.listen.clone(),
            aux_port: listeners.aux_port,
            tls_port: listeners.tls_port,
            tls_self_signed: certificate.self_signed,
            tls_name,
            advertised,
            relay: relay_addresses(config, own)?,
            workers: listeners.per_worker.len(),
            gateway: None,
            ice,
        })
    }

    /// Returns the base URL of the server's HTTP resources; `None` where no address is known.
    #[must_use]
    pub fn page_url(&self) -> Option<String> {
        let address = self.advertised.first()?;
        let Some(name) = &self.tls_name else { return Some(format!("http://{address}/")) };
        let (host, port) = (url_host(name), address.port());
        Some(match turns_port(port, self.tls_port) {
            HTTPS => format!("https://{host}/"),
            _ => format!("https://{host}:{port}/"),
        })
    }

    /// Returns the ports of all listeners, with duplicates.
    pub(super) fn ports(&self) -> Vec<u16> {
        let gateway = self.gateway.iter().flat_map(|gateway| [&gateway.md5, &gateway.hmac, &gateway.tls]);
        let listeners = self.listen.iter().chain(gateway.flatten());
        listeners.map(SocketAddr::port).chain(self.aux_port).chain(self.tls_port).collect()
    }

    /// Returns the `iceServers` object for a browser as JSON text, with credentials minted for `name`.
    #[must_use]
    pub fn ice_servers(&self, name: &str) -> String {
        let servers = self.ice.admitted(time::now(), name, Admitted::default());
        serde_json::json!({ "iceServers": servers }).to_string()
    }
}

/// Returns what a server with this configuration offers to clients, without starting one.
///
/// # Errors
/// This host's addresses or the configured certificate cannot be read.
pub fn ice_offer(config: &Config, state: &State) -> Result<IceServers, ServerError> {
    let advertised = advertised(config, &interfaces::addresses()?, config.port);
    let mut ice = ice_servers(&config.turn, &advertised, config.auth.secrets(&config.turn, state).0);
    // Only the chain: a process that only mints credentials may be unable to read the private key.
    if let Some((chain, _)) = &config.tls.certificate {
        let name = match &config.tls.name {
            Some(name) => Some(name.clone()),
            None => Certificate::names_of(&Certificate::chain(chain)?).into_iter().next(),
        };
        let tls_port = Some(config.tls.port.unwrap_or(TLS_PORT)).filter(|port| *port != 0);
        ice.turn_urls.extend(name.map(|name| turns_url(&name, turns_port(config.port, tls_port))));
    }
    Ok(ice)
}

/// Chooses the relay addresses of each family: the configured ones, or else the listener's, or else the most widely reachable one. A single address of a
/// family may have a different public address; several are used as they are.
pub(super) fn relay_addresses(config: &Config, own: &[IpAddr]) -> Result<Vec<RelayAddress>, ServerError> {
    let specific: Vec<IpAddr> = config.listen.iter().copied().filter(|ip| !ip.is_unspecified()).collect();
    let listened = |v6| config.listen.iter().any(|ip| ip.is_ipv6() == v6);
    let of_family = |list: &[IpAddr], v6: bool| list.iter().copied().find(|ip| ip.is_ipv6() == v6);
    let choose = |v6: bool| {
        let set = config.turn.relay_addresses.iter().copied().filter(|ip| ip.is_ipv6() == v6);
        let set: Vec<_> = set.collect();
        if set.len() > 1 {
            return set.into_iter().map(|ip| RelayAddress { local: ip, advertised: ip }).collect();
        }
        let local = set.first().copied().or_else(|| of_family(&specific, v6));
        let local = local.or_else(|| interfaces::widest_scope(own, v6).filter(|_| listened(v6)));
        let advertised = |local| of_family(&config.public, v6).unwrap_or(local);
        local
            .map(|local| RelayAddress { local, advertised: advertised(local) })
            .into_iter()
            .collect::<Vec<_>>()
    };
    let chosen = [choose(false), choose(true)].concat();
    if chosen.is_empty() { Err(ServerError::NoRelayAddress) } else { Ok(chosen) }
}

/// Checks that the configured relay addresses belong to this host; otherwise every allocation would fail.
pub(super) fn try_relay_addresses(addresses: &[IpAddr]) -> Result<(), ServerError> {
    for address in addresses {
        UdpSocket::bind((*address, 0))
            .map_err(|source| ServerError::RelayAddress { address: *address, source })?;
    }
    Ok(())
}

/// Returns the addresses offered to clients: the public ones, or else one of each family.
fn advertised(config: &Config, own: &[IpAddr], port: u16) -> Vec<SocketAddr> {
    let mut addresses = config.public.clone();
    for v6 in [false, true] {
        if addresses.iter().any(|ip| ip.is_ipv6() == v6) {
            continue;
        }
        let specific = config.listen.iter().copied().find(|ip| ip.is_ipv6() == v6 && !ip.is_unspecified());
        let any = config.listen.iter().any(|ip| ip.is_ipv6() == v6);
        addresses.extend(specific.or_else(|| interfaces::widest_scope(own, v6).filter(|_| any)));
    }
    addresses.sort_by_key(|ip| interfaces::scope(*ip));
    let best = addresses.first().map(|ip| interfaces::scope(*ip));
    addresses.retain(|ip| Some(interfaces::scope(*ip)) == best || config.public.contains(ip));
    addresses.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()
}

fn ice_servers(turn: &TurnConfig, advertised: &[SocketAddr], secret: RestSecret) -> IceServers {
    let urls = |scheme: &str, query: &str| {
        advertised.iter().map(|a| format!("{scheme}:{a}{query}")).collect::<Vec<_>>()
    };
    IceServers {
        stun_urls: urls("stun", ""),
        turn_urls: [urls("turn", "?transport=udp"), urls("turn", "?transport=tcp")].concat(),
        ttl: turn.credentials_ttl,
        secret: Some(secret),
    }
}

/// Returns the host of `turns:` URLs; `None` with a self-signed certificate, which browsers reject.
fn tls_name(config: &TlsConfig, certificate: &Certificate) -> Option<String> {
    if certificate.self_signed {
        return None;
    }
    config.name.clone().or_else(|| certificate.name())
}

/// Returns the port of `turns:` URLs: the main port if it is 443, which every network lets out, or else the TLS port.
fn turns_port(main: u16, tls: Option<u16>) -> u16 {
    tls.filter(|_| main != HTTPS).unwrap_or(main)
}

fn turns_url(name: &str, port: u16) -> String {
    format!("turns:{}:{port}?transport=tcp", url_host(name))
}

/// Formats a host for a URL.
fn url_host(name: &str) -> String {
    match name.parse::<Ipv6Addr>() {
        Ok(ip) => format!("[{ip}]"),
        Err(_) => name.to_owned(),
    }
}
