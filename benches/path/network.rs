//! Two hosts and a server in network namespaces. The hosts share a bridge, a wire of their own with delay, loss and a bottleneck, or the
//! server's host, to which each has such a wire.

use super::tun;
use anyhow::{Context, bail};
use ginnel::internals::net::time;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The hosts' addresses on their wire or bridge.
pub(super) const HOSTS: [&str; 2] = ["203.0.113.21", "203.0.113.22"];
/// The server's address, which both hosts reach.
pub(super) const SERVER: &str = "203.0.113.10";
const MTU: usize = 1500;
/// What is due within this time is due: the poll's timeout has whole milliseconds.
const EARLY: Duration = Duration::from_micros(500);
/// Packets that are read from one host before the other has its turn.
const BURST: usize = 64;
/// Packets under way in one direction; more are dropped.
const MOST_PACKETS: usize = 32_768;

/// What the wire between the hosts does.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Wire {
    /// In one direction.
    pub(super) delay: Duration,
    /// In thousandths, in each direction.
    pub(super) loss: u32,
    /// In Mbit/s; 0 for none.
    pub(super) bottleneck: u32,
    /// How long the bottleneck's queue lasts; more is dropped.
    pub(super) queue: Duration,
}

/// How the hosts are connected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Layout {
    /// Packets of the hosts cross a bridge as large as they are sent.
    Bridge,
    /// By a wire; the server is reached on another way.
    Wire(Wire),
    /// By a wire to the server's host and another one from there, each with half of the delay.
    Routed(Wire),
}

/// The namespaces; dropped, they are deleted.
pub(super) struct Network {
    name: String,
    stopped: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Network {
    pub(super) fn new(layout: Layout) -> anyhow::Result<Self> {
        let name = format!("path{}", std::process::id());
        let mut network = Self { name, stopped: Arc::default(), threads: Vec::new() };
        for part in ["s", "a", "b"] {
            run(Command::new("ip").args(["netns", "add", &network.namespace(part)]))?;
            network.ip(part, "link set lo up")?;
        }
        match layout {
            Layout::Bridge => network.connect_all()?,
            Layout::Wire(wire) => network.connect_apart(wire)?,
            Layout::Routed(wire) => network.connect_routed(wire)?,
        }
        Ok(network)
    }

    fn namespace(&self, part: &str) -> String {
        format!("{}{part}", self.name)
    }

    fn ip(&self, part: &str, arguments: &str) -> anyhow::Result<()> {
        run(Command::new("ip").args(["-n", &self.namespace(part)]).args(arguments.split(' ')))
    }

    fn connect_all(&self) -> anyhow::Result<()> {
        self.ip("s", "link add br0 type bridge")?;
        self.ip("s", "link set br0 up")?;
        self.ip("s", &format!("addr add {SERVER}/24 dev br0"))?;
        for (part, address) in ["a", "b"].into_iter().zip(HOSTS) {
            self.plug(part)?;
            self.ip("s", &format!("link set to{part} master br0"))?;
            self.ip(part, &format!("addr add {address}/24 dev eth0"))?;
        }
        Ok(())
    }

    fn plug(&self, part: &str) -> anyhow::Result<()> {
        let host = self.namespace(part);
        self.ip("s", &format!("link add to{part} type veth peer name eth0 netns {host}"))?;
        self.ip("s", &format!("link set to{part} up"))?;
        self.ip(part, "link set eth0 up")
    }

    /// The server forwards nothing, so that only the wire connects the hosts.
    fn connect_apart(&mut self, wire: Wire) -> anyhow::Result<()> {
        self.ip("s", &format!("addr add {SERVER}/32 dev lo"))?;
        let mut devices = Vec::new();
        for (index, part) in ["a", "b"].into_iter().enumerate() {
            self.plug(part)?;
            self.ip("s", &format!("addr add 10.0.{index}.1/24 dev to{part}"))?;
            self.ip(part, &format!("addr add 10.0.{index}.2/24 dev eth0"))?;
            self.ip(part, &format!("route add {SERVER}/32 via 10.0.{index}.1"))?;
            devices.push(self.end_of_wire(part, "wire0", [HOSTS[index], HOSTS[1 - index]])?);
        }
        self.carry([devices.remove(0), devices.remove(0)], wire);
        Ok(())
    }

    /// The server's host forwards what is not for the server.
    fn connect_routed(&mut self, wire: Wire) -> anyhow::Result<()> {
        let half = Wire { delay: wire.delay / 2, ..wire };
        for (index, part) in ["a", "b"].into_iter().enumerate() {
            let near = self.end_of_wire(part, "wire0", [HOSTS[index], SERVER])?;
            let far = self.end_of_wire("s", &format!("to{part}"), [SERVER, HOSTS[index]])?;
            self.ip(part, &format!("route add {} via {SERVER}", HOSTS[1 - index]))?;
            self.carry([near, far], half);
        }
        run(self.command("s", "sysctl").args(["-q", "-w", "net.ipv4.ip_forward=1"]))
    }

    /// Makes one end of a wire between two addresses.
    fn end_of_wire(&self, part: &str, device: &str, [own, other]: [&str; 2]) -> anyhow::Result<File> {
        let end = self.inside(part, || tun::open(device))??;
        self.ip(part, &format!("link set {device} mtu 1500 txqueuelen 5000 up"))?;
        self.ip(part, &format!("addr add {own} peer {other} dev {device}"))?;
        Ok(end)
    }

    fn carry(&mut self, devices: [File; 2], wire: Wire) {
        let stopped = Arc::clone(&self.stopped);
        self.threads.push(std::thread::spawn(move || {
            if let Err(error) = carry(devices, wire, &stopped) {
                super::print_note(&format!("the wire broke: {error}"));
            }
        }));
    }

    /// Runs `work` on a thread of its own in a namespace.
    fn inside<T: Send>(&self, part: &str, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let namespace = File::open(Path::new("/var/run/netns").join(self.namespace(part)))?;
        let enter = || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            anyhow::Ok(work())
        };
        std::thread::scope(|scope| scope.spawn(enter).join()).map_err(|_| anyhow::anyhow!("a panic"))?
    }

    /// Returns a command that runs at the server, `s`, or a host, `a` or `b`.
    pub(super) fn command(&self, part: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(part)]).arg(program);
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        for part in ["s", "a", "b"] {
            let mut command = Command::new("ip");
            let _ = command.args(["netns", "del", &self.namespace(part)]).stderr(Stdio::null()).status();
        }
    }
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output().context("`ip` is not installed")?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// One direction of the wire.
struct Lane {
    under_way: VecDeque<(Instant, Vec<u8>)>,
    /// When the bottleneck has sent everything that it has.
    free_at: Instant,
    random: ChaCha8Rng,
}

impl Lane {
    fn push(&mut self, now: Instant, wire: Wire, packet: &[u8]) {
        if self.random.random_range(0..1000) < wire.loss || self.under_way.len() >= MOST_PACKETS {
            return;
        }
        if wire.bottleneck > 0 {
            let begin = self.free_at.max(now);
            if begin - now > wire.queue {
                return;
            }
            self.free_at =
                begin + Duration::from_nanos(packet.len() as u64 * 8000 / u64::from(wire.bottleneck));
        } else {
            self.free_at = now;
        }
        self.under_way.push_back((self.free_at + wire.delay, packet.to_vec()));
    }

    fn pop_due(&mut self, now: Instant, mut device: &File) {
        while self.under_way.front().is_some_and(|(due, _)| *due <= now + EARLY) {
            let Some((_, packet)) = self.under_way.pop_front() else { return };
            // A packet that a host does not take is lost.
            let _ = device.write(&packet);
        }
    }
}

/// Carries packets until the network is dropped.
fn carry(devices: [File; 2], wire: Wire, stopped: &AtomicBool) -> std::io::Result<()> {
    let mut poll = Poll::new()?;
    for (index, device) in devices.iter().enumerate() {
        poll.registry().register(&mut SourceFd(&device.as_raw_fd()), Token(index), Interest::READABLE)?;
    }
    let lane = |seed| Lane {
        under_way: VecDeque::new(),
        free_at: time::mono(),
        random: ChaCha8Rng::seed_from_u64(seed),
    };
    let mut lanes = [lane(1), lane(2)];
    let (mut events, mut packet) = (Events::with_capacity(8), [0; MTU]);
    let mut readable = [true; 2];
    while !stopped.load(Ordering::Relaxed) {
        for (index, lane) in lanes.iter_mut().enumerate() {
            for _ in 0..BURST {
                match (&devices[index]).read(&mut packet) {
                    Ok(len) => lane.push(time::mono(), wire, &packet[..len]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        readable[index] = false;
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
            lane.pop_due(time::mono(), &devices[1 - index]);
        }
        let now = time::mono();
        let due = lanes.iter().filter_map(|lane| lane.under_way.front().map(|(due, _)| *due)).min();
        let wait = due.map_or(Duration::from_millis(100), |due| due.saturating_duration_since(now));
        let wait =
            if readable.contains(&true) { Duration::ZERO } else { wait.min(Duration::from_millis(100)) };
        poll.poll(&mut events, Some(wait))?;
        for event in &events {
            readable[event.token().0] = true;
        }
    }
    Ok(())
}
