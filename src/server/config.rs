//! What a server is to be. `crate::config` fills this in from a file.

use super::{AuthConfig, LimitsConfig, StaticUser};
use crate::signaling;
use crate::stun_server::Home;
use crate::turn_server::machine::{Features, Limits};
use ipnet::IpNet;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// What a server is to be.
#[derive(Debug, Clone)]
pub struct Config {
    /// Addresses to listen on; default all of both families.
    pub listen: Vec<IpAddr>,
    /// UDP and TCP port; default 3478.
    pub port: u16,
    /// Second UDP port; default 3479, or any when that is taken.
    pub aux_port: Option<u16>,
    /// Addresses clients are told, where they differ from the interfaces'; default none.
    pub public: Vec<IpAddr>,
    /// Threads of the data plane; default one per core.
    pub workers: Option<usize>,
    /// The addresses of NAT behaviour discovery, two of a family or none; each is listened on. Default none.
    pub nat_discovery: Vec<Home>,
    /// What strangers may cost.
    pub limits: LimitsConfig,
    /// Proxies whose PROXY headers name the real client; default none.
    pub proxies: Vec<IpNet>,
    /// TLS and DTLS.
    pub tls: TlsConfig,
    /// The relay.
    pub turn: TurnConfig,
    /// Where credentials come from.
    pub auth: AuthConfig,
    /// Signalling; its keys, ICE servers and second port are filled in by the server.
    pub signaling: signaling::Config,
}

/// What TLS and DTLS are to be.
#[derive(Debug, Clone, Default)]
pub struct TlsConfig {
    /// PEM files of the certificate chain and its key; default one that the server signs itself and keeps in the state folder.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// The host of `turns:` URLs; default the certificate's first DNS name. Without a certificate of its own a server offers none.
    pub name: Option<String>,
    /// A port that takes TLS and DTLS alone; 0 for none; default 5349, or none where that is taken.
    pub port: Option<u16>,
}

/// What the relay is to be.
#[derive(Debug, Clone)]
pub struct TurnConfig {
    /// Realm of the long-term credentials; default `ginnel`.
    pub realm: String,
    /// Static users of the default realm; default none.
    pub users: HashMap<String, StaticUser>,
    /// Secret of time-limited credentials; default one derived from the state folder's.
    pub rest_secret: Option<Vec<u8>>,
    /// Servers that new clients are sent to, one of their own family; default none: they are served here.
    pub alternate_server: Vec<SocketAddr>,
    /// The name that those servers' certificates have; default none.
    pub alternate_domain: Option<String>,
    /// Ports of relayed addresses; default 49152–49215 where they are shared, 49152–65535 where not.
    pub relay_ports: Option<RangeInclusive<u16>>,
    /// Whether allocations share relay ports; default true.
    pub share_relay_ports: bool,
    /// Local addresses of relay sockets, one a family; default the farthest-reaching ones.
    pub relay_addresses: Vec<IpAddr>,
    /// Caps of one allocation. How many ports a worker shares is filled in by the server.
    pub limits: Limits,
    /// What clients may do.
    pub features: Features,
    /// Allocations of one user name; default 32.
    pub allocations_per_user: u32,
    /// Allocations in all; default 10 000.
    pub max_allocations: u32,
    /// How long minted credentials are good; default 24 h.
    pub credentials_ttl: Duration,
    /// Prefixes allowed although special-purpose; default none.
    pub allow_peers: Vec<IpNet>,
    /// Prefixes denied besides the special-purpose ones; default none.
    pub deny_peers: Vec<IpNet>,
}

impl TurnConfig {
    pub(super) fn relay_ports(&self) -> RangeInclusive<u16> {
        let whole = if self.share_relay_ports { 49_152..=49_215 } else { 49_152..=65_535 };
        self.relay_ports.clone().unwrap_or(whole)
    }

    /// Shares out three quarters of the ports among the workers; the rest is for those who need a port of their own.
    pub(super) fn limits(&self, workers: usize) -> Limits {
        let shared = self.relay_ports().len() * 3 / 4 / workers;
        Limits { shared_ports: if self.share_relay_ports { shared.max(1) } else { 0 }, ..self.limits }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
            port: 3478,
            aux_port: None,
            public: Vec::new(),
            workers: None,
            nat_discovery: Vec::new(),
            limits: LimitsConfig::default(),
            proxies: Vec::new(),
            tls: TlsConfig::default(),
            turn: TurnConfig::default(),
            auth: AuthConfig::default(),
            signaling: signaling::Config::default(),
        }
    }
}

impl Default for TurnConfig {
    fn default() -> Self {
        Self {
            realm: "ginnel".to_owned(),
            users: HashMap::new(),
            rest_secret: None,
            relay_ports: None,
            share_relay_ports: true,
            alternate_server: Vec::new(),
            alternate_domain: None,
            relay_addresses: Vec::new(),
            limits: Limits::default(),
            features: Features::default(),
            allocations_per_user: 32,
            max_allocations: 10_000,
            credentials_ttl: Duration::from_secs(24 * 3600),
            allow_peers: Vec::new(),
            deny_peers: Vec::new(),
        }
    }
}
