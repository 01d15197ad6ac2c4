//! What `agent forward` and `agent share` are told to do: parsed from their arguments.

use super::forward_error::ForwardCommandError;
use crate::forwarding::local_socket::LocalAddress;
use crate::forwarding::policy::{ListenRule, Policy, Service, ServiceTarget};
use crate::forwarding::wire::{HostPort, MAX_NAME, MAX_PATH, Target, Transport};
use crate::limits::NetworkPrefix;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// The most sockets of one command.
pub(super) const MAX_SOCKETS: usize = 64;

/// A local socket, and the target of its connections or datagrams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LocalForward {
    /// Where to listen.
    pub(super) local: LocalAddress,
    /// What the other side connects.
    pub(super) target: Target,
    /// Datagrams are forwarded in place of connections.
    pub(super) is_udp: bool,
}

/// A port of the other side, and the target of its connections on this side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReverseForward {
    /// The address at the other side; empty for loopback.
    pub(super) host: String,
    /// The port at the other side; 0 for any.
    pub(super) port: u16,
    /// Where its connections go.
    pub(super) target: ServiceTarget,
}

/// Returns whether an argument is a forwarding; the others name the peer.
pub(super) fn is_forward(word: &str) -> bool {
    let is_ticket = word.get(..6).is_some_and(|start| start.eq_ignore_ascii_case("agent:"));
    word.contains(':') && !is_ticket
}

/// Splits `[BIND:]PORT:REST` into the address, the port, and the rest. An address in brackets may contain colons.
fn split_local(text: &str) -> Option<(Option<&str>, u16, &str)> {
    let (first, rest) = match text.strip_prefix('[') {
        Some(inner) => inner.split_once("]:")?,
        None => text.split_once(':')?,
    };
    match first.parse() {
        Ok(port) if !text.starts_with('[') => Some((None, port, rest)),
        _ => {
            let (port, rest) = rest.split_once(':')?;
            Some((Some(first), port.parse().ok()?, rest))
        }
    }
}

/// Parses the address of a local socket: loopback by default.
pub(super) fn parse_bind(bind: Option<&str>, port: u16) -> Option<SocketAddr> {
    let ip: IpAddr = match bind {
        None | Some("localhost") => Ipv4Addr::LOCALHOST.into(),
        Some("*") => Ipv4Addr::UNSPECIFIED.into(),
        Some(bind) => bind.parse().ok()?,
    };
    Some(SocketAddr::new(ip, port))
}

/// Parses `NAME`, `HOST:PORT` or `/PATH`.
fn parse_target(text: &str, is_udp: bool) -> Option<Target> {
    let is_name = |name: &str| {
        (1..=MAX_NAME).contains(&name.len())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    match text {
        path if path.starts_with('/') => {
            (path.len() <= MAX_PATH && !is_udp).then(|| Target::Unix(path.to_owned()))
        }
        address if address.contains(':') => {
            let address: HostPort = address.parse().ok()?;
            Some(if is_udp { Target::Udp(address) } else { Target::Tcp(address) })
        }
        name => is_name(name).then(|| Target::Service(name.to_owned())),
    }
}

impl LocalForward {
    /// Parses `[BIND:]PORT:TARGET[/udp]` or `/PATH:TARGET`.
    pub(super) fn parse(text: &str) -> Result<Self, ForwardCommandError> {
        Self::try_parse(text).ok_or_else(|| ForwardCommandError::Syntax(text.to_owned()))
    }

    fn try_parse(text: &str) -> Option<Self> {
        let (whole, is_udp) = match text.strip_suffix("/udp") {
            Some(whole) => (whole, true),
            None => (text.strip_suffix("/tcp").unwrap_or(text), false),
        };
        if text.starts_with(['/', '.']) {
            let (path, target) = whole.split_once(':')?;
            let local = LocalAddress::Unix(PathBuf::from(path));
            return (!is_udp).then_some(Self { local, target: parse_target(target, false)?, is_udp });
        }
        let (bind, port, target) = split_local(whole)?;
        let local = LocalAddress::Ip(parse_bind(bind, port)?);
        Some(Self { local, target: parse_target(target, is_udp)?, is_udp })
    }

    /// Returns what the target has to speak; `None` if it is a stream of either kind.
    pub(super) fn permits(&self, transport: Transport) -> bool {
        self.is_udp == (transport == Transport::Udp)
    }
}

impl ReverseForward {
    /// Parses `[BIND:]PORT:HOST:PORT`, `[BIND:]PORT:PORT` or `[BIND:]PORT:/PATH`.
    pub(super) fn parse(text: &str) -> Result<Self, ForwardCommandError> {
        Self::try_parse(text).ok_or_else(|| ForwardCommandError::ReverseSyntax(text.to_owned()))
    }

    fn try_parse(text: &str) -> Option<Self> {
        let (mut bind, mut port, mut rest) = split_local(text)?;
        // `0.0.0.0:8080:3000` and `8080:localhost:3000` both have three parts: a bind address is an address.
        if bind.is_some_and(|bind| bind.parse::<IpAddr>().is_err() && bind != "localhost" && bind != "*") {
            let (first, target) = text.split_once(':')?;
            (bind, port, rest) = (None, first.parse().ok()?, target);
        }
        let host = match bind {
            None | Some("localhost") => String::new(),
            Some("*") => Ipv4Addr::UNSPECIFIED.to_string(),
            Some(bind) => bind.to_owned(),
        };
        let target = match rest.parse::<u16>() {
            Ok(port) => ServiceTarget::Tcp(HostPort::new("localhost", port)?),
            Err(_) => match parse_target(rest, false)? {
                Target::Tcp(address) => ServiceTarget::Tcp(address),
                Target::Unix(path) => ServiceTarget::Unix(path),
                Target::Service(_) | Target::Udp(_) => return None,
            },
        };
        Some(Self { host, port, target })
    }
}

/// Parses the address of `agent socks`: `[BIND:]PORT`.
pub(super) fn parse_socks(text: &str) -> Option<SocketAddr> {
    match text.parse() {
        Ok(port) => parse_bind(None, port),
        Err(_) => {
            let (bind, port) = text.rsplit_once(':')?;
            let bind = bind.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(bind);
            parse_bind(Some(bind), port.parse().ok()?)
        }
    }
}

/// Parses the services of `agent share`: `tcp 22`, `tcp HOST:PORT`, `udp 53`, `unix PATH` and `any`, one after the other. `names` are those of
/// the services in their order.
pub(super) fn parse_services(
    words: &[String],
    names: &[String],
    networks: &[NetworkPrefix],
    reverse: Option<&str>,
) -> Result<Policy, ForwardCommandError> {
    let mut policy = Policy::default();
    let (mut words, mut names) = (words.iter(), names.iter());
    while let Some(kind) = words.next() {
        if kind == "any" {
            policy.allow_any(networks.to_vec());
            continue;
        }
        let service = words.next().and_then(|text| parse_service(kind, text));
        let target = service.ok_or_else(|| ForwardCommandError::Service(kind.clone()))?;
        let name = names.next().cloned().unwrap_or_else(|| target.default_name());
        policy.add(Service { name, target })?;
    }
    if let Some(name) = names.next() {
        return Err(ForwardCommandError::NameWithoutService(name.clone()));
    }
    if !networks.is_empty() && !policy.is_any_allowed() {
        return Err(ForwardCommandError::NetworkWithoutAny);
    }
    match reverse {
        None => {}
        Some("") => policy.allow_listen(ListenRule::LOOPBACK),
        Some(rules) => {
            for rule in rules.split(',') {
                let parsed = ListenRule::parse(rule.trim());
                policy.allow_listen(parsed.ok_or_else(|| ForwardCommandError::Ports(rule.to_owned()))?);
            }
        }
    }
    if policy.services().is_empty() && !policy.is_any_allowed() && reverse.is_none() {
        return Err(ForwardCommandError::NothingShared);
    }
    Ok(policy)
}

fn parse_service(kind: &str, text: &str) -> Option<ServiceTarget> {
    let address = || match text.parse::<u16>() {
        Ok(port) => HostPort::new("127.0.0.1", port),
        Err(_) => text.parse().ok(),
    };
    match kind {
        "tcp" => address().map(ServiceTarget::Tcp),
        "udp" => address().map(ServiceTarget::Udp),
        "unix" => Some(ServiceTarget::Unix(text.to_owned())),
        _ => None,
    }
}

/// Parses a time such as `90s`, `10m`, `2h` or `1d`; a number without a unit is seconds.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.char_indices().find(|(_, c)| !c.is_ascii_digit()) {
        Some((at, _)) => text.split_at(at),
        None => (text, "s"),
    };
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => 0,
    };
    let whole =
        number.parse::<u32>().ok().map(|number| u64::from(number) * seconds).filter(|whole| *whole > 0);
    whole.map(Duration::from_secs).ok_or_else(|| "a time is a number and s, m, h or d, such as 2h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(forward: &LocalForward) -> String {
        format!("{} → {} {}", forward.local, forward.target, forward.is_udp)
    }

    #[test]
    fn a_forwarding_is_an_address_and_a_target() {
        for (text, expected) in [
            ("2222:ssh", "127.0.0.1:2222 → ssh false"),
            ("2222:10.0.0.5:80", "127.0.0.1:2222 → 10.0.0.5:80 false"),
            ("2222:name.example:80", "127.0.0.1:2222 → name.example:80 false"),
            ("2222:[::1]:80", "127.0.0.1:2222 → [::1]:80 false"),
            ("0.0.0.0:2222:ssh", "0.0.0.0:2222 → ssh false"),
            ("*:2222:ssh", "0.0.0.0:2222 → ssh false"),
            ("0.0.0.0:2222:10.0.0.5:80", "0.0.0.0:2222 → 10.0.0.5:80 false"),
            ("[::1]:2222:ssh", "[::1]:2222 → ssh false"),
            ("localhost:2222:ssh", "127.0.0.1:2222 → ssh false"),
            ("53:dns/udp", "127.0.0.1:53 → dns true"),
            ("53:10.0.0.5:53/udp", "127.0.0.1:53 → 10.0.0.5:53/udp true"),
            ("2222:ssh/tcp", "127.0.0.1:2222 → ssh false"),
            ("/tmp/x.sock:db", "/tmp/x.sock → db false"),
            ("./x.sock:10.0.0.5:80", "./x.sock → 10.0.0.5:80 false"),
            ("0:ssh", "127.0.0.1:0 → ssh false"),
            ("8080:/run/x.sock", "127.0.0.1:8080 → /run/x.sock false"),
        ] {
            assert!(is_forward(text), "{text}");
            assert_eq!(LocalForward::parse(text).map(|forward| shown(&forward)).unwrap(), expected, "{text}");
        }
        for text in [
            "ssh",
            "2222",
            "2222:",
            ":ssh",
            "70000:ssh",
            "host:2222:ssh",
            "2222:a b",
            "2222:ssh/sctp",
            "/tmp/x:db/udp",
            "53:/run/x/udp",
            "1:2:3:4:5",
            "2222:h:0",
            "[::1]:ssh",
            "2222:\u{1b}[2J",
        ] {
            assert!(LocalForward::parse(text).is_err(), "{text}");
        }
        for text in ["agent:abc", "AGENT:ABC", "laptop", "7-crater-violin"] {
            assert!(!is_forward(text), "{text}");
        }
    }

    #[test]
    fn a_reverse_forwarding_is_a_remote_port_and_a_local_target() {
        for (text, host, port, target) in [
            ("8080:localhost:3000", "", 8080, "tcp localhost:3000"),
            ("8080:3000", "", 8080, "tcp localhost:3000"),
            ("0.0.0.0:8080:3000", "0.0.0.0", 8080, "tcp localhost:3000"),
            ("0.0.0.0:8080:host:3000", "0.0.0.0", 8080, "tcp host:3000"),
            ("[::1]:8080:[::1]:3000", "::1", 8080, "tcp [::1]:3000"),
            ("8080:/run/x.sock", "", 8080, "unix /run/x.sock"),
            ("0:localhost:22", "", 0, "tcp localhost:22"),
        ] {
            let reverse = ReverseForward::parse(text).unwrap();
            assert_eq!(
                (&*reverse.host, reverse.port, &*reverse.target.to_string()),
                (host, port, target),
                "{text}"
            );
        }
        for text in ["8080", "8080:name", "x:y", "8080:localhost:", "name:8080:x:y"] {
            assert!(ReverseForward::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn services_are_read_in_their_order() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let parse = |text: &str, names: &str| parse_services(&words(text), &words(names), &[], None);
        let policy = parse("tcp 22 unix /run/docker.sock udp 10.0.0.5:53", "ssh").unwrap();
        let services: Vec<_> =
            policy.services().iter().map(|service| format!("{} {}", service.name, service.target)).collect();
        assert_eq!(
            services,
            ["ssh tcp 127.0.0.1:22", "docker unix /run/docker.sock", "10.0.0.5-53 udp 10.0.0.5:53"]
        );
        assert!(parse("any", "").unwrap().is_any_allowed());
        for (text, names) in [
            ("", ""),
            ("tcp", ""),
            ("tcp x", ""),
            ("sctp 22", ""),
            ("tcp 22", "a b"),
            ("tcp 22 tcp 22", ""),
            ("unix relative.sock", ""),
            ("22", ""),
            ("any", "x"),
        ] {
            assert!(parse(text, names).is_err(), "{text}");
        }
        let network = ["10.0.0.0/8".parse().unwrap()];
        assert!(parse_services(&words("tcp 22"), &[], &network, None).is_err());
        assert!(parse_services(&words("any"), &[], &network, None).is_ok());
        assert!(parse_services(&[], &[], &[], Some("")).is_ok());
        assert!(parse_services(&[], &[], &[], Some("8000-8999,0.0.0.0:9000")).is_ok());
        assert!(parse_services(&[], &[], &[], Some("x")).is_err());
    }

    #[test]
    fn a_socks_address_is_a_port_on_loopback_unless_another_one_is_named() {
        for (text, expected) in [
            ("1080", Some("127.0.0.1:1080")),
            ("0.0.0.0:1080", Some("0.0.0.0:1080")),
            ("[::1]:1080", Some("[::1]:1080")),
            ("localhost:0", Some("127.0.0.1:0")),
            ("host:1080", None),
            ("x", None),
        ] {
            assert_eq!(parse_socks(text).map(|address| address.to_string()).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_time_has_a_unit() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200), ("1d", 86_400)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)));
        }
        for text in ["", "0", "h", "2 h", "2w", "-1s", "99999999999d"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
