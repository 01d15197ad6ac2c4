//! What the server finds out at its start: its addresses, and what clients are told to use.

use super::gateway::GatewayAddrs;
use super::listeners::{Doors, TLS_PORT};
use super::{Config, ServerError, TlsConfig, TurnConfig};
use crate::net::certificate::Certificate;
use crate::net::interfaces;
use crate::net::time;
use crate::signaling::{Admitted, IceServers};
use crate::state::State;
use crate::turn_server::auth::RestSecret;
use crate::turn_server::ports::RelayAddress;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};

/// The port that hardly any network keeps in.
const HTTPS: u16 = 443;

/// What the server found out and decided at its start.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Where it listens, UDP and TCP alike.
    pub listen: Vec<SocketAddr>,
    /// The second UDP port; `None` where there is none.
    pub aux_port: Option<u16>,
    /// The port for TLS and DTLS alone; the main port takes both as well.
    pub tls_port: Option<u16>,
    /// Whether the server signs its certificate itself.
    pub tls_self_signed: bool,
    /// The host that `turns:` URLs name; none with a self-signed certificate.
    pub tls_name: Option<String>,
    /// What clients are told to use, the farthest-reaching first.
    pub advertised: Vec<SocketAddr>,
    /// Relay sockets' addresses and what peers see.
    pub relay: Vec<RelayAddress>,
    /// Threads of the data plane.
    pub workers: usize,
    /// Where the gateway's servers connect; `None` where there is no gateway.
    pub gateway: Option<GatewayAddrs>,
    pub(super) ice: IceServers,
}

impl Facts {
    /// Puts together what is known once the ports are open.
    pub(super) fn gather(
        config: &Config,
        state: &State,
        own: &[IpAddr],
        certificate: &Certificate,
        doors: &Doors,
    ) -> Result<Self, ServerError> {
        let advertised = advertised(config, own, doors.port);
        let (secret, _) = config.auth.secrets(&config.turn, state);
        let mut ice = ice_servers(&config.turn, &advertised, secret);
        let tls_name = tls_name(&config.tls, certificate);
        let turns = tls_name.as_deref().map(|name| turns_url(name, turns_port(doors.port, doors.tls_port)));
        ice.turn_urls.extend(turns);
        Ok(Self {
            listen: doors.listen.clone(),
            aux_port: doors.aux_port,
            tls_port: doors.tls_port,
            tls_self_signed: certificate.self_signed,
            tls_name,
            advertised,
            relay: relay_addresses(config, own)?,
            workers: doors.per_worker.len(),
            gateway: None,
            ice,
        })
    }

    /// Returns the URL of the server's page, with which those of its other resources begin; `None` where no address is known.
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

    /// Lists the ports that anything of this server listens on, each as often as it is open.
    pub(super) fn ports(&self) -> Vec<u16> {
        let gateway = self.gateway.iter().flat_map(|gateway| [&gateway.md5, &gateway.hmac, &gateway.tls]);
        let listeners = self.listen.iter().chain(gateway.flatten());
        listeners.map(SocketAddr::port).chain(self.aux_port).chain(self.tls_port).collect()
    }

    /// Makes the `iceServers` JSON for a browser, with credentials minted for `name`.
    #[must_use]
    pub fn ice_servers(&self, name: &str) -> serde_json::Value {
        serde_json::json!({ "iceServers": self.ice.admitted(time::now(), name, Admitted::default()) })
    }
}

/// Returns what clients of a server with this configuration are told to use, without starting one.
///
/// # Errors
/// The system does not tell this host's addresses, or the configured certificate cannot be read.
pub fn ice_offer(config: &Config, state: &State) -> Result<IceServers, ServerError> {
    let advertised = advertised(config, &interfaces::addresses()?, config.port);
    let mut ice = ice_servers(&config.turn, &advertised, config.auth.secrets(&config.turn, state).0);
    // The key is the server's alone; whoever mints credentials may not be able to read it.
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

/// Chooses the relay addresses of each family: the configured ones, else the one listened on, else the farthest-reaching. One alone of a
/// family may have another one outside; several are told as they are.
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

/// Tries configured addresses of the relay: one that is not this host's would fail with every allocation instead.
pub(super) fn try_relay_addresses(addresses: &[IpAddr]) -> Result<(), ServerError> {
    for address in addresses {
        UdpSocket::bind((*address, 0))
            .map_err(|source| ServerError::RelayAddress { address: *address, source })?;
    }
    Ok(())
}

/// Says which addresses clients are told: the public ones, else one a family.
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

/// Returns the host of `turns:` URLs: browsers verify the certificate, so there is none without a real one.
fn tls_name(config: &TlsConfig, certificate: &Certificate) -> Option<String> {
    if certificate.self_signed {
        return None;
    }
    config.name.clone().or_else(|| certificate.name())
}

/// Returns the port of `turns:` URLs. The main port takes TLS too: where it is the one that every network lets out, clients are sent there.
fn turns_port(main: u16, tls: Option<u16>) -> u16 {
    tls.filter(|_| main != HTTPS).unwrap_or(main)
}

fn turns_url(name: &str, port: u16) -> String {
    format!("turns:{}:{port}?transport=tcp", url_host(name))
}

/// Returns a host as it stands in a URL.
fn url_host(name: &str) -> String {
    match name.parse::<Ipv6Addr>() {
        Ok(ip) => format!("[{ip}]"),
        Err(_) => name.to_owned(),
    }
}
