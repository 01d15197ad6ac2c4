//! A running `ginnel serve`, on loopback or on a host of the laboratory.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::authority::Authority;
use crate::lab::Host;
use crate::proc::{Proc, Stdout};
use crate::tools;

const START: Duration = Duration::from_secs(20);
/// How long a client's report may take.
const REPORT: Duration = Duration::from_secs(90);

/// The static user of every test server, and the password.
pub(crate) const USER: &str = "judge";
/// What a server of the laboratory relays to.
const LABORATORY: &str = "allow_peers = [\"203.0.113.0/24\"]";

/// See [`USER`].
pub(crate) const PASSWORD: &str = "a test's password";

/// A server that is ready.
pub(crate) struct TestServer {
    pub(crate) process: Proc,
    pub(crate) address: SocketAddr,
    /// The port with only TLS and DTLS, if any.
    pub(crate) tls: SocketAddr,
    folder: TempDir,
}

/// Lines of the configuration beyond the usual, by section.
#[derive(Default, Clone, Copy)]
pub(crate) struct Lines<'a> {
    /// Before the first section.
    pub(crate) top: &'a str,
    pub(crate) turn: &'a str,
}

impl TestServer {
    /// Starts a server on loopback ports of its own, which relays to 127.0.0.1 where `turn` (lines of the section
    /// `[turn]`) says so.
    pub(crate) fn on_loopback(turn: &str) -> Self {
        Self::at(&[Ipv4Addr::LOCALHOST.into()], turn)
    }

    /// Starts a server on loopback addresses; `rest` is the end of its configuration, from the section `[turn]` on.
    pub(crate) fn at(listen: &[IpAddr], rest: &str) -> Self {
        Self::with(listen, Lines { turn: rest, ..Lines::default() })
    }

    /// Starts a server on loopback addresses with these lines.
    pub(crate) fn with(listen: &[IpAddr], lines: Lines<'_>) -> Self {
        Self::start((listen, free_ports()), lines, "port = 0", |program| Command::new(program))
    }

    /// Starts a server on loopback with these lines; a program with arguments runs it, unless there is none.
    pub(crate) fn under(runner: &[&str], lines: Lines<'_>) -> Self {
        let listen = [Ipv4Addr::LOCALHOST.into()];
        Self::start((&listen, free_ports()), lines, "port = 0", |program| {
            let mut words = runner.iter().copied().chain([program]);
            let mut command = Command::new(words.next().unwrap());
            command.args(words);
            command
        })
    }

    /// Starts a server on loopback that may have so many descriptors.
    pub(crate) fn with_descriptors(limit: u32, turn: &str) -> Self {
        let listen = [Ipv4Addr::LOCALHOST.into()];
        Self::start((&listen, free_ports()), Lines { turn, ..Lines::default() }, "port = 0", |program| {
            let mut command = Command::new("sh");
            command.args(["-c", &format!("ulimit -n {limit}; exec \"$0\" \"$@\""), program]);
            command
        })
    }

    /// Starts a server on loopback with a TLS port of its own, and with a certificate for 127.0.0.1 by `authority`, or else its
    /// own.
    pub(crate) fn with_tls(lines: Lines<'_>, authority: Option<&Authority>) -> Self {
        let listen = [Ipv4Addr::LOCALHOST.into()];
        let (main, port) = (free_ports(), free_ports());
        let files = authority.map_or_else(String::new, |authority| {
            format!(
                "name = \"127.0.0.1\"\ncertificate = {:?}\nkey = {:?}\n",
                authority.certificate(),
                authority.key()
            )
        });
        let tls = format!("port = {port}\n{files}");
        let mut test_server = Self::start((&listen, main), lines, &tls, |program| Command::new(program));
        test_server.tls.set_port(port);
        test_server
    }

    /// Starts a server on a host of the laboratory, which relays to the laboratory's public addresses.
    pub(crate) fn on(host: &Host) -> Self {
        Self::on_with(host, "")
    }

    /// The same with `rest` behind it: other sections of the configuration.
    pub(crate) fn on_with(host: &Host, rest: &str) -> Self {
        let turn = format!("{LABORATORY}\n{rest}");
        let lines = Lines { turn: &turn, ..Lines::default() };
        Self::start((&[host.address().into()], 3478), lines, "port = 0", |program| host.command(program))
    }

    /// Starts a server on a host of the laboratory, with a certificate by `authority` and TLS on this port.
    pub(crate) fn named(host: &Host, authority: &Authority, port: u16) -> Self {
        let tls = format!(
            "port = {port}\ncertificate = {:?}\nkey = {:?}",
            authority.certificate(),
            authority.key()
        );
        let lines = Lines { turn: LABORATORY, ..Lines::default() };
        Self::start((&[host.address().into()], 3478), lines, &tls, |program| host.command(program))
    }

    /// Starts a server on the addresses of a host of a routed internet, with TLS by `authority` on port 443.
    pub(crate) fn on_routed(host: &Host, addresses: &[IpAddr], authority: &Authority) -> Self {
        Self::on_routed_with(host, addresses, authority, "")
    }

    /// The same with `rest` at the end: other sections of the configuration.
    pub(crate) fn on_routed_with(
        host: &Host,
        addresses: &[IpAddr],
        authority: &Authority,
        rest: &str,
    ) -> Self {
        let tls =
            format!("port = 443\ncertificate = {:?}\nkey = {:?}", authority.certificate(), authority.key());
        let public: Vec<_> = addresses.iter().map(|ip| format!("\"{ip}\"")).collect();
        let top = format!("public = [{}]", public.join(", "));
        let turn = format!("allow_peers = [\"203.0.113.0/24\", \"2001:db8::/32\"]\n{rest}");
        let lines = Lines { top: &top, turn: &turn };
        Self::start((addresses, 3478), lines, &tls, |program| host.command(program))
    }

    /// Starts a server on two addresses of a host of the laboratory, with NAT behaviour discovery.
    pub(crate) fn on_both(host: &Host, second: Ipv4Addr) -> Self {
        let first = host.address();
        let rest = format!("{LABORATORY}\n[stun]\nnat_discovery = [\"{first}\", \"{second}\"]");
        let lines = Lines { turn: &rest, ..Lines::default() };
        let at = [first.into(), second.into()];
        Self::start((&at, 3478), lines, "port = 0", |program| host.command(program))
    }

    fn start(
        (listen, port): (&[IpAddr], u16),
        lines: Lines<'_>,
        tls: &str,
        command: impl Fn(&str) -> Command,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("ginnel.toml");
        let address = SocketAddr::new(listen[0], port);
        let quoted: Vec<_> = listen.iter().map(|ip| format!("\"{ip}\"")).collect();
        let public = match lines.top.contains("public = ") {
            true => String::new(),
            false => format!("public = [\"{}\"]\n", listen[0]),
        };
        let text = format!(
            "state = {:?}\nlisten = [{}]\n{public}port = {port}\naux_port = {}\n\
             {}\n[tls]\n{tls}\n[turn]\nusers = {{ {USER} = \"{PASSWORD}\" }}\n{}\n",
            folder.path().join("state"),
            quoted.join(", "),
            port + 1,
            lines.top,
            lines.turn,
        );
        std::fs::write(&config, text).unwrap();
        let server = serve(command(&tools::binary("ginnel")), &config);
        Self { process: server, address, tls: SocketAddr::new(address.ip(), 0), folder }
    }

    /// Ends a server on loopback in good order and starts it anew, with the same configuration and state.
    pub(crate) fn restart(&mut self) {
        self.stop();
        self.begin();
    }

    /// Kills a server on a host of the laboratory and starts it anew, with the same configuration and state.
    pub(crate) fn restart_on(&mut self, host: &Host) {
        self.kill();
        let command = host.command(tools::binary("ginnel"));
        self.process = serve(command, &self.folder.path().join("ginnel.toml"));
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        self.process.signal("KILL");
        self.process.wait(START);
    }

    /// Ends it in good order.
    pub(crate) fn stop(&mut self) {
        self.process.terminate();
        self.process.succeed(START);
    }

    /// Starts a stopped one on loopback anew, with the same configuration and state.
    pub(crate) fn begin(&mut self) {
        let command = Command::new(tools::binary("ginnel"));
        self.process = serve(command, &self.folder.path().join("ginnel.toml"));
    }

    /// Its access key, as `ginnel key` prints it.
    pub(crate) fn key(&self) -> String {
        self.output_of(&["key"])
    }

    /// What a command of `ginnel` prints about its state folder.
    pub(crate) fn output_of(&self, command: &[&str]) -> String {
        let mut ginnel = Command::new(tools::binary("ginnel"));
        let output = ginnel.args(command).arg("--state").arg(self.state()).output().unwrap();
        assert!(output.status.success(), "ginnel {command:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// The `iceServers` JSON that it printed for pasting into a page.
    pub(crate) fn printed_ice(&self) -> String {
        self.process
            .expect("iceServers", START, |line| line.starts_with("{\"iceServers\"").then(|| line.to_owned()))
    }

    /// Its state folder.
    pub(crate) fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// The report of a client in `tests/clients/`: one JSON object.
    pub(crate) fn report(&self, client: &str, arguments: &[&str]) -> Value {
        let mut python = Command::new("python3");
        python.arg(tools::client(client)).args(arguments);
        let mut run = Proc::start(client, python, Stdout::Lines);
        let status = run.wait(REPORT);
        assert!(status.success(), "{status}\n{}\n{}", run.printed(), self.process.printed());
        run.expect("report", REPORT, |line| serde_json::from_str(line).ok())
    }

    /// The same port at another of its addresses.
    pub(crate) fn address_at(&self, ip: IpAddr) -> SocketAddr {
        SocketAddr::new(ip, self.address.port())
    }

    /// Its resident memory in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

/// Starts a server and waits until it is ready.
fn serve(mut command: Command, config: &Path) -> Proc {
    command.args(["serve", "--print-ice", "--config"]).arg(config);
    let server = Proc::start("ginnel serve", command, Stdout::Lines);
    server.expect("line that begins with Ready.", START, |line| line.starts_with("Ready.").then_some(()));
    server
}

/// A port that is free on loopback by UDP and TCP, and its neighbour too; below every ephemeral range. The two ports after
/// them are the test's own, for peers.
pub(crate) fn free_ports() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let own = u16::try_from(std::process::id() % 500).unwrap() * 16;
    for _ in 0..1000 {
        let port = 20_000 + (own + NEXT.fetch_add(4, Ordering::Relaxed)) % 10_000;
        let free = |port| {
            let at = (Ipv4Addr::LOCALHOST, port);
            UdpSocket::bind(at).is_ok() && TcpListener::bind(at).is_ok()
        };
        if free(port) && free(port + 1) {
            return port;
        }
    }
    panic!("no free ports");
}
