//! What the side that shares permits: services by name, their addresses, any public address, and ports to listen at.

use super::wire::{HostPort, MAX_NAME, MAX_PATH, Refusal, RefusalCode, Target, Transport};
use crate::limits::NetworkPrefix;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Maximum number of services of one [`Policy`].
pub(crate) const MAX_SERVICES: usize = 64;
/// The number of names that a refusal lists.
const LISTED_NAMES: usize = 8;

/// Where a service is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ServiceTarget {
    /// A TCP port.
    Tcp(HostPort),
    /// A UDP port.
    Udp(HostPort),
    /// The path of a Unix socket.
    Unix(String),
}

impl ServiceTarget {
    /// Returns what it speaks.
    pub(crate) fn transport(&self) -> Transport {
        match self {
            Self::Tcp(_) => Transport::Tcp,
            Self::Udp(_) => Transport::Udp,
            Self::Unix(_) => Transport::Unix,
        }
    }

    /// Returns the name that a service has if none is given: its port on this host, else its address, or the file's name without its ending.
    pub(crate) fn default_name(&self) -> String {
        let of_port = |target: &HostPort| match is_loopback(&target.host) {
            true => target.port.to_string(),
            false => format!("{}-{}", target.host.replace(':', "."), target.port),
        };
        match self {
            Self::Tcp(target) | Self::Udp(target) => of_port(target),
            Self::Unix(path) => {
                let file = path.rsplit('/').next().unwrap_or(path);
                file.strip_suffix(".sock").unwrap_or(file).to_owned()
            }
        }
    }
}

impl fmt::Display for ServiceTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(target) => write!(f, "tcp {target}"),
            Self::Udp(target) => write!(f, "udp {target}"),
            Self::Unix(path) => write!(f, "unix {path}"),
        }
    }
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// A service that others may reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Service {
    /// Its name.
    pub(crate) name: String,
    /// Where it is.
    pub(crate) target: ServiceTarget,
}

/// Why a [`Policy`] cannot be as typed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PolicyError {
    /// A name is empty, too long, or has characters that a command line would split.
    #[error("\"{0}\" is no name of a service")]
    Name(String),
    /// Two services have the same name.
    #[error("two services are named {0}")]
    DuplicateName(String),
    /// There are too many services.
    #[error("more than {MAX_SERVICES} services")]
    TooMany,
    /// The path of a Unix socket is relative or too long.
    #[error("{0} is no absolute path of at most {MAX_PATH} bytes")]
    Path(String),
}

/// Ports at which others may ask this side to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ListenRule {
    /// The address; `None` stands for those of loopback.
    pub(crate) address: Option<IpAddr>,
    /// The first and the last port.
    pub(crate) ports: (u16, u16),
}

impl ListenRule {
    /// Permits every port of loopback.
    pub(crate) const LOOPBACK: Self = Self { address: None, ports: (0, u16::MAX) };

    /// Parses `PORT`, `PORT-PORT`, `ADDRESS:PORT` or `ADDRESS:PORT-PORT`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (address, ports) = match text.rsplit_once(':') {
            Some((address, ports)) => {
                let address =
                    address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
                (Some(address.parse().ok()?), ports)
            }
            None => (None, text),
        };
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let ports: (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        (ports.0 != 0 && ports.0 <= ports.1).then_some(Self { address, ports })
    }

    fn permits(&self, at: SocketAddr) -> bool {
        let is_address = self.address.map_or(at.ip().is_loopback(), |address| address == at.ip());
        is_address && (self.ports.0..=self.ports.1).contains(&at.port())
    }
}

/// What is shared.
#[derive(Debug, Clone, Default)]
pub(crate) struct Policy {
    services: Vec<Service>,
    /// Any public address may be reached, and those in these networks.
    any: Option<Vec<NetworkPrefix>>,
    listen: Vec<ListenRule>,
}

/// A target that may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PermittedTarget {
    /// Where it is.
    pub(crate) target: ServiceTarget,
    /// The addresses that its name may have; `None` if the target itself was shared.
    networks: Option<Vec<NetworkPrefix>>,
}

impl PermittedTarget {
    /// Returns whether the target may have this address; `own` are the addresses of this host.
    pub(crate) fn permits_address(&self, ip: IpAddr, own: &[IpAddr]) -> bool {
        let ip = ip.to_canonical();
        let is_own = own.iter().any(|address| address.to_canonical() == ip);
        self.networks
            .as_ref()
            .is_none_or(|networks| (is_public(ip) && !is_own) || NetworkPrefix::any_contains(networks, ip))
    }
}

impl Policy {
    /// Adds a service.
    ///
    /// # Errors
    /// [`PolicyError`] if the name is not valid or not new, or there are too many.
    pub(crate) fn add(&mut self, service: Service) -> Result<(), PolicyError> {
        let Service { name, target } = &service;
        let is_char = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if !(1..=MAX_NAME).contains(&name.len()) || !name.chars().all(is_char) {
            return Err(PolicyError::Name(name.clone()));
        }
        if let ServiceTarget::Unix(path) = target
            && (!path.starts_with('/') || path.len() > MAX_PATH || path.contains('\0'))
        {
            return Err(PolicyError::Path(path.clone()));
        }
        if self.find(name).is_some() {
            return Err(PolicyError::DuplicateName(name.clone()));
        }
        if self.services.len() >= MAX_SERVICES {
            return Err(PolicyError::TooMany);
        }
        self.services.push(service);
        Ok(())
    }

    /// Permits any public address, and the addresses in `networks`.
    pub(crate) fn allow_any(&mut self, networks: Vec<NetworkPrefix>) {
        self.any = Some(networks);
    }

    /// Permits others to have this side listen.
    pub(crate) fn allow_listen(&mut self, rule: ListenRule) {
        self.listen.push(rule);
    }

    /// Returns the services.
    pub(crate) fn services(&self) -> &[Service] {
        &self.services
    }

    /// Returns whether addresses that were not named may be reached.
    pub(crate) fn is_any_allowed(&self) -> bool {
        self.any.is_some()
    }

    fn find(&self, name: &str) -> Option<&Service> {
        self.services.iter().find(|service| service.name == name)
    }

    /// Returns where a target is, if it may be used. Names are not resolved yet: see [`PermittedTarget::permits_address`].
    ///
    /// # Errors
    /// A [`Refusal`] for the other side.
    pub(crate) fn permit(&self, target: &Target) -> Result<PermittedTarget, Refusal> {
        let wanted = match target {
            Target::Service(name) => {
                let service = self.find(name).ok_or_else(|| self.no_such_service())?;
                return Ok(PermittedTarget { target: service.target.clone(), networks: None });
            }
            Target::Tcp(address) => ServiceTarget::Tcp(address.clone()),
            Target::Udp(address) => ServiceTarget::Udp(address.clone()),
            Target::Unix(path) => ServiceTarget::Unix(path.clone()),
        };
        if let Some(service) = self.services.iter().find(|service| is_same(&service.target, &wanted)) {
            return Ok(PermittedTarget { target: service.target.clone(), networks: None });
        }
        match (&self.any, &wanted) {
            (Some(networks), ServiceTarget::Tcp(_) | ServiceTarget::Udp(_)) => {
                Ok(PermittedTarget { target: wanted, networks: Some(networks.clone()) })
            }
            _ => Err(Refusal::new(RefusalCode::NotPermitted, format!("{wanted} is not shared"))),
        }
    }

    fn no_such_service(&self) -> Refusal {
        let names: Vec<&str> =
            self.services.iter().take(LISTED_NAMES).map(|service| service.name.as_str()).collect();
        let detail = match &names[..] {
            [] => "no service has a name".to_owned(),
            names => format!("no service has this name; shared: {}", names.join(", ")),
        };
        Refusal::new(RefusalCode::NoSuchService, detail)
    }

    /// Returns the address at which the other side may have this side listen.
    ///
    /// # Errors
    /// A [`Refusal`] for the other side.
    pub(crate) fn permit_listen(&self, host: &str, port: u16) -> Result<SocketAddr, Refusal> {
        let ip = match host {
            "" | "localhost" => Ok(Ipv4Addr::LOCALHOST.into()),
            host => host.parse::<IpAddr>(),
        };
        let at = ip.ok().map(|ip| SocketAddr::new(ip, port));
        let permitted = at.filter(|at| self.listen.iter().any(|rule| rule.permits(*at)));
        permitted.ok_or_else(|| {
            let detail = match &self.listen[..] {
                [] => "the other side permits no reverse forwarding (--allow-reverse)".to_owned(),
                _ => "the other side does not permit this address and port (--allow-reverse)".to_owned(),
            };
            Refusal::new(RefusalCode::NotPermitted, detail)
        })
    }
}

/// Returns whether two targets are the same; all names of loopback are.
fn is_same(shared: &ServiceTarget, wanted: &ServiceTarget) -> bool {
    let is_same_host = |a: &HostPort, b: &HostPort| {
        let is_host = a.host.eq_ignore_ascii_case(&b.host) || (is_loopback(&a.host) && is_loopback(&b.host));
        is_host && a.port == b.port
    };
    match (shared, wanted) {
        (ServiceTarget::Tcp(a), ServiceTarget::Tcp(b)) | (ServiceTarget::Udp(a), ServiceTarget::Udp(b)) => {
            is_same_host(a, b)
        }
        (ServiceTarget::Unix(a), ServiceTarget::Unix(b)) => a == b,
        _ => false,
    }
}

/// Returns whether an address is one of the public internet
/// ([IANA's special-purpose registries](https://www.iana.org/assignments/iana-ipv4-special-registry/)).
fn is_public(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let is_special = match a {
        0 | 10 | 127 | 224.. => true,
        100 => (64..128).contains(&b),
        169 => b == 254,
        172 => (16..32).contains(&b),
        192 => b == 168 || (b == 0 && (c == 0 || c == 2)) || (b == 88 && c == 99),
        198 => b == 18 || b == 19 || (b == 51 && c == 100),
        203 => b == 0 && c == 113,
        _ => false,
    };
    !is_special
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    match ip.segments() {
        // NAT64 (RFC 6052 section 2.1) and 6to4 (RFC 3056) contain an IPv4 address.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            let [a, b] = high.to_be_bytes();
            let [c, d] = low.to_be_bytes();
            is_public_v4(Ipv4Addr::new(a, b, c, d))
        }
        // Teredo, ORCHID and benchmarking; documentation.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, ..] => false,
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(text: &str) -> Target {
        Target::Tcp(text.parse().unwrap())
    }

    fn service(name: &str, target: ServiceTarget) -> Service {
        Service { name: name.to_owned(), target }
    }

    fn policy() -> Policy {
        let mut policy = Policy::default();
        policy.add(service("ssh", ServiceTarget::Tcp("127.0.0.1:22".parse().unwrap()))).unwrap();
        policy.add(service("web", ServiceTarget::Tcp("10.0.0.5:80".parse().unwrap()))).unwrap();
        policy.add(service("dns", ServiceTarget::Udp("127.0.0.1:53".parse().unwrap()))).unwrap();
        policy.add(service("db", ServiceTarget::Unix("/run/db.sock".to_owned()))).unwrap();
        policy
    }

    #[test]
    fn only_what_was_shared_is_permitted() {
        let policy = policy();
        for target in [
            Target::Service("ssh".to_owned()),
            tcp("127.0.0.1:22"),
            tcp("localhost:22"),
            tcp("LOCALHOST:22"),
            tcp("[::1]:22"),
            tcp("10.0.0.5:80"),
            Target::Udp("localhost:53".parse().unwrap()),
            Target::Unix("/run/db.sock".to_owned()),
        ] {
            assert!(policy.permit(&target).is_ok(), "{target}");
        }
        for target in [
            tcp("127.0.0.1:23"),
            tcp("10.0.0.5:81"),
            tcp("10.0.0.6:80"),
            tcp("10.0.0.5:22"),
            tcp("localhost:53"),
            tcp("1.1.1.1:80"),
            Target::Udp("localhost:22".parse().unwrap()),
            Target::Unix("/run/db.sock2".to_owned()),
            Target::Unix("/run/../run/db.sock".to_owned()),
        ] {
            let refusal = policy.permit(&target).unwrap_err();
            assert_eq!(refusal.code, RefusalCode::NotPermitted, "{target}");
        }
        let refusal = policy.permit(&Target::Service("sh".to_owned())).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::NoSuchService);
        assert_eq!(refusal.detail, "no service has this name; shared: ssh, web, dns, db");
    }

    #[test]
    fn any_means_public_addresses_and_the_networks_that_were_named() {
        let mut policy = policy();
        policy.allow_any(vec!["192.168.7.0/24".parse().unwrap()]);
        let own: [IpAddr; 1] = ["8.8.4.4".parse().unwrap()];
        let permitted = policy.permit(&tcp("name.example:80")).unwrap();
        let permits = |text: &str| permitted.permits_address(text.parse().unwrap(), &own);
        for ip in ["8.8.8.8", "192.168.7.1", "2606:4700::1", "64:ff9b::808:808", "::ffff:8.8.8.8"] {
            assert!(permits(ip), "{ip}");
        }
        for ip in [
            "127.0.0.1",
            "8.8.4.4",
            "::ffff:8.8.4.4",
            "10.1.2.3",
            "192.168.8.1",
            "172.31.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "198.18.0.1",
            "203.0.113.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "2001:db8::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001::1",
        ] {
            assert!(!permits(ip), "{ip}");
        }
        // A Unix socket is never part of it, and a service keeps its address whatever that is.
        assert!(policy.permit(&Target::Unix("/run/x.sock".to_owned())).is_err());
        let ssh = policy.permit(&tcp("localhost:22")).unwrap();
        assert!(ssh.permits_address("127.0.0.1".parse().unwrap(), &own));
    }

    #[test]
    fn listening_needs_permission_and_is_on_loopback_by_default() {
        let mut policy = Policy::default();
        assert_eq!(policy.permit_listen("", 8080).unwrap_err().code, RefusalCode::NotPermitted);
        policy.allow_listen(ListenRule::parse("8000-8999").unwrap());
        policy.allow_listen(ListenRule::parse("0.0.0.0:9000").unwrap());
        let permits = |host: &str, port| policy.permit_listen(host, port).is_ok();
        assert!(permits("", 8080) && permits("localhost", 8000) && permits("::1", 8999));
        assert!(permits("0.0.0.0", 9000));
        for (host, port) in [("", 9000), ("", 0), ("0.0.0.0", 8080), ("192.168.1.1", 8080), ("name", 8080)] {
            assert!(!permits(host, port), "{host}:{port}");
        }
        policy.allow_listen(ListenRule::LOOPBACK);
        assert!(policy.permit_listen("", 0).is_ok());
        for text in ["", "0", "9-8", "x", "1-", "name:80", "70000", "1.2.3.4:"] {
            assert_eq!(ListenRule::parse(text), None, "{text}");
        }
        assert_eq!(ListenRule::parse("[::]:80").unwrap().address, Some("::".parse().unwrap()));
    }

    #[test]
    fn services_have_valid_names_and_are_few() {
        let mut policy = Policy::default();
        let target = || ServiceTarget::Tcp("localhost:1".parse().unwrap());
        for name in ["", "a b", "a/b", "a:b", "\u{1b}[2J", "é", &"n".repeat(65)] {
            assert_eq!(policy.add(service(name, target())), Err(PolicyError::Name(name.to_owned())));
        }
        let relative = service("x", ServiceTarget::Unix("x.sock".to_owned()));
        assert!(matches!(policy.add(relative), Err(PolicyError::Path(_))));
        for number in 0..MAX_SERVICES {
            policy.add(service(&number.to_string(), target())).unwrap();
        }
        assert_eq!(policy.add(service("0", target())), Err(PolicyError::DuplicateName("0".to_owned())));
        assert_eq!(policy.add(service("one-more", target())), Err(PolicyError::TooMany));
    }

    #[test]
    fn a_service_without_a_name_is_named_after_its_port_or_file() {
        for (target, name) in [
            (ServiceTarget::Tcp("127.0.0.1:22".parse().unwrap()), "22"),
            (ServiceTarget::Tcp("10.0.0.5:80".parse().unwrap()), "10.0.0.5-80"),
            (ServiceTarget::Unix("/run/docker.sock".to_owned()), "docker"),
            (ServiceTarget::Unix("/run/x".to_owned()), "x"),
        ] {
            assert_eq!(target.default_name(), name);
        }
    }
}
