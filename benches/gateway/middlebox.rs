//! What is between clients and servers: ginnel's gateway or a proxy, as a process on its own processor.

use super::Options;
use anyhow::{Context, bail};
use ginnel::internals::gateway::handshake::Key;
use ginnel::internals::load::gateway::{HandshakeKind, Middlebox};
use ginnel::internals::load::process;
use ginnel::internals::net::time;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const START: Duration = Duration::from_secs(30);
const KEY: &str = "the key of a comparison";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Gateway(HandshakeKind),
    /// The same with one write per frame.
    Unbatched(HandshakeKind),
    Proxy,
    /// With buffers of 64 KiB.
    LargeBufferProxy,
}

impl Kind {
    pub(super) fn name(self) -> String {
        match self {
            Self::Gateway(handshake) => format!("gateway ({})", handshake.name()),
            Self::Unbatched(handshake) => format!("one write per frame ({})", handshake.name()),
            Self::Proxy => "copy_bidirectional".to_owned(),
            Self::LargeBufferProxy => "copy_bidirectional, 64 KiB buffers".to_owned(),
        }
    }
}

/// A process that runs until it is dropped.
pub(super) struct Process {
    child: Child,
    pub(super) address: SocketAddr,
    middlebox: Option<Middlebox>,
    folder: TempDir,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    pub(super) fn start(kind: Kind, options: &Options) -> anyhow::Result<Self> {
        let (address, folder) = (free_address(0)?, tempfile::tempdir()?);
        let (command, middlebox) = match kind {
            Kind::Gateway(handshake) => gateway(options, address, (handshake, false), folder.path())?,
            Kind::Unbatched(handshake) => gateway(options, address, (handshake, true), folder.path())?,
            Kind::Proxy => proxy(address, "--proxy")?,
            Kind::LargeBufferProxy => proxy(address, "--large-buffer-proxy")?,
        };
        let mut process = Self::spawn(command, options, (address, middlebox, folder))?;
        let started = process.await_start();
        let log = fs::read_to_string(process.folder.path().join("log")).unwrap_or_default();
        started.with_context(|| format!("{}: {log}", kind.name()))?;
        Ok(process)
    }

    fn spawn(
        mut command: Command,
        options: &Options,
        (address, middlebox, folder): (SocketAddr, Middlebox, TempDir),
    ) -> anyhow::Result<Self> {
        let log = File::create(folder.path().join("log"))?;
        command.stdin(Stdio::null()).stderr(log.try_clone()?).stdout(log);
        // A child process inherits the processor of the thread that starts it.
        process::pin(options.server_cpu).context("--server-cpu")?;
        let child = command.spawn()?;
        process::pin(options.generator_cpu).context("--generator-cpu")?;
        Ok(Self { child, address, middlebox: Some(middlebox), folder })
    }

    /// Returns what a load connects to. It can be taken once.
    pub(super) fn take_middlebox(&mut self) -> anyhow::Result<Middlebox> {
        self.middlebox.take().context("it was taken before")
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn await_start(&mut self) -> anyhow::Result<()> {
        let deadline = time::mono() + START;
        // A test connection to a proxy would be forwarded. Its port is bound as soon as it listens.
        let is_listening = |address: SocketAddr| match &self.middlebox {
            Some(Middlebox::Proxy(_)) => TcpListener::bind(address).is_err(),
            _ => TcpStream::connect(address).is_ok(),
        };
        while !is_listening(self.address) {
            if let Some(status) = self.child.try_wait()? {
                bail!("the process ended: {status}");
            }
            if time::mono() > deadline {
                bail!("the process does not listen");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        // The measurement does not include the process's start.
        std::thread::sleep(Duration::from_secs(1));
        Ok(())
    }
}

fn gateway(
    options: &Options,
    address: SocketAddr,
    (handshake, one_write): (HandshakeKind, bool),
    folder: &Path,
) -> anyhow::Result<(Command, Middlebox)> {
    let (md5, hmac) = (free_address(5)?, free_address(10)?);
    let text = format!(
        "state = {state:?}\nlisten = [\"{ip}\"]\npublic = [\"{ip}\"]\nport = {port}\naux_port = 0\nworkers = 1\n\
         [tls]\nport = 0\n[limits]\nconnections_per_address = 20000\n[log]\nlevel = \"warn\"\n\
         [gateway]\nenabled = true\nserver_listen = [\"{ip}\"]\nserver_port = {md5}\nhmac_port = {hmac}\n\
         key = \"{KEY}\"\none_write_per_frame = {one_write}\n[gateway.limits]\nper_client = 64\n",
        state = folder.join("state"),
        ip = address.ip(),
        port = address.port(),
        md5 = md5.port(),
        hmac = hmac.port(),
    );
    let config = folder.join("ginnel.toml");
    fs::write(&config, text)?;
    let ginnel = options.ginnel.clone().unwrap_or_else(|| env!("CARGO_BIN_EXE_ginnel").into());
    let mut command = Command::new(ginnel);
    command.args(["serve", "--config"]).arg(config);
    let servers_at = if handshake == HandshakeKind::Md5 { md5 } else { hmac };
    let middlebox =
        Middlebox::Gateway { servers_at, handshake, key: Key::new(KEY)?, first_id: 1, token: None };
    Ok((command, middlebox))
}

fn proxy(address: SocketAddr, how: &str) -> anyhow::Result<(Command, Middlebox)> {
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args([how, &address.to_string(), &server.local_addr()?.to_string()]);
    Ok((command, Middlebox::Proxy(server)))
}

/// Finds a free port after skipping `from` free ports.
fn free_address(from: usize) -> anyhow::Result<SocketAddr> {
    let candidates = (10_000..20_000).step_by(17).map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let mut free = candidates.filter(|address| TcpListener::bind(address).is_ok());
    free.nth(from).context("no port is free")
}
