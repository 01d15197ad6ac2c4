//! `ginnel serve`: runs the server, and prints its banner.

use super::ginnel::load_config;
use super::{advice, has_colors};
use crate::config::Config;
use crate::net::interfaces::{AddressScope, scope};
use crate::server::{SelfTest, Server, ServerInfo};
use crate::state::State;
use crate::telemetry::{self, Logs};
use anyhow::Context;
use clap::Args;
use rustix::process::{Resource, getrlimit, setrlimit};
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Options of `ginnel serve`; they override the file.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Configuration file (TOML); see `ginnel config`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of the secret and the keys; created at the first start [default: state]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Address to listen on; may be repeated [default: all]
    #[arg(long, value_name = "IP")]
    listen: Vec<IpAddr>,
    /// UDP and TCP port [default: 3478]
    #[arg(long)]
    port: Option<u16>,
    /// Second UDP port, 0 for none [default: 3479, or any other if that is in use]
    #[arg(long, value_name = "PORT")]
    aux_port: Option<u16>,
    /// Address that clients use, if it differs from the interface's; may be repeated
    #[arg(long, value_name = "IP")]
    public: Vec<IpAddr>,
    /// Print iceServers with credentials on standard output even if it is not a terminal
    #[arg(long)]
    print_ice: bool,
}

impl Serve {
    fn load(&self) -> anyhow::Result<Config> {
        let mut config = load_config(self.config.as_deref())?;
        config.log.color = has_colors();
        config.state = self.state.clone().unwrap_or(config.state);
        let server = &mut config.server;
        server.port = self.port.unwrap_or(server.port);
        server.aux_port = self.aux_port.or(server.aux_port);
        if !self.listen.is_empty() {
            server.listen.clone_from(&self.listen);
        }
        if !self.public.is_empty() {
            server.public.clone_from(&self.public);
        }
        config.check().context("command line")?;
        Ok(config)
    }

    /// Runs the server until Ctrl-C, SIGTERM or its first failure.
    ///
    /// # Errors
    /// The first failure.
    pub(super) async fn run(self) -> anyhow::Result<()> {
        // Before the server is reported as ready: signals may arrive from then on.
        let (mut terminated, mut interrupted) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut hung_up = signal(SignalKind::hangup())?;
        let config = self.load()?;
        let (logs, is_json) = (telemetry::start(&config.log)?, config.log.json);
        let ends = [&mut terminated, &mut interrupted];
        match serve(config, self.print_ice, &logs, (ends, &mut hung_up)).await {
            Err(error) if is_json => Err(advice::log(&error).into()),
            ended => ended,
        }
    }
}

/// Runs a server until one of two signals or its first failure; the last one is that of a closed terminal.
async fn serve(
    config: Config,
    print_ice: bool,
    logs: &Logs,
    ([terminated, interrupted], hung_up): ([&mut Signal; 2], &mut Signal),
) -> anyhow::Result<()> {
    raise_descriptor_limit();
    for (key, name) in config.renamed {
        tracing::warn!(
            key,
            name,
            "this configuration key was renamed; the old name will be removed in the next release"
        );
    }
    let state = State::open(&config.state)?;
    note_changes(&state);
    #[cfg(feature = "messaging")]
    let messaging = messaging_line(&config.server.messaging);
    #[cfg(not(feature = "messaging"))]
    let messaging = None;
    let mut server = Server::start(config.server, &state).await.context("the server did not start")?;
    let test = server.self_test().await;
    if print_ice || io::stdout().is_terminal() {
        print_ice_servers(server.info());
    }
    match config.log.json {
        true => log_ready(server.info(), &state, test),
        false => logs.print(&banner(server.info(), &state, (test, messaging))),
    }
    let failure = loop {
        tokio::select! {
            error = server.failed() => break Some(error),
            _ = terminated.recv() => break None,
            _ = interrupted.recv() => break None,
            _ = hung_up.recv() => {
                tracing::info!("SIGHUP is ignored: changes of the configuration take effect after a restart");
            }
        }
    };
    match config.log.json {
        true => tracing::info!("stopping"),
        false => logs.print("Stopping.\n"),
    }
    server.shutdown().await;
    failure.map_or(Ok(()), |error| Err(error.into()))
}

/// Logs what opening the state folder has changed.
fn note_changes(state: &State) {
    if state.is_upgraded {
        tracing::warn!(
            "the access key no longer revokes, lists or watches: ginnel key --admin prints the key that revokes"
        );
    }
    if state.is_tightened {
        tracing::info!(
            "the state folder was open to others and is 0700 now; for systemd: StateDirectoryMode=0700"
        );
    }
}

/// Prints `iceServers` for a page on standard output. A failure does not stop the server.
fn print_ice_servers(info: &ServerInfo) {
    let mut out = io::stdout().lock();
    let written = writeln!(out, "{}", info.ice_servers("invite")).and_then(|()| out.flush());
    if let Err(error) = written {
        tracing::warn!(%error, "iceServers could not be printed");
    }
}

/// Returns the banner.
fn banner(info: &ServerInfo, state: &State, (test, messaging): (SelfTest, Option<String>)) -> String {
    introduction(info, state, messaging)
        + &verdict(test)
        + &invitation(info, state, io::stderr().is_terminal())
}

/// Logs the banner as one JSON line.
fn log_ready(info: &ServerInfo, state: &State, test: SelfTest) {
    let join = |list: &[SocketAddr]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        state = %state.folder.display(),
        listen = join(&info.listen),
        addresses = join(&info.advertised),
        aux_port = info.aux_port,
        tls_port = info.tls_port,
        tls_name = info.tls_name.as_deref(),
        workers = info.workers,
        stun = test.stun,
        turn_udp = test.turn_udp,
        turn_tcp = test.turn_tcp,
        "ready"
    );
}

/// Raises the descriptor limit to the hard limit: each allocation and each stream needs one, and the usual soft limit is 1024.
pub(super) fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the descriptor limit stays as it is");
    }
}

fn introduction(info: &ServerInfo, state: &State, messaging: Option<String>) -> String {
    let join = |items: Vec<String>| items.join(", ");
    let mut text = format!("ginnel {}\n", env!("CARGO_PKG_VERSION"));
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<9} {value}");
    };
    let made = if state.is_new { "0700, new" } else { "0700" };
    line("state", format!("{} ({made})", state.folder.display()));
    let listen = join(info.listen.iter().map(ToString::to_string).collect());
    line("listen", format!("{listen} udp + tcp — STUN, TURN, signalling (WebSocket and UDP), HTTP"));
    if let Some(port) = info.aux_port {
        line("second", format!("{port} udp — NAT tests, notify port"));
    }
    let name = match (&info.tls_name, info.tls_self_signed) {
        (Some(name), _) => name,
        (None, true) => "self-signed: no turns: URL is offered",
        (None, false) => "no name in the certificate: set tls.name to offer turns: URLs",
    };
    let ports = info.tls_port.map(|port| format!(", and on {port} udp + tcp")).unwrap_or_default();
    line("tls", format!("{name} — TLS and DTLS on the same port{ports}"));
    for address in &info.advertised {
        line("address", format!("{}{}", address.ip(), caution(address.ip())));
    }
    let relay = join(info.relay.iter().map(|address| address.local.to_string()).collect());
    line("relay", format!("invited users only · from {relay} · no private or loopback peers"));
    if let Some(gateway) = &info.gateway {
        let listeners = [("MD5", &gateway.md5), ("HMAC", &gateway.hmac), ("MD5 in mutual TLS", &gateway.tls)];
        let listeners = listeners
            .iter()
            .flat_map(|(name, addresses)| addresses.iter().map(move |at| format!("{at} {name}")));
        let listeners: Vec<_> = listeners.chain(["/gateway/servers by WebSocket".to_owned()]).collect();
        line("gateway", format!("clients on the same port · servers on {}", join(listeners)));
    }
    if let Some(messaging) = messaging {
        line("messaging", messaging);
    }
    line("threads", info.workers.to_string());
    text
}

/// Returns the ports and the path of messaging, if it is enabled.
#[cfg(feature = "messaging")]
fn messaging_line(messaging: &crate::server::MessagingConfig) -> Option<String> {
    let legacy = if messaging.legacy { "legacy: devices need no key" } else { "devices need a key" };
    let plain = (messaging.port != 0).then(|| format!("{} tcp, {legacy}", messaging.port));
    let tls = messaging.tls_port.map(|port| format!("{port} TLS"));
    let dispatcher = messaging.dispatcher_port.map(|port| format!("{port} dispatcher"));
    let websocket = Some("/messages by WebSocket".to_owned());
    let ports: Vec<_> = [plain, tls, dispatcher, websocket].into_iter().flatten().collect();
    messaging.enabled.then(|| ports.join(" · "))
}

fn verdict(test: SelfTest) -> String {
    let mark = |ok| if ok { '✓' } else { '✗' };
    let SelfTest { stun, turn_udp, turn_tcp } = test;
    let advice = match (stun, turn_udp && turn_tcp) {
        (true, true) => "",
        (true, false) => {
            "\n            the relay does not work: see the log with log.level = \"ginnel=debug\""
        }
        (false, _) => {
            "\n            the advertised address does not reach this server from here: is it right, is the port open?"
        }
    };
    format!("  self-test STUN {}  TURN udp {} tcp {}{advice}\n\n", mark(stun), mark(turn_udp), mark(turn_tcp))
}

/// Returns the note for an address that is not globally reachable.
fn caution(ip: IpAddr) -> &'static str {
    match scope(ip) {
        AddressScope::Global => "",
        AddressScope::Private => {
            " — private: clients outside this network need --public, and the port forwarded"
        }
        AddressScope::Loopback | AddressScope::Link => " — this host only",
    }
}

fn invitation(info: &ServerInfo, state: &State, on_terminal: bool) -> String {
    let (Some(address), Some(page)) = (info.advertised.first(), info.page_url()) else {
        return "Ready. Ctrl-C stops.\n".to_owned();
    };
    let folder = state.folder.display();
    let key = match on_terminal {
        true => format!("Key       {}\n", state.access_key),
        false => format!("Key       printed by: ginnel key --state {folder}\n"),
    };
    format!(
        "Page      {page}\n{key}Browsers  curl -H 'Authorization: Bearer KEY' {page}ice\n\
         Peers     agent listen --server {address} --key KEY\nReady. Ctrl-C stops.\n"
    )
}
