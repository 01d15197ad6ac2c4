//! The two servers on loopback, on their own processor.

use anyhow::{Context, bail};
use ginnel::internals::load::process::{self, Process};
use ginnel::internals::net::time;
use ginnel::internals::signaling::Rate;
use ginnel::{ServerConfig, State};
use std::fs::{self, File};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;

/// The version of PeerJS's server.
const PEERJS: &str = "peer@1.0.2";
const START: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Ginnel,
    PeerJs,
}

impl Kind {
    pub(super) const ALL: [Self; 2] = [Self::Ginnel, Self::PeerJs];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ginnel => "ginnel",
            Self::PeerJs => "peerjs",
        }
    }
}

/// A server that runs until it is dropped.
pub(super) struct Server {
    child: Child,
    pub(super) address: SocketAddr,
    folder: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Installs PeerJS's server into `folder` by `npm`, unless it is installed.
pub(super) fn fetch(folder: &Path) -> anyhow::Result<()> {
    if program(folder).exists() {
        return Ok(());
    }
    fs::create_dir_all(folder)?;
    let mut npm = Command::new("npm");
    npm.args(["install", "--no-save", "--no-audit", "--no-fund", "--prefix"]).arg(folder).arg(PEERJS);
    let status = npm.stdout(Stdio::null()).status().context("npm, which comes with Node.js")?;
    if !status.success() {
        bail!("npm could not fetch {PEERJS}: {status}");
    }
    Ok(())
}

/// Finds a port that is free on all addresses, which PeerJS's server needs, below the ephemeral ports.
fn free_address() -> anyhow::Result<SocketAddr> {
    let is_free = |port: &u16| TcpListener::bind((Ipv6Addr::UNSPECIFIED, *port)).is_ok();
    let port = (10_000..20_000).step_by(19).find(is_free).context("no port is free")?;
    Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
}

fn program(folder: &Path) -> std::path::PathBuf {
    folder.join("node_modules/peer/dist/bin/peerjs.js")
}

impl Server {
    pub(super) fn start(
        kind: Kind,
        folder: &Path,
        (own_cpu, client_cpu): (usize, usize),
    ) -> anyhow::Result<Self> {
        let address = free_address()?;
        let mut command = match kind {
            Kind::Ginnel => Command::new(std::env::current_exe()?),
            Kind::PeerJs => Command::new("node"),
        };
        match kind {
            Kind::Ginnel => command.args(["--serve", &address.to_string()]),
            Kind::PeerJs => command.arg(program(folder)).args(["--port", &address.port().to_string()]),
        };
        let folder = tempfile::tempdir()?;
        let log = File::create(folder.path().join("log"))?;
        command.current_dir(folder.path()).stdin(Stdio::piped()).stderr(log.try_clone()?).stdout(log);
        // A child process inherits the processor of the thread that starts it.
        process::pin(own_cpu).context("--server-cpu")?;
        let child = command.spawn().with_context(|| kind.name())?;
        process::pin(client_cpu).context("--client-cpu")?;
        let mut server = Self { child, address, folder };
        let started = server.await_start();
        let log_text = fs::read_to_string(server.folder.path().join("log")).unwrap_or_default();
        started.with_context(|| format!("{}: {log_text}", kind.name()))?;
        Ok(server)
    }

    fn await_start(&mut self) -> anyhow::Result<()> {
        let deadline = time::mono() + START;
        while TcpStream::connect(self.address).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("the process ended: {status}");
            }
            if time::mono() > deadline {
                bail!("the process does not listen");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        // The measurement does not include the server's start.
        std::thread::sleep(Duration::from_secs(1));
        Ok(())
    }

    fn process(&self) -> anyhow::Result<Process> {
        Ok(Process::new(self.child.id())?)
    }

    pub(super) fn resident(&self) -> anyhow::Result<u64> {
        Ok(self.process()?.resident()?)
    }

    pub(super) fn cpu(&self) -> anyhow::Result<Duration> {
        Ok(Duration::from_nanos(self.process()?.cpu_ns()?))
    }
}

/// Runs ginnel's server until standard input ends, without rate limits: PeerJS's server has none.
pub(super) fn serve(address: SocketAddr) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let state = State::open(&std::env::current_dir()?.join("state"))?;
        let mut config = ServerConfig {
            listen: vec![address.ip()],
            port: address.port(),
            aux_port: Some(0),
            workers: Some(1),
            ..ServerConfig::default()
        };
        config.tls.port = None;
        let plenty = Rate::new(1e12, 1e12);
        (config.signaling.limits.per_source, config.signaling.limits.per_pair) = (plenty, plenty);
        let server = ginnel::Server::start(config, &state).await?;
        tokio::io::stdin().read_to_end(&mut Vec::new()).await?;
        server.shutdown().await;
        Ok(())
    })
}
