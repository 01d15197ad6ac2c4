//! Which proxy a connection passes: the values of `HTTPS_PROXY` or `ALL_PROXY`, and `NO_PROXY`. Pure.

use crate::limits::NetworkPrefix;
use std::fmt;
use std::net::IpAddr;

/// The proxy of a client's connections, and the hosts that are reached without it. By default there is none.
///
/// Loopback addresses and `localhost` are always reached without a proxy. A proxy gets the names of hosts and resolves them.
///
/// ```
/// use ginnel::agent::ProxySettings;
///
/// let settings = ProxySettings::new("http://proxy.example:3128", "intranet.example, 10.0.0.0/8")?;
/// assert_eq!(settings.proxy_of("turn.example", 3478).as_deref(), Some("http://proxy.example:3128"));
/// assert_eq!(settings.proxy_of("10.1.2.3", 3478), None);
/// # Ok::<(), ginnel::agent::ProxySettingsError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProxySettings {
    proxy: Option<Proxy>,
    exceptions: Vec<Exception>,
}

/// A text that names no proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a proxy is http://[USER:PASSWORD@]HOST[:PORT]; https:// and socks5:// are possible too")]
pub struct ProxySettingsError;

/// The protocol of a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProxyProtocol {
    /// HTTP with the method CONNECT ([RFC 9110 section 9.3.6](https://www.rfc-editor.org/rfc/rfc9110#section-9.3.6)).
    Http,
    /// The same inside TLS.
    Https,
    /// SOCKS version 5 ([RFC 1928](https://www.rfc-editor.org/rfc/rfc1928)).
    Socks5,
}

/// One proxy.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proxy {
    pub(crate) protocol: ProxyProtocol,
    pub(crate) host: String,
    pub(crate) port: u16,
    /// User and password.
    pub(crate) credentials: Option<(String, String)>,
}

/// Hosts that are reached without the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Exception {
    All,
    Network(NetworkPrefix),
    /// A domain with its subdomains, and the port if only one is meant.
    Domain(String, Option<u16>),
}

impl ProxySettings {
    /// Returns the settings with a proxy, and with exceptions separated by commas: `*`, addresses, prefixes such as `10.0.0.0/8`, and
    /// domains, which include their subdomains and may have a port. An exception that cannot be parsed matches no host.
    ///
    /// # Errors
    /// [`ProxySettingsError`] if `proxy` is no URL of an HTTP, HTTPS or SOCKS 5 proxy. Without a scheme it is an HTTP proxy.
    pub fn new(proxy: &str, exceptions: &str) -> Result<Self, ProxySettingsError> {
        let words = exceptions.split([',', ' ']).map(str::trim).filter(|word| !word.is_empty());
        Ok(Self {
            proxy: Some(Proxy::parse(proxy.trim())?),
            exceptions: words.map(Exception::parse).collect(),
        })
    }

    /// Returns the URL, without its credentials, of the proxy through which a host is reached.
    #[must_use]
    pub fn proxy_of(&self, host: &str, port: u16) -> Option<String> {
        self.select(host, port).map(ToString::to_string)
    }

    /// Returns the proxy through which a host is reached.
    pub(crate) fn select(&self, host: &str, port: u16) -> Option<&Proxy> {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let address = host.parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
        let is_local = host == "localhost" || address.is_some_and(|ip| ip.is_loopback());
        let is_excepted = |exception: &Exception| exception.matches(&host, address, port);
        self.proxy.as_ref().filter(|_| !is_local && !self.exceptions.iter().any(is_excepted))
    }
}

impl Proxy {
    fn parse(text: &str) -> Result<Self, ProxySettingsError> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let (protocol, default_port) = match scheme.to_ascii_lowercase().as_str() {
            "http" => (ProxyProtocol::Http, 80),
            "https" => (ProxyProtocol::Https, 443),
            "socks5" | "socks5h" | "socks" => (ProxyProtocol::Socks5, 1080),
            _ => return Err(ProxySettingsError),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let (credentials, authority) = match authority.rsplit_once('@') {
            Some((credentials, authority)) => (Some(parse_credentials(credentials)?), authority),
            None => (None, authority),
        };
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => rest.split_once(']').ok_or(ProxySettingsError)?,
            None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
        };
        let port = match port.strip_prefix(':') {
            Some(port) => port.parse().map_err(|_| ProxySettingsError)?,
            None if port.is_empty() => default_port,
            None => return Err(ProxySettingsError),
        };
        let is_valid = (1..=255).contains(&host.len())
            && host.chars().all(|c| c.is_ascii_graphic() && !"/?#@".contains(c))
            && port != 0;
        let host = host.to_owned();
        if is_valid { Ok(Self { protocol, host, port, credentials }) } else { Err(ProxySettingsError) }
    }
}

/// Parses `USER:PASSWORD`, both percent-encoded, of at most 255 bytes each (RFC 1929).
fn parse_credentials(text: &str) -> Result<(String, String), ProxySettingsError> {
    let (user, password) = text.split_once(':').unwrap_or((text, ""));
    let decode = |text: &str| decode_percent(text).filter(|text| text.len() <= 255).ok_or(ProxySettingsError);
    Ok((decode(user)?, decode(password)?))
}

fn decode_percent(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'%' => {
                let (digits, after) = rest.split_at_checked(2)?;
                bytes.push(*data_encoding::HEXLOWER_PERMISSIVE.decode(digits).ok()?.first()?);
                rest = after;
            }
            byte => bytes.push(*byte),
        }
    }
    String::from_utf8(bytes).ok()
}

/// Without the credentials.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.protocol {
            ProxyProtocol::Http => "http",
            ProxyProtocol::Https => "https",
            ProxyProtocol::Socks5 => "socks5",
        };
        match self.host.contains(':') {
            true => write!(f, "{scheme}://[{}]:{}", self.host, self.port),
            false => write!(f, "{scheme}://{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

impl Exception {
    fn parse(word: &str) -> Self {
        if word == "*" {
            return Self::All;
        }
        if let Ok(prefix) = word.trim_start_matches('[').trim_end_matches(']').parse() {
            return Self::Network(prefix);
        }
        let (domain, port) = match word.rsplit_once(':') {
            Some((domain, port)) if port.parse::<u16>().is_ok() => (domain, port.parse().ok()),
            _ => (word, None),
        };
        let domain = domain.trim_start_matches("*.").trim_start_matches('.').trim_end_matches('.');
        Self::Domain(domain.to_ascii_lowercase(), port)
    }

    fn matches(&self, host: &str, address: Option<IpAddr>, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Network(prefix) => address.is_some_and(|ip| prefix.contains(ip)),
            Self::Domain(domain, only) => {
                let start = host.strip_suffix(domain.as_str());
                only.is_none_or(|only| only == port)
                    && start.is_some_and(|start| start.is_empty() || start.ends_with('.'))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_a_url_with_optional_credentials() {
        for (text, expected) in [
            ("http://proxy.example:3128", Some("http://proxy.example:3128")),
            ("proxy.example:3128/", Some("http://proxy.example:3128")),
            ("HTTP://proxy.example", Some("http://proxy.example:80")),
            ("socks5://[2001:db8::1]", Some("socks5://[2001:db8::1]:1080")),
            ("socks5h://u:p@10.0.0.1:9", Some("socks5://10.0.0.1:9")),
            ("https://proxy.example", Some("https://proxy.example:443")),
            ("https://u:p@proxy.example:3128/", Some("https://proxy.example:3128")),
            ("socks4://proxy.example", None),
            ("http://", None),
            ("http://proxy.example:0", None),
            ("http://proxy.example:x", None),
            ("http://proxy.example/path", None),
            ("http://a%zz:b@proxy.example", None),
            ("http://proxy example", None),
            ("http://[::1", None),
        ] {
            let parsed = Proxy::parse(text).ok();
            assert_eq!(parsed.map(|proxy| proxy.to_string()).as_deref(), expected, "{text}");
        }
        let proxy = Proxy::parse("http://us%40er:p%3Aw@d@proxy.example").unwrap();
        assert_eq!(proxy.credentials, Some(("us@er".to_owned(), "p:w@d".to_owned())));
        let long = format!("socks5://{}:p@proxy.example", "u".repeat(256));
        assert_eq!(Proxy::parse(&long), Err(ProxySettingsError));
    }

    #[test]
    fn exceptions_and_this_host_are_reached_without_the_proxy() {
        let exceptions =
            "intranet.example, .corp.example,10.0.0.0/8 192.0.2.7,port.example:443,[2001:db8::1]";
        let settings = ProxySettings::new("http://proxy.example:3128", exceptions).unwrap();
        for (host, is_proxied) in [
            ("turn.example", true),
            ("intranet.example", false),
            ("A.Intranet.Example.", false),
            ("notintranet.example", true),
            ("corp.example", false),
            ("a.corp.example", false),
            ("10.1.2.3", false),
            ("11.1.2.3", true),
            ("192.0.2.7", false),
            ("192.0.2.8", true),
            ("port.example", true),
            ("2001:db8::1", false),
            ("localhost", false),
            ("127.0.0.1", false),
            ("::1", false),
        ] {
            assert_eq!(settings.select(host, 3478).is_some(), is_proxied, "{host}");
        }
        assert!(settings.select("port.example", 443).is_none());
        let all = ProxySettings::new("http://proxy.example:3128", "*").unwrap();
        assert!(all.select("turn.example", 3478).is_none());
        assert!(ProxySettings::default().select("turn.example", 3478).is_none());
    }

    #[test]
    fn debug_output_hides_the_password() {
        let settings = ProxySettings::new("http://user:hunter2@proxy.example", "").unwrap();
        assert!(!format!("{settings:?} {:?}", settings.proxy_of("turn.example", 1)).contains("hunter2"));
    }
}
