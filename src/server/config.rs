//! The server's configuration. `crate::config` fills it in from a file.

use super::{AuthConfig, LimitsConfig, StaticUser};
use crate::gateway;
use crate::gateway::handshake::Key;
use crate::gateway::token::TokenIssuer;
use crate::limits::NetworkPrefix;
use crate::signaling;
use crate::state::State;
use crate::stun_server::ServerAddress;
use crate::turn_server::{AllocationLimits, RelayFeatures};
use data_encoding::HEXLOWER;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// The server's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Addresses to listen on; default all of both families.
    pub listen: Vec<IpAddr>,
    /// UDP and TCP port; default 3478.
    pub port: u16,
    /// Second UDP port; 0 for none; default 3479, or any when that is taken.
    pub aux_port: Option<u16>,
    /// Public addresses, where they differ from the interfaces'; default none.
    pub public: Vec<IpAddr>,
    /// Worker threads; default one per core.
    pub workers: Option<usize>,
    /// The addresses of NAT behaviour discovery, two of a family or none; each is listened on. Default none.
    pub nat_discovery: Vec<ServerAddress>,
    /// Limits on unauthenticated clients.
    pub limits: LimitsConfig,
    /// Proxies that may name the client in a PROXY header, `X-Forwarded-For` or `Forwarded`; default none.
    pub trusted_proxies: Vec<NetworkPrefix>,
    /// TLS and DTLS.
    pub tls: TlsConfig,
    /// The relay.
    pub turn: TurnConfig,
    /// Credential sources.
    pub auth: AuthConfig,
    /// The gateway.
    pub gateway: GatewayConfig,
    /// Messaging.
    #[cfg(feature = "messaging")]
    pub messaging: super::MessagingConfig,
    /// Addresses that may read `/metrics`; default only this host.
    pub metrics_from: Vec<NetworkPrefix>,
    /// Host names for `/metrics` besides those of this host and of the certificate; default none.
    pub metrics_hosts: Vec<String>,
    /// Signalling; its keys, ICE servers and second port are filled in by the server.
    pub signaling: signaling::Config,
}

/// The gateway's configuration.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Whether it is enabled; default yes.
    pub enabled: bool,
    /// Addresses that servers connect to; default those of loopback.
    pub server_listen: Vec<IpAddr>,
    /// Whether these are the defaults, of which this host may lack one.
    pub is_default_listen: bool,
    /// The port for servers with the MD5 handshake; 0 for none; default 3480, or none where that is taken.
    pub server_port: Option<u16>,
    /// The same with HMAC-SHA256; default 3481.
    pub hmac_port: Option<u16>,
    /// The same with MD5 inside TLS, for servers with a certificate; default none.
    pub tls_port: Option<u16>,
    /// The PEM file of the authority of those certificates.
    pub client_ca: Option<PathBuf>,
    /// Whether clients must show a gateway token; default no.
    pub require_token: bool,
    /// The gateway itself; without a key it uses the server's own.
    pub service: gateway::Config,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            server_listen: vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            is_default_listen: true,
            server_port: None,
            hmac_port: None,
            tls_port: None,
            client_ca: None,
            require_token: false,
            service: gateway::Config::default(),
        }
    }
}

impl GatewayConfig {
    /// Fills in the keys: the server's own where none is set.
    pub(super) fn filled_in(&self, config: &Config, state: &State) -> gateway::Config {
        let mut service = self.service.clone();
        service.key = service.key.or_else(|| Key::new(config.gateway_key(state)).ok());
        service.access_keys = Key::new(state.access_key.as_bytes()).into_iter().collect();
        service.tokens = self.require_token.then(|| config.token_issuer(state));
        service
    }
}

impl Config {
    /// A server with only the main port, UDP and TCP: no second UDP port, no separate TLS port (the main port accepts TLS too), and no
    /// gateway. Otherwise the defaults.
    #[must_use]
    pub fn minimal() -> Self {
        Self {
            aux_port: Some(0),
            tls: TlsConfig { port: Some(0), ..TlsConfig::default() },
            gateway: GatewayConfig { enabled: false, ..GatewayConfig::default() },
            ..Self::default()
        }
    }

    /// Returns the derived key of the gateway's servers, a text of which they use the bytes.
    #[must_use]
    pub(crate) fn gateway_key(&self, state: &State) -> String {
        HEXLOWER.encode(&self.auth.derive(state, "gateway servers"))
    }

    /// Returns the key that signs gateway tokens.
    #[must_use]
    pub(crate) fn token_issuer(&self, state: &State) -> TokenIssuer {
        TokenIssuer::new(&self.auth.derive(state, "gateway tickets"))
    }
}

/// Configuration of TLS and DTLS.
#[derive(Debug, Clone, Default)]
pub struct TlsConfig {
    /// PEM files of the certificate chain and its key; default a self-signed one in the state folder.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// The host of `turns:` URLs; default the certificate's first DNS name. With a self-signed certificate there are none.
    pub name: Option<String>,
    /// A second port for TLS and DTLS, where plain STUN, TURN and HTTP are accepted too; 0 for none; default 5349, or none where that is
    /// taken.
    pub port: Option<u16>,
}

/// The relay's configuration.
#[derive(Debug, Clone)]
pub struct TurnConfig {
    /// Realm of the long-term credentials; default `ginnel`.
    pub realm: String,
    /// Static users of the default realm; default none.
    pub users: HashMap<String, StaticUser>,
    /// Secret of time-limited credentials; default one derived from the state folder's.
    pub rest_secret: Option<Vec<u8>>,
    /// Servers to which new clients are redirected (ALTERNATE-SERVER), by family; default none.
    pub alternate_server: Vec<SocketAddr>,
    /// The name in those servers' certificates (ALTERNATE-DOMAIN); default none.
    pub alternate_domain: Option<String>,
    /// Ports of relayed addresses, one for each; default 49152–65535.
    pub relay_ports: RangeInclusive<u16>,
    /// Local addresses of relay sockets; default the most widely reachable one of each family.
    pub relay_addresses: Vec<IpAddr>,
    /// Caps of one allocation.
    pub limits: AllocationLimits,
    /// Features that clients may use.
    pub features: RelayFeatures,
    /// Allocations of one user name; default 128: a browser makes two for each connection.
    pub allocations_per_user: u32,
    /// Allocations in all; default 10 000.
    pub max_allocations: u32,
    /// How long minted credentials are good; default 24 h.
    pub credentials_ttl: Duration,
    /// Peers allowed in spite of the special-purpose table; default none.
    pub allow_peers: Vec<NetworkPrefix>,
    /// Peers denied in addition to it; default none.
    pub deny_peers: Vec<NetworkPrefix>,
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
            trusted_proxies: Vec::new(),
            tls: TlsConfig::default(),
            turn: TurnConfig::default(),
            auth: AuthConfig::default(),
            gateway: GatewayConfig::default(),
            #[cfg(feature = "messaging")]
            messaging: super::MessagingConfig::default(),
            metrics_from: NetworkPrefix::loopback(),
            metrics_hosts: Vec::new(),
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
            relay_ports: 49_152..=65_535,
            alternate_server: Vec::new(),
            alternate_domain: None,
            relay_addresses: Vec::new(),
            limits: AllocationLimits::default(),
            features: RelayFeatures::default(),
            allocations_per_user: 128,
            max_allocations: 10_000,
            credentials_ttl: Duration::from_secs(24 * 3600),
            allow_peers: Vec::new(),
            deny_peers: Vec::new(),
        }
    }
}
