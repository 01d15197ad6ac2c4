//! Configuration of an agent.

use super::engine::IceImplementation;
use super::path::PathPolicy;
use super::protocol::Protocol;
use super::servers::MAX_SERVERS;
use crate::net::client_tls::Tls;
use crate::net::dialer::Dialer;
use crate::net::proxy_settings::ProxySettings;
use std::fmt;
use std::str::FromStr;

const DEFAULT_PORT: u16 = 3478;

/// Host and port of a ginnel server.
///
/// Parses `HOST`, `HOST:PORT`, an IPv4 address, or an IPv6 address, in brackets if a port follows. A URL such as
/// `https://HOST/` or `turn:HOST:PORT?transport=udp` gives its host and port; `https`, `wss`, `turns` and `stuns` also ask for TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerName {
    /// Host name or address.
    pub host: String,
    /// Port, 3478 by default.
    pub port: u16,
    /// Whether TCP connections to it are inside TLS; by default not.
    pub tls: bool,
}

/// A text that names no server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a server is HOST or HOST:PORT, such as turn.example:3478 or [2001:db8::7]:3478")]
pub struct ServerNameError;

impl FromStr for ServerName {
    type Err = ServerNameError;

    fn from_str(text: &str) -> Result<Self, ServerNameError> {
        let text = text.trim();
        let tls = has_tls(text);
        let text = authority(text);
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or(ServerNameError)?;
                (
                    host,
                    if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or(ServerNameError)?) },
                )
            }
            None => match text.split_once(':') {
                Some((_, rest)) if rest.contains(':') => (text, None),
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let port = port.map_or(Ok(DEFAULT_PORT), str::parse).map_err(|_| ServerNameError)?;
        let is_valid =
            (1..=255).contains(&host.len()) && host.chars().all(|c| c.is_ascii_graphic() && c != '/');
        if is_valid && port != 0 {
            Ok(Self { host: host.to_owned(), port, tls })
        } else {
            Err(ServerNameError)
        }
    }
}

/// Returns whether the text is a URL with a scheme that asks for TLS.
fn has_tls(text: &str) -> bool {
    let scheme = text.split_once(':').filter(|_| authority(text) != text).map(|(scheme, _)| scheme);
    let schemes = ["https", "wss", "turns", "stuns"];
    scheme.is_some_and(|scheme| schemes.iter().any(|name| scheme.eq_ignore_ascii_case(name)))
}

/// Returns host and port of a URL, and any other text unchanged.
fn authority(text: &str) -> &str {
    const SCHEMES: [&str; 8] = ["https", "http", "wss", "ws", "turns", "turn", "stuns", "stun"];
    let scheme = text.split_once(':').filter(|(scheme, rest)| {
        let slashes = rest.starts_with("//");
        let (web, known) = SCHEMES.split_at(4);
        let is = |names: &[&str]| names.iter().any(|name| scheme.eq_ignore_ascii_case(name));
        // `turn:3478` is a host named `turn` with a port.
        (slashes && is(web)) || (is(known) && !rest.bytes().all(|byte| byte.is_ascii_digit()))
    });
    let rest = scheme.map_or(text, |(_, rest)| rest.trim_start_matches('/'));
    match scheme {
        Some(_) => rest.split(['/', '?', '#']).next().unwrap_or(rest),
        None => text.strip_suffix('/').unwrap_or(text),
    }
}

impl ServerName {
    /// Returns `HOST:PORT`.
    pub(super) fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

/// `HOST:PORT`, or `wss://HOST:PORT` with TLS.
impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "wss://" } else { "" };
        write!(f, "{scheme}{}", self.authority())
    }
}

/// Configuration of an [`Agent`](super::Agent).
///
/// ```
/// # fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let config = ginnel::agent::Config::new().server("turn.example".parse()?).key("the access key");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Config {
    pub(super) servers: Vec<ServerName>,
    pub(super) key: Option<String>,
    pub(super) policy: PathPolicy,
    pub(super) ice: IceImplementation,
    pub(super) dialer: Dialer,
    pub(super) port_mapping: bool,
    pub(super) spray: bool,
    pub(super) protocol: Protocol,
    pub(super) listen_secret: Option<[u8; 32]>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            key: None,
            policy: PathPolicy::default(),
            ice: IceImplementation::default(),
            dialer: Dialer::default(),
            port_mapping: true,
            spray: true,
            protocol: Protocol::default(),
            listen_secret: None,
        }
    }
}

impl Config {
    /// Returns the default configuration: no server, no access key, all paths.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the server. A listener needs one; a connector uses the one in its ticket by default.
    #[must_use]
    pub fn server(mut self, server: ServerName) -> Self {
        self.servers = vec![server];
        self
    }

    /// Adds a server that is used when those before do not answer. All accept the same access key. Servers after the fourth are ignored.
    #[must_use]
    pub fn further_server(mut self, server: ServerName) -> Self {
        if self.servers.len() < MAX_SERVERS && !self.servers.contains(&server) {
            self.servers.push(server);
        }
        self
    }

    /// Sets the access key of the server. Without it the server grants no relay to this side.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Sets the paths that may be used; [`PathPolicy::All`] by default.
    #[must_use]
    pub fn policy(mut self, policy: PathPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Sets the ICE implementation; [`IceImplementation::Ginnel`] by default.
    #[must_use]
    pub fn ice(mut self, ice: IceImplementation) -> Self {
        self.ice = ice;
        self
    }

    /// Sets whether the router of the default route is asked to map ports (PCP, NAT-PMP, UPnP); by default it is.
    #[must_use]
    pub fn port_mapping(mut self, is_allowed: bool) -> Self {
        self.port_mapping = is_allowed;
        self
    }

    /// Sets whether the ports of NATs that change ports may be predicted and probed, to find a direct path; by default they may. The server
    /// and the other side can forbid it too.
    #[must_use]
    pub fn spray(mut self, is_allowed: bool) -> Self {
        self.spray = is_allowed;
        self
    }

    /// Sets the application protocol that both sides must speak; [`Protocol::PIPE`] by default.
    #[must_use]
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// Sets the secret of listeners. Those of one secret have the same ticket, also after the process was started again; by default each listener
    /// has its own.
    #[cfg(all(feature = "files", unix))]
    #[must_use]
    pub(crate) fn listen_secret(mut self, secret: [u8; 32]) -> Self {
        self.listen_secret = Some(secret);
        self
    }

    /// Sets the certificates that are trusted where the server is reached by TLS; the system's by default.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.dialer.tls = tls;
        self
    }

    /// Sets the proxy of TCP connections to the server; by default there is none. The library does not read the environment.
    #[must_use]
    pub fn proxies(mut self, proxies: ProxySettings) -> Self {
        self.dialer.proxies = proxies;
        self
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.key.as_ref().map(|_| "..");
        f.debug_struct("Config")
            .field("servers", &self.servers)
            .field("key", &key)
            .field("policy", &self.policy)
            .field("ice", &self.ice)
            .field("dialer", &self.dialer)
            .field("port_mapping", &self.port_mapping)
            .field("spray", &self.spray)
            .field("protocol", &self.protocol)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_host_and_an_optional_port() {
        let table = [
            ("turn.example", Some(("turn.example", 3478))),
            ("turn.example:99", Some(("turn.example", 99))),
            ("192.0.2.1:3478", Some(("192.0.2.1", 3478))),
            ("2001:db8::7", Some(("2001:db8::7", 3478))),
            ("[2001:db8::7]", Some(("2001:db8::7", 3478))),
            ("[2001:db8::7]:99", Some(("2001:db8::7", 99))),
            ("", None),
            (":3478", None),
            ("host:", None),
            ("host:0", None),
            ("host:70000", None),
            ("[::1", None),
            ("[::1]9", None),
            ("http://host", Some(("host", 3478))),
            ("https://turn.example", Some(("turn.example", 3478))),
            ("https://turn.example:8443/", Some(("turn.example", 8443))),
            ("HTTPS://Turn.Example/some/page?x#y", Some(("Turn.Example", 3478))),
            ("wss://[2001:db8::7]:99/ws", Some(("2001:db8::7", 99))),
            ("turn:turn.example:99?transport=udp", Some(("turn.example", 99))),
            ("stun:192.0.2.1", Some(("192.0.2.1", 3478))),
            (" turn.example:99\n", Some(("turn.example", 99))),
            ("turn.example/", Some(("turn.example", 3478))),
            ("turn:99", Some(("turn", 99))),
            ("https://", None),
            ("ftp://host", None),
            ("host/path", None),
        ];
        for (text, expected) in table {
            let parsed = text.parse::<ServerName>().ok();
            let tls = parsed.as_ref().is_some_and(|name| name.tls);
            let expected = expected.map(|(host, port)| ServerName { host: host.into(), port, tls });
            assert_eq!(parsed, expected, "{text}");
            if let Some(name) = parsed {
                assert_eq!(name.to_string().parse(), Ok(name));
            }
        }
    }

    #[test]
    fn a_url_may_ask_for_tls() {
        for (text, tls) in [
            ("turn.example", false),
            ("http://turn.example", false),
            ("ws://turn.example:99/ws", false),
            ("turn:turn.example:99", false),
            ("https://turn.example", true),
            ("WSS://turn.example:99/ws", true),
            ("wss://[2001:db8::7]", true),
            ("turns:turn.example", true),
            ("wss:99", false),
            ("https.example:99", false),
        ] {
            let name: ServerName = text.parse().unwrap();
            assert_eq!(name.tls, tls, "{text}");
            assert_eq!(name.to_string().parse(), Ok(name));
        }
    }

    #[test]
    fn debug_output_hides_the_key() {
        let config = Config::new().key("hunter2");
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
