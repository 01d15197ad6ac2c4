//! The gateway as its endpoints use it: a running `ginnel serve`, plain sockets, and an endpoint in Python (`tests/clients/gateway.py`).
//! `docs/requirements.md` lists which test shows which requirement.

mod backpressure;
mod endpoint;
mod fastway;
mod handshakes;
mod limits;
mod liveness;
mod misbehaving;
mod python_endpoints;
mod reference;
mod tokens;
mod transcripts;
mod violations;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::authority::Authority;
use crate::test_server::{Lines, TestServer, free_ports};
use crate::waiting::wait_for;

/// The time limit of waits.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The servers' key in all tests.
const KEY: &str = "the key of every test's gateway";
/// The metrics that are zero without connections.
const GAUGES: [&str; 5] = ["clients", "servers", "virtual_connections", "opened_ids", "waiting_bytes"];
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A running gateway; clients connect to its main port.
struct Gateway {
    test_server: TestServer,
    /// The addresses for servers: MD5, HMAC, and mutual TLS.
    md5: SocketAddr,
    hmac: SocketAddr,
    mutual: SocketAddr,
}

impl Gateway {
    /// Starts one; `lines` are the rest of the section `[gateway]` and its own sections.
    fn start(lines: &str) -> Self {
        Self::with(lines, |lines| TestServer::with(&[HERE], lines))
    }

    /// Starts one with a certificate; it accepts servers' certificates of the authority `servers`.
    fn with_tls(authority: &Authority, servers: &Authority, lines: &str) -> Self {
        let port = free_ports();
        let lines = format!("tls_port = {port}\nclient_ca = {:?}\n{lines}", servers.root());
        let mut gateway = Self::with(&lines, |lines| TestServer::with_tls(lines, Some(authority)));
        gateway.mutual.set_port(port);
        gateway
    }

    fn with(lines: &str, start: impl FnOnce(Lines<'_>) -> TestServer) -> Self {
        let port = free_ports();
        let rest =
            format!("[gateway]\nserver_port = {port}\nhmac_port = {}\nkey = {KEY:?}\n{lines}", port + 1);
        let test_server = start(Lines { turn: &rest, ..Lines::default() });
        let at = |port| SocketAddr::new(HERE, port);
        Self { test_server, md5: at(port), hmac: at(port + 1), mutual: at(0) }
    }

    /// The address for clients.
    fn clients(&self) -> SocketAddr {
        self.test_server.address
    }

    /// Returns the response to a GET with these header lines.
    fn get(&self, path: &str, headers: &str) -> String {
        self.get_of("localhost", path, headers)
    }

    /// The same with this host name.
    fn get_of(&self, host: &str, path: &str, headers: &str) -> String {
        let mut stream = TcpStream::connect(self.clients()).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\n{headers}Connection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    /// The gateway's metrics: names without `ginnel_gateway_`, and values.
    fn all_metrics(&self) -> Vec<(String, f64)> {
        let text = self.get("/metrics", "");
        let metric = |line: &str| {
            let (name, value) = line.strip_prefix("ginnel_gateway_")?.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        text.lines().filter_map(metric).collect()
    }

    /// One of them.
    fn metric(&self, name: &str) -> f64 {
        let found = self.all_metrics().into_iter().find(|(other, _)| other == name);
        found.unwrap_or_else(|| panic!("no {name}")).1
    }

    /// The values of [`GAUGES`].
    fn gauges(&self) -> Vec<(String, f64)> {
        let all = self.all_metrics();
        let gauges: Vec<_> = all.into_iter().filter(|(name, _)| GAUGES.contains(&name.as_str())).collect();
        assert_eq!(gauges.len(), GAUGES.len(), "{gauges:?}");
        gauges
    }

    /// Waits for a metric to have this value.
    fn wait_for_metric(&self, name: &str, value: f64) {
        wait_for(TIMEOUT, || match self.metric(name) {
            found if found == value => Ok(()),
            found => Err(format!("{name}: {found}")),
        });
    }

    /// Waits until all gauges are zero.
    fn assert_becomes_empty(&self) {
        wait_for(TIMEOUT, || match self.gauges() {
            gauges if gauges.iter().all(|(_, value)| *value == 0.0) => Ok(()),
            gauges => Err(format!("{gauges:?}")),
        });
    }
}
