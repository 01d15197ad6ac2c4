//! The configuration file: TOML, every key optional, unknown keys refused. The only file that knows the format.

mod auth;
mod checks;
mod gateway;
#[cfg(feature = "messaging")]
mod messaging;
mod signaling;

use crate::limits::NetworkPrefix;
use crate::server;
use crate::stun_server::ServerAddress;
use crate::telemetry;
use serde::Deserialize;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A validated configuration, split by the service it is for.
#[derive(Debug)]
pub(crate) struct Config {
    /// Where the server keeps its secret and access key; default `./state`.
    pub state: PathBuf,
    /// For the server.
    pub server: server::Config,
    /// For the logs.
    pub log: telemetry::Config,
    /// Keys in the file that have another name now, with that name; the old one goes with the next release.
    pub renamed: &'static [(&'static str, &'static str)],
}

const RENAMED: &[(&str, &str)] = &[("proxy_protocol_from", "trusted_proxies")];

/// Why a configuration file is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// It is not TOML, or a key is unknown or of the wrong type.
    #[error("{0}")]
    Parse(#[from] toml::de::Error),
    /// A value makes no sense.
    #[error("`{key}` {rule}")]
    Value {
        /// The key.
        key: &'static str,
        /// What it must be.
        rule: &'static str,
    },
}

impl Config {
    /// Reads and checks `path`; without one every default applies.
    ///
    /// # Errors
    /// [`ConfigError`] describes the error, with its place in the file.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let text = match path {
            None => String::new(),
            Some(path) => std::fs::read_to_string(path)
                .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?,
        };
        Self::parse(&text)
    }

    /// Checks the text of a file.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub(crate) fn parse(text: &str) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text).map_err(|error| removed(text).unwrap_or(error.into()))?;
        let mut server = server::Config::default();
        server.listen = file.listen.unwrap_or(server.listen);
        server.port = file.port.unwrap_or(server.port);
        server.aux_port = file.aux_port;
        server.public = file.public;
        server.workers = file.workers;
        server.nat_discovery = file.stun.nat_discovery(&server.listen)?;
        file.limits.apply(&mut server.limits)?;
        let renamed = if file.proxy_protocol_from.is_some() { RENAMED } else { &[] };
        let renamed_list = file.proxy_protocol_from.unwrap_or_default();
        server.trusted_proxies = file.trusted_proxies.into_iter().chain(renamed_list).collect();
        file.tls.apply(&mut server.tls)?;
        file.turn.apply(&mut server.turn)?;
        file.auth.apply(&server.turn, &mut server.auth)?;
        file.gateway.apply(&mut server.gateway)?;
        #[cfg(feature = "messaging")]
        file.messaging.apply(&mut server.messaging)?;
        server.metrics_from = file.metrics_from.unwrap_or(server.metrics_from);
        server.metrics_hosts = file.metrics_hosts;
        file.signaling.apply(&mut server.signaling)?;
        let defaults = telemetry::Config::default();
        let log = telemetry::Config {
            level: file.log.level.unwrap_or(defaults.level),
            addresses: file.log.addresses,
            json: file.log.json,
            ..defaults
        };
        let config = Self { state: file.state.unwrap_or_else(|| "state".into()), server, log, renamed };
        config.check()?;
        Ok(config)
    }

    /// Checks what values must be together; for those who have changed some.
    ///
    /// # Errors
    /// [`ConfigError::Value`] names the key.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let value = |key, rule| Err(ConfigError::Value { key, rule });
        if self.state.as_os_str().is_empty() {
            return value("state", "must name a folder");
        }
        if !telemetry::is_filter(&self.log.level) {
            return value(
                "log.level",
                "must be error, warn, info, debug, trace or off, or a filter such as \"info,ginnel::turn_server=debug\"",
            );
        }
        checks::check(&self.server)
    }
}

/// Returns the error for a key of `[turn]` that an earlier version had.
fn removed(text: &str) -> Option<ConfigError> {
    let file: toml::Table = text.parse().ok()?;
    let turn = file.get("turn")?.as_table()?;
    let keys = [("share_relay_ports", "turn.share_relay_ports"), ("spill_ports", "turn.spill_ports")];
    let (_, key) = keys.into_iter().find(|(name, _)| turn.contains_key(*name))?;
    let rule = "is no longer a key: every allocation has a relay port of its own; remove the line";
    Some(ConfigError::Value { key, rule })
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    state: Option<PathBuf>,
    listen: Option<Vec<IpAddr>>,
    port: Option<u16>,
    aux_port: Option<u16>,
    public: Vec<IpAddr>,
    workers: Option<usize>,
    stun: Stun,
    limits: Limits,
    trusted_proxies: Vec<NetworkPrefix>,
    /// The old name of `trusted_proxies`.
    proxy_protocol_from: Option<Vec<NetworkPrefix>>,
    tls: TlsSection,
    turn: Turn,
    auth: auth::Auth,
    gateway: gateway::GatewaySection,
    #[cfg(feature = "messaging")]
    messaging: messaging::MessagingSection,
    metrics_from: Option<Vec<NetworkPrefix>>,
    metrics_hosts: Vec<String>,
    signaling: signaling::SignalingSection,
    log: Log,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Stun {
    nat_discovery: Vec<String>,
}

impl Stun {
    /// Reads `LOCAL` and `PUBLIC/LOCAL`, none or two of a family, each one that `listen` covers.
    fn nat_discovery(&self, listen: &[IpAddr]) -> Result<Vec<ServerAddress>, ConfigError> {
        let value = |rule| ConfigError::Value { key: "stun.nat_discovery", rule };
        let homes: Option<Vec<ServerAddress>> = self.nat_discovery.iter().map(|text| home(text)).collect();
        let homes = homes.ok_or(value("must hold addresses: LOCAL, or PUBLIC/LOCAL behind a 1:1 NAT"))?;
        for v6 in [false, true] {
            let family: Vec<_> = homes.iter().filter(|home| home.local.is_ipv6() == v6).collect();
            let distinct = |[a, b]: [&ServerAddress; 2]| a.local != b.local && a.public != b.public;
            match family[..] {
                [] => {}
                [a, b] if distinct([a, b]) => {}
                _ => return Err(value("must hold two different addresses of a family, or none")),
            }
        }
        let covered = |home: &ServerAddress| {
            let local = home.local;
            listen.iter().any(|ip| *ip == local || (ip.is_unspecified() && ip.is_ipv6() == local.is_ipv6()))
        };
        if homes.iter().all(covered) { Ok(homes) } else { Err(value("must hold addresses of `listen`")) }
    }
}

fn home(text: &str) -> Option<ServerAddress> {
    let (public, local) = text.split_once('/').unwrap_or((text, text));
    let home = ServerAddress { local: local.parse().ok()?, public: public.parse().ok()? };
    let sound = home.local.is_ipv6() == home.public.is_ipv6() && !home.local.is_unspecified();
    sound.then_some(home)
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Limits {
    unauthenticated_rate: Option<u32>,
    unauthenticated_burst: Option<u32>,
    dtls_handshakes: Option<u32>,
    unlimited_from: Option<Vec<NetworkPrefix>>,
    connections_per_address: Option<u32>,
    unauthenticated_memory: Option<usize>,
}

/// The least for all unauthenticated connections: a few concurrent requests.
const LEAST_MEMORY: usize = 1 << 20;

impl Limits {
    fn apply(self, limits: &mut server::LimitsConfig) -> Result<(), ConfigError> {
        let unauthenticated = &mut limits.unauthenticated;
        for (key, given, limit) in [
            ("limits.unauthenticated_rate", self.unauthenticated_rate, &mut unauthenticated.rate),
            ("limits.unauthenticated_burst", self.unauthenticated_burst, &mut unauthenticated.burst),
            ("limits.dtls_handshakes", self.dtls_handshakes, &mut unauthenticated.dtls_handshakes),
            (
                "limits.connections_per_address",
                self.connections_per_address,
                &mut limits.connections_per_address,
            ),
        ] {
            match given {
                Some(0) => return Err(ConfigError::Value { key, rule: "must be at least 1" }),
                Some(given) => *limit = given,
                None => {}
            }
        }
        let memory = &mut limits.unauthenticated_memory;
        *memory = self.unauthenticated_memory.unwrap_or(*memory);
        if *memory < LEAST_MEMORY {
            let rule = "must be at least 1048576";
            return Err(ConfigError::Value { key: "limits.unauthenticated_memory", rule });
        }
        if let Some(prefixes) = self.unlimited_from {
            unauthenticated.unlimited_from = prefixes;
        }
        Ok(())
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TlsSection {
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    name: Option<String>,
    port: Option<u16>,
}

impl TlsSection {
    fn apply(self, tls: &mut server::TlsConfig) -> Result<(), ConfigError> {
        let value = |key, rule| ConfigError::Value { key, rule };
        tls.certificate = match (self.certificate, self.key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => return Err(value("tls.key", "must be set where tls.certificate is")),
            (None, Some(_)) => return Err(value("tls.certificate", "must be set where tls.key is")),
        };
        let host = |name: &String| {
            name.parse::<IpAddr>().is_ok()
                || !name.is_empty()
                    && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        };
        if !self.name.iter().all(host) {
            return Err(value("tls.name", "must be a host name or an address, without a port"));
        }
        if self.name.is_some() && tls.certificate.is_none() {
            return Err(value("tls.name", "needs tls.certificate: no client would trust a self-signed one"));
        }
        (tls.name, tls.port) = (self.name, self.port);
        Ok(())
    }
}

/// The least that can be let through, in bytes a second.
const MIN_BANDWIDTH: u64 = 1500;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Turn {
    realm: Option<String>,
    users: HashMap<String, auth::User>,
    rest_secret: Option<String>,
    alternate_server: Vec<SocketAddr>,
    alternate_domain: Option<String>,
    relay_ports: Option<String>,
    relay_addresses: Vec<IpAddr>,
    max_lifetime: Option<u64>,
    add_family: Option<bool>,
    mobility: Option<bool>,
    tcp_relay: Option<bool>,
    permissions_per_allocation: Option<usize>,
    new_peers_per_second: Option<u64>,
    new_peers_per_user: Option<u64>,
    bandwidth_per_allocation: Option<u64>,
    bandwidth_per_user: Option<u64>,
    allocations_per_user: Option<u32>,
    max_allocations: Option<u32>,
    credentials_ttl: Option<u64>,
    allow_peers: Vec<NetworkPrefix>,
    deny_peers: Vec<NetworkPrefix>,
}

impl Turn {
    fn apply(self, turn: &mut server::TurnConfig) -> Result<(), ConfigError> {
        let value = |key, rule| ConfigError::Value { key, rule };
        turn.realm = self.realm.unwrap_or_else(|| turn.realm.clone());
        auth::realm_name("turn.realm", &turn.realm)?;
        turn.users = auth::users("turn.users", self.users)?;
        turn.alternate_server = self.alternate_server;
        turn.alternate_domain = self.alternate_domain;
        turn.rest_secret = self.rest_secret.map(String::into_bytes);
        if turn.rest_secret.as_ref().is_some_and(|secret| secret.len() < 16) {
            return Err(value("turn.rest_secret", "must have at least 16 bytes"));
        }
        if let Some(ports) = self.relay_ports {
            let rule = "must be FIRST-LAST, from 1024 to 65535";
            turn.relay_ports = port_range(&ports).ok_or(value("turn.relay_ports", rule))?;
        }
        for (given, feature) in [
            (self.add_family, &mut turn.features.add_family),
            (self.mobility, &mut turn.features.mobility),
            (self.tcp_relay, &mut turn.features.tcp),
        ] {
            *feature = given.unwrap_or(*feature);
        }
        let limits = &mut turn.limits;
        limits.permissions = match self.permissions_per_allocation {
            Some(0) => return Err(value("turn.permissions_per_allocation", "must be at least 1")),
            given => given.unwrap_or(limits.permissions),
        };
        for (given, rate) in [
            (self.new_peers_per_second, &mut limits.new_peers),
            (self.new_peers_per_user, &mut limits.user_new_peers),
        ] {
            *rate = given.map_or(*rate, |given| rate.with_per_second(given));
        }
        for (key, given, rate) in [
            (
                "turn.bandwidth_per_allocation",
                self.bandwidth_per_allocation,
                &mut limits.allocation_bandwidth,
            ),
            ("turn.bandwidth_per_user", self.bandwidth_per_user, &mut limits.user_bandwidth),
        ] {
            if given.is_some_and(|given| (1..MIN_BANDWIDTH).contains(&given)) {
                return Err(value(key, "must be at least 1500 bytes a second, one packet; 0 for no limit"));
            }
            *rate = given.map_or(*rate, |given| rate.with_per_second(given));
        }
        turn.relay_addresses = self.relay_addresses;
        if let Some(seconds) = self.max_lifetime {
            turn.limits.max_lifetime = Duration::from_secs(seconds);
            if !(600..=86_400).contains(&seconds) {
                return Err(value("turn.max_lifetime", "must be 600 to 86400 seconds"));
            }
        }
        turn.allocations_per_user = match self.allocations_per_user {
            Some(0) => return Err(value("turn.allocations_per_user", "must be at least 1")),
            given => given.unwrap_or(turn.allocations_per_user),
        };
        turn.max_allocations = self.max_allocations.unwrap_or(turn.max_allocations);
        if let Some(seconds) = self.credentials_ttl {
            if !(1..=31_536_000).contains(&seconds) {
                return Err(value("turn.credentials_ttl", "must be 1 to 31536000 seconds"));
            }
            turn.credentials_ttl = Duration::from_secs(seconds);
        }
        turn.allow_peers = self.allow_peers;
        turn.deny_peers = self.deny_peers;
        Ok(())
    }
}

fn port_range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-')?;
    let range: RangeInclusive<u16> = first.trim().parse().ok()?..=last.trim().parse().ok()?;
    (*range.start() >= 1024 && range.start() <= range.end()).then_some(range)
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Log {
    level: Option<String>,
    addresses: bool,
    json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_needed_and_the_example_says_the_defaults() {
        let bare = Config::parse("").unwrap();
        for example in
            [include_str!("../docs/ginnel.example.toml"), include_str!("../docs/ginnel.advanced.toml")]
        {
            let example = Config::parse(example).unwrap();
            assert_eq!(format!("{bare:?}"), format!("{example:?}"));
        }
    }

    #[test]
    fn an_unknown_key_is_refused_without_naming_removed_ones() {
        let error = Config::parse("[turn]\nrelay_port = 1").unwrap_err().to_string();
        assert!(error.contains("`relay_ports`") && !error.contains("spill_ports"), "{error}");
        assert!(!error.contains("share_relay_ports"), "{error}");
    }

    #[test]
    fn unknown_keys_and_senseless_values_are_refused_by_name() {
        for (text, named) in [
            ("prot = 1", "prot"),
            ("[turn]\nrealms = 'x'", "realms"),
            ("[turn]\nrelay_ports = '50000'", "turn.relay_ports"),
            ("[turn]\nrelay_ports = '10-20'", "turn.relay_ports"),
            ("[turn]\nshare_relay_ports = false", "every allocation has a relay port of its own"),
            ("[turn]\nspill_ports = '50000-50001'", "every allocation has a relay port of its own"),
            ("[turn]\nallow_peers = ['10.0.0.0/33']", "allow_peers"),
            ("[turn]\nrest_secret = 'short'", "turn.rest_secret"),
            ("[turn]\nmax_lifetime = 10", "turn.max_lifetime"),
            ("[signaling]\nnotify_from = 'nobody'", "notify_from"),
            ("listen = []", "listen"),
            ("state = ''", "`state`"),
            ("[log]\nlevel = 'verbose'", "`log.level` must be error, warn, info"),
            ("[log]\nlevel = ''", "`log.level`"),
            ("[turn]\npermissions_per_allocation = 0", "turn.permissions_per_allocation"),
            ("[turn]\nallocations_per_user = 0", "turn.allocations_per_user"),
            ("[turn]\nbandwidth_per_user = 100", "turn.bandwidth_per_user"),
            ("[turn]\nbandwidth_per_allocation = 1499", "turn.bandwidth_per_allocation"),
            ("[turn]\ncredentials_ttl = 0", "turn.credentials_ttl"),
            ("[stun]\nnat_discovery = ['192.0.2.1']", "stun.nat_discovery"),
            ("[stun]\nnat_discovery = ['192.0.2.1', '192.0.2.1']", "stun.nat_discovery"),
            ("[stun]\nnat_discovery = ['192.0.2.1', '2001:db8::1']", "stun.nat_discovery"),
            ("[stun]\nnat_discovery = ['192.0.2.1', 'here']", "stun.nat_discovery"),
            ("listen = ['192.0.2.1']\n[stun]\nnat_discovery = ['192.0.2.1', '192.0.2.2']", "of `listen`"),
            ("[limits]\nunauthenticated_rate = 0", "limits.unauthenticated_rate"),
            ("[limits]\nunauthenticated_burst = 0", "limits.unauthenticated_burst"),
            ("[limits]\nunauthenticated_memory = 1000", "limits.unauthenticated_memory"),
            ("[limits]\ndtls_handshakes = 0", "limits.dtls_handshakes"),
            ("[limits]\nconnections_per_address = 0", "limits.connections_per_address"),
            ("[limits]\nunlimited_from = ['everywhere']", "unlimited_from"),
            ("proxy_protocol_from = ['10.0.0.0/33']", "proxy_protocol_from"),
            ("[tls]\ncertificate = 'a.pem'", "tls.key"),
            ("[tls]\nkey = 'a.pem'", "tls.certificate"),
            ("[tls]\nname = 'turn.example.org'", "tls.name"),
            ("[tls]\ncertificate = 'a'\nkey = 'b'\nname = 'a:5349'", "tls.name"),
            ("[tls]\nport = 70000", "port"),
        ] {
            let error = Config::parse(text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn values_arrive_where_they_are_used() {
        let config = Config::parse(
            "port = 4000\n[turn]\nrelay_ports = '50000-50063'\nusers = { alice = 'pw' }\n[signaling]\nlist = false\npresence = false\n[signaling.limits]\nwatches = 9",
        )
        .unwrap();
        assert_eq!((config.server.port, config.server.turn.relay_ports), (4000, 50_000..=50_063));
        assert_eq!(config.server.turn.users["alice"], server::StaticUser::Password("pw".to_owned()));
        assert!(!config.server.signaling.list && !config.server.signaling.presence);
        assert_eq!(config.server.signaling.limits.watches, 9);
    }

    #[test]
    fn the_addresses_of_nat_discovery_may_differ_outside() {
        let text = "[stun]\nnat_discovery = ['198.51.100.1/10.0.0.1', '198.51.100.2/10.0.0.2', '2001:db8::1', '2001:db8::2']";
        let homes = Config::parse(text).unwrap().server.nat_discovery;
        assert_eq!(homes.len(), 4);
        let (local, public) = ("10.0.0.1".parse().unwrap(), "198.51.100.1".parse().unwrap());
        assert_eq!(homes[0], ServerAddress { local, public });
        assert_eq!(homes[2].local, homes[2].public);
    }
}
