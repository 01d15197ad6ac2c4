//! The NAT laboratory: an internet of network namespaces, with kernel NATs in front of its hosts.
//!
//! ```text
//!   10.21.0.2 ── nat .21 ──┐                 ┌── nat .22 ── 10.22.0.2
//!                          ├── 203.0.113.0/24 ┤
//!   server .10 ────────────┘   (a bridge)     └── public host .11
//! ```
//!
//! [`RoutedNet`] is another internet, for what the kernel lacks: delay, loss, predictable ports, mappings that expire.
//!
//! Everything that leaves 203.0.113.0/24 falls into a sink, silently, as packets to foreign private addresses do.

mod nat;
mod nat64;
mod nat_table;
mod packet;
mod router;
mod topology;
mod tun;

use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::proc::{Proc, Stdout};

pub(crate) use nat::{Nat, NatKind};
pub(crate) use nat_table::NatBehavior;
pub(crate) use nat64::{NAT64_V6, start_nat64};
pub(crate) use router::{RoutedHost, RoutedNat, RoutedNet};
pub(crate) use topology::Link;

const PREFIX: &str = "ginnel-";
/// `ip netns exec` puts a namespace's files of this folder in the place of those of `/etc`.
const FILES: &str = "/etc/netns";

/// One internet. Dropped, it takes its namespaces along; drop the processes in it first.
pub(crate) struct Net {
    name: String,
    namespaces: std::cell::RefCell<Vec<String>>,
}

impl Net {
    /// Makes an internet without hosts.
    pub(crate) fn new() -> Self {
        let net = Self::without_bridge();
        let core = net.namespace("inet");
        ip(
            &core,
            "link add br0 type bridge\n\
             link set br0 up\n\
             addr add 203.0.113.1/24 dev br0\n\
             route add blackhole default\n",
        );
        inside(&core, "echo 1 > /proc/sys/net/ipv4/ip_forward");
        net
    }

    /// Makes a set of namespaces with nothing between them.
    fn without_bridge() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        sweep();
        let name = format!("{PREFIX}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Self { name, namespaces: std::cell::RefCell::default() }
    }

    /// Adds a host with the public address 203.0.113.`octet` whose default route is the sink.
    pub(crate) fn public(&self, octet: u8) -> Host {
        let host = self.island(octet);
        ip(&host.namespace, "route add default via 203.0.113.1\n");
        host
    }

    /// Adds a host with the public address 203.0.113.`octet` and no default route.
    pub(crate) fn island(&self, octet: u8) -> Host {
        let namespace = self.namespace(&format!("h{octet}"));
        let address = self.plug(&namespace, "eth0", octet);
        Host { namespace, address }
    }

    /// Deletes the network of a host of [`public`](Self::public), card and address, as pulling the card would.
    pub(crate) fn unplug(&self, host: &Host) {
        ip(&format!("{}-inet", self.name), &format!("link del p{}\n", host.address.octets()[3]));
    }

    /// Gives it back.
    pub(crate) fn replug(&self, host: &Host) {
        self.plug(&host.namespace, "eth0", host.address.octets()[3]);
        ip(&host.namespace, "route add default via 203.0.113.1\n");
    }

    fn plug(&self, namespace: &str, device: &str, octet: u8) -> Ipv4Addr {
        let core = format!("{}-inet", self.name);
        ip(
            &core,
            &format!(
                "link add p{octet} type veth peer name {device} netns {namespace}\n\
                 link set p{octet} master br0 up\n"
            ),
        );
        let address = Ipv4Addr::new(203, 0, 113, octet);
        ip(namespace, &format!("link set {device} up\naddr add {address}/24 dev {device}\n"));
        address
    }

    fn namespace(&self, part: &str) -> String {
        let name = format!("{}-{part}", self.name);
        run(Command::new("ip").args(["netns", "add", &name]), "");
        self.namespaces.borrow_mut().push(name.clone());
        inside(&name, "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6 2>/dev/null || true");
        ip(&name, "link set lo up\n");
        name
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in self.namespaces.borrow().iter() {
            remove(name);
        }
    }
}

/// One machine of the laboratory.
#[derive(Clone)]
pub(crate) struct Host {
    namespace: String,
    address: Ipv4Addr,
}

impl Host {
    /// Its own address, which is an inner one behind a NAT.
    pub(crate) fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Gives it the second public address 203.0.113.`octet`.
    pub(crate) fn add_address(&self, octet: u8) {
        ip(&self.namespace, &format!("addr add 203.0.113.{octet}/24 dev eth0\n"));
    }

    /// Gives it the public address 203.0.113.`octet` in place of its own, as another network would.
    pub(crate) fn move_to(&self, octet: u8) {
        let own = self.address;
        ip(
            &self.namespace,
            &format!(
                "addr del {own}/24 dev eth0\naddr add 203.0.113.{octet}/24 dev eth0\nroute replace default via 203.0.113.1\n"
            ),
        );
    }

    /// Gives it an address, with its prefix length, that only processes on this host reach.
    pub(crate) fn add_inner_address(&self, address: &str) {
        ip(&self.namespace, &format!("addr add {address} dev lo\n"));
    }

    /// Takes such an address away.
    pub(crate) fn remove_inner_address(&self, address: &str) {
        ip(&self.namespace, &format!("addr del {address} dev lo\n"));
    }

    /// Lets it have IPv6 addresses.
    pub(crate) fn enable_ipv6(&self) {
        inside(&self.namespace, "echo 0 > /proc/sys/net/ipv6/conf/all/disable_ipv6");
    }

    /// Takes its network away, or gives it back.
    pub(crate) fn link(&self, up: bool) {
        let state = if up { "up" } else { "down" };
        ip(&self.namespace, &format!("link set eth0 {state}\n"));
    }

    /// Gives it another inner address, which ends in `octet`, as a new lease would, and its link back where that was down.
    pub(crate) fn renumber(&mut self, octet: u8) {
        let [a, b, c, _] = self.address.octets();
        self.address = Ipv4Addr::new(a, b, c, octet);
        ip(
            &self.namespace,
            &format!(
                "addr flush dev eth0 scope global\n\
                 link set eth0 up\n\
                 addr add {}/24 dev eth0\n\
                 route add default via {a}.{b}.{c}.1\n",
                self.address
            ),
        );
    }

    /// Runs `work` on a thread of its own on this host; sockets that it opens stay there.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = std::fs::File::open(Path::new("/var/run/netns").join(&self.namespace)).unwrap();
        let enter = move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        };
        std::thread::scope(|scope| scope.spawn(enter).join().unwrap())
    }

    /// A command that will run on this host.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace]).arg(program);
        for name in ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
            command.env_remove(name);
        }
        command
    }

    /// Lets its processes resolve names at this address.
    pub(crate) fn resolve_at(&self, address: &str) {
        let folder = Path::new(FILES).join(&self.namespace);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("resolv.conf"), format!("nameserver {address}\n")).unwrap();
    }

    /// Runs a program on this host to its successful end.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) {
        run(self.command(program).args(arguments), "");
    }

    /// Starts a Python program of `tests/clients/` on this host.
    pub(crate) fn python(&self, program: &str, arguments: &[&str]) -> Proc {
        let mut command = self.command("python3");
        command.arg(crate::tools::client(program)).args(arguments);
        Proc::start(&format!("{program} on {}", self.address), command, Stdout::Lines)
    }

    /// Loads an nftables ruleset on this host.
    pub(crate) fn nft(&self, ruleset: &str) {
        nft(&self.namespace, ruleset);
    }

    /// The bytes counted by the named counter of table `inet count`.
    pub(crate) fn counted(&self, counter: &str) -> u64 {
        let mut command = self.command("nft");
        command.args(["-j", "list", "counter", "inet", "count", counter]);
        let listed: serde_json::Value = serde_json::from_str(&run(&mut command, "")).unwrap();
        let found =
            listed["nftables"].as_array().unwrap().iter().find_map(|item| item["counter"]["bytes"].as_u64());
        found.unwrap_or_else(|| panic!("no counter {counter}: {listed}"))
    }
}

/// Deletes what test processes that are gone could not delete themselves.
fn sweep() {
    let listed = run(Command::new("ip").args(["netns", "list"]), "");
    for name in listed.lines().filter_map(|line| line.split_whitespace().next()) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        let Some(owner) = owner.filter(|id| id.parse::<u32>().is_ok()) else { continue };
        if !Path::new("/proc").join(owner).exists() {
            remove(name);
        }
    }
}

/// Deletes a namespace with its files.
fn remove(name: &str) {
    Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status().ok();
    std::fs::remove_dir_all(Path::new(FILES).join(name)).ok();
}

fn ip(namespace: &str, batch: &str) {
    run(Command::new("ip").args(["-n", namespace, "-batch", "-"]), batch);
}

fn nft(namespace: &str, ruleset: &str) {
    run(Command::new("ip").args(["netns", "exec", namespace, "nft", "-f", "-"]), ruleset);
}

fn inside(namespace: &str, script: &str) {
    run(Command::new("ip").args(["netns", "exec", namespace, "sh", "-c", script]), "");
}

fn run(command: &mut Command, input: &str) -> String {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{errors}\n{input}", output.status);
    String::from_utf8(output.stdout).unwrap()
}
