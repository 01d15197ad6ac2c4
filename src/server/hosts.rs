//! The names and addresses under which this server answers requests of its operator. They protect against DNS rebinding, where a page whose own name
//! resolves to this host sends requests from the operator's browser.

use super::Config;
use crate::net::addresses::Addresses;
use crate::net::certificate::Certificate;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Uri, header};
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::watch;

/// The system's host name.
const HOSTNAME: &str = "/proc/sys/kernel/hostname";

/// The server's own names and addresses.
#[derive(Debug, Clone)]
pub(super) struct OwnHosts {
    names: Arc<[String]>,
    /// Public addresses.
    public: Arc<[IpAddr]>,
    interfaces: watch::Receiver<Addresses>,
}

impl OwnHosts {
    /// Collects the names and addresses of the configuration and the certificate.
    pub(super) fn gather(
        config: &Config,
        certificate: &Certificate,
        interfaces: watch::Receiver<Addresses>,
    ) -> Self {
        let names = config.metrics_hosts.iter().chain(&config.tls.name).cloned();
        Self::new(names.chain(certificate.names()), &config.public, interfaces)
    }

    /// Adds names to `localhost` and the host's own.
    fn new(
        names: impl IntoIterator<Item = String>,
        public: &[IpAddr],
        interfaces: watch::Receiver<Addresses>,
    ) -> Self {
        let own = std::fs::read_to_string(HOSTNAME).ok();
        let names = names.into_iter().chain(own).chain(["localhost".to_owned()]);
        let names = names.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
        Self { names: names.collect(), public: public.into(), interfaces }
    }

    /// Returns whether a request names this server in `Host`, and in its target where that has a host.
    pub(super) fn are_asked(&self, target: &Uri, asked: &HeaderMap) -> bool {
        let mut named = asked.get_all(header::HOST).iter();
        let host = named.next().and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
        named.next().is_none()
            && host.is_some_and(|host| self.hold(&host))
            && target.authority().is_none_or(|target| self.hold(target))
    }

    fn hold(&self, host: &Authority) -> bool {
        let host = host.host();
        let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        match address.parse::<IpAddr>() {
            Ok(ip) => {
                let ip = ip.to_canonical();
                ip.is_loopback()
                    || self.public.contains(&ip)
                    || self.interfaces.borrow().binary_search(&ip).is_ok()
            }
            Err(_) => {
                let name = host.strip_suffix('.').unwrap_or(host);
                self.names.iter().any(|own| own.eq_ignore_ascii_case(name))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_asked(hosts: &OwnHosts, target: &str, host: &[&str]) -> bool {
        let mut asked = HeaderMap::new();
        for host in host {
            asked.append(header::HOST, host.parse().unwrap());
        }
        hosts.are_asked(&target.parse().unwrap(), &asked)
    }

    #[test]
    fn a_request_is_for_own_names_and_addresses_alone() {
        let own: Vec<IpAddr> = ["198.41.0.4", "2606:4700::4"].map(|ip| ip.parse().unwrap()).into();
        let (sender, interfaces) = watch::channel(Addresses::from(own));
        let public = ["203.0.113.9".parse().unwrap()];
        let hosts = OwnHosts::new(["relay.example".to_owned()], &public, interfaces);
        for host in [
            "localhost",
            "LocalHost:3478",
            "relay.example:443",
            "relay.example.",
            "127.0.0.1:3478",
            "127.1.2.3",
            "[::1]:3478",
            "198.41.0.4:3478",
            "[2606:4700::4]",
            "[::ffff:198.41.0.4]:80",
            "203.0.113.9",
        ] {
            assert!(is_asked(&hosts, "/metrics", &[host]), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:3478",
            "localhost.evil.example",
            "relay.example.evil",
            "0.0.0.0:3478",
            "[::]:3478",
            "198.41.0.5",
            "2130706433",
            "",
            "a b",
        ] {
            assert!(!is_asked(&hosts, "/metrics", &[host]), "{host}");
        }
        assert!(
            !is_asked(&hosts, "/metrics", &[]) && !is_asked(&hosts, "/metrics", &["localhost", "localhost"])
        );
        assert!(is_asked(&hosts, "http://localhost/metrics", &["localhost"]));
        assert!(!is_asked(&hosts, "http://evil.example/metrics", &["localhost"]));
        sender.send_replace(["198.41.0.5".parse().unwrap()].into());
        assert!(is_asked(&hosts, "/", &["198.41.0.5"]) && !is_asked(&hosts, "/", &["198.41.0.4"]));
    }
}
