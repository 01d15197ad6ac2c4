//! What stands between clients and servers: our gateway or a bare proxy, a process on a processor of its own.

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
    /// The same with one write for each frame.
    Unbatched(HandshakeKind),
    Proxy,
    /// With buffers of 64 KiB.
    RoomyProxy,
}

impl Kind {
    pub(super) fn name(self) -> String {
        match self {
            Self::Gateway(door) => format!("gateway ({})", door.name()),
            Self::Unbatched(door) => format!("one write per frame ({})", door.name()),
            Self::Proxy => "copy_bidirectional".to_owned(),
            Self::RoomyProxy => "copy_bidirectional, 64 KiB buffers".to_owned(),
        }
    }
}

/// A process that is there until dropped.
pub(super) struct Process {
    child: Child,
    pub(super) address: SocketAddr,
    between: Option<Middlebox>,
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
        let (command, between) = match kind {
            Kind::Gateway(door) => gateway(options, address, (door, false), folder.path())?,
            Kind::Unbatched(door) => gateway(options, address, (door, true), folder.path())?,
            Kind::Proxy => proxy(address, "--proxy")?,
            Kind::RoomyProxy => proxy(address, "--roomy-proxy")?,
        };
        let mut process = Self::spawn(command, options, (address, between, folder))?;
        let started = process.await_start();
        let said = fs::read_to_string(process.folder.path().join("log")).unwrap_or_default();
        started.with_context(|| format!("{}: {said}", kind.name()))?;
        Ok(process)
    }

    fn spawn(
        mut command: Command,
        options: &Options,
        (address, between, folder): (SocketAddr, Middlebox, TempDir),
    ) -> anyhow::Result<Self> {
        let log = File::create(folder.path().join("log"))?;
        command.stdin(Stdio::null()).stderr(log.try_clone()?).stdout(log);
        // What is started inherits the processor of the thread that starts it.
        process::pin(options.server_cpu).context("--server-cpu")?;
        let child = command.spawn()?;
        process::pin(options.generator_cpu).context("--generator-cpu")?;
        Ok(Self { child, address, between: Some(between), folder })
    }

    /// Returns what a load must know of it, once.
    pub(super) fn take_between(&mut self) -> anyhow::Result<Middlebox> {
        self.between.take().context("it has one load")
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn await_start(&mut self) -> anyhow::Result<()> {
        let deadline = time::mono() + START;
        // A proxy connects onwards for each connection, and is not to be asked; a port that is taken is one that is listened on.
        let is_there = |address: SocketAddr| match &self.between {
            Some(Middlebox::Proxy(_)) => TcpListener::bind(address).is_err(),
            _ => TcpStream::connect(address).is_ok(),
        };
        while !is_there(self.address) {
            if let Some(status) = self.child.try_wait()? {
                bail!("has ended at its start: {status}");
            }
            if time::mono() > deadline {
                bail!("does not listen");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        // What it does after its start is no load.
        std::thread::sleep(Duration::from_secs(1));
        Ok(())
    }
}

fn gateway(
    options: &Options,
    address: SocketAddr,
    (door, one_write): (HandshakeKind, bool),
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
    let servers_at = if door == HandshakeKind::Md5 { md5 } else { hmac };
    let between = Middlebox::Gateway { servers_at, door, key: Key::new(KEY)?, first_id: 1, ticket: None };
    Ok((command, between))
}

fn proxy(address: SocketAddr, how: &str) -> anyhow::Result<(Command, Middlebox)> {
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args([how, &address.to_string(), &server.local_addr()?.to_string()]);
    Ok((command, Middlebox::Proxy(server)))
}

/// Finds a port that is free, `from` places behind the first ones.
fn free_address(from: usize) -> anyhow::Result<SocketAddr> {
    let candidates = (10_000..20_000).step_by(17).map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let mut free = candidates.filter(|address| TcpListener::bind(address).is_ok());
    free.nth(from).context("no port is free")
}
