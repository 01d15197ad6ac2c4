//! `agent doctor` names each network of the laboratory, with the same facts as text and as JSON.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::authority::Authority;
use crate::lab::{Host, Link, NAT64_V6, NatBehavior, NatKind, RoutedHost, RoutedNat, RoutedNet, start_nat64};
use crate::port_mapping::{Daemon, start_daemon};
use crate::proc::{Proc, Stdout};
use crate::test_server::TestServer;
use crate::tools;

const UP: Duration = Duration::from_secs(30);
const SERVER: &str = "203.0.113.10:3478";
const SERVER_V6: &str = "2001:db8::10";
/// The server's second address, for NAT behaviour discovery.
const SECOND: &str = "203.0.113.12";
const PROXY: u8 = 11;
/// Runs at the same time: each must have its share of the processor.
const WORKERS: usize = 4;

/// Lets a host reach nothing but the proxy.
const ONLY_THE_PROXY: &str = "
    table inet proxied {
      chain out { type filter hook output priority 0; policy drop;
                  oifname lo accept; ip daddr 203.0.113.11 tcp dport 3128 accept; }
      chain in { type filter hook input priority 0; policy drop;
                 iifname lo accept; ip saddr 203.0.113.11 tcp sport 3128 accept; }
    }";
/// Lets nothing through a router, and answers port 80 itself.
const ONLY_THE_PORTAL: &str = "
    add chain ip nat captive { type filter hook forward priority -20; policy drop; }
    add chain ip nat portal { type nat hook prerouting priority -110; }
    add rule ip nat portal iifname in tcp dport 80 redirect to :8080
    add rule ip nat input iifname in tcp dport 8080 accept";

/// Where `agent doctor` runs, and what it is to find.
struct Place {
    name: &'static str,
    host: Host,
    options: Vec<String>,
    environment: Vec<(&'static str, String)>,
    verdict: &'static str,
    /// Kind, mapping, filtering and choice of ports.
    nat: Value,
}

/// The internet of the test. The processes go before the networks that they are in.
struct World {
    server: TestServer,
    _processes: Vec<Proc>,
    _daemons: Vec<Daemon>,
    places: Vec<Place>,
    _hosts: Vec<RoutedHost>,
    _nats: Vec<RoutedNat>,
    authority: Authority,
    net: RoutedNet,
}

fn link() -> Link {
    Link::with_delay(Duration::from_millis(5))
}

impl World {
    fn new() -> Self {
        let net = RoutedNet::new(1);
        let server_host = net.public(10, link());
        net.add_ipv6(&server_host, SERVER_V6);
        server_host.add_address(12);
        let addresses: [IpAddr; 3] = ["203.0.113.10", SECOND, SERVER_V6].map(|ip| ip.parse().unwrap());
        let prefixes = addresses.map(|ip| (ip, if ip.is_ipv4() { 32 } else { 128 }));
        net.set_prefixes(&server_host, prefixes.to_vec());
        let authority = Authority::naming(&["turn.test", "203.0.113.10", SERVER_V6]);
        let rest = format!("[stun]\nnat_discovery = [\"203.0.113.10\", \"{SECOND}\"]\n");
        let server = TestServer::on_routed_with(&server_host, &addresses, &authority, &rest);
        let mut world = Self {
            server,
            _processes: Vec::new(),
            _daemons: Vec::new(),
            places: Vec::new(),
            _hosts: vec![server_host],
            _nats: Vec::new(),
            authority,
            net,
        };
        world.add_classes();
        world.add_special();
        world
    }

    fn place(&mut self, name: &'static str, host: &Host, verdict: &'static str, nat: Value) -> &mut Place {
        let server = vec!["--server".to_owned(), SERVER.to_owned()];
        let (host, environment) = (host.clone(), Vec::new());
        self.places.push(Place { name, host, options: server, environment, verdict, nat });
        self.places.last_mut().unwrap()
    }

    /// The classes of `docs/nat-matrix.md`.
    fn add_classes(&mut self) {
        let open = self.net.public(21, link());
        self.place("O", &open, "open", json!(["none", null, "EIF", null]));
        let (walled, firewall) = self.net.behind_firewall(NatBehavior::FIREWALL, 22, link());
        self.place("F", &walled, "easy", json!(["none", null, "APDF", null]));
        let hairpin = NatBehavior { hairpin: true, ..NatBehavior::PORT_RESTRICTED };
        let classes = [
            ("FC", NatBehavior::FULL_CONE, "easy", json!(["easy", "EIM", "EIF", null])),
            ("AR", NatBehavior::ADDRESS_RESTRICTED, "easy", json!(["easy", "EIM", "ADF", null])),
            ("PR", NatBehavior::PORT_RESTRICTED, "easy", json!(["easy", "EIM", "APDF", null])),
            ("hairpin", hairpin, "easy", json!(["easy", "EIM", "APDF", null])),
            ("SP", NatBehavior::SEQUENTIAL, "hard", json!(["hard", "APDM", "APDF", "sequential"])),
            ("SB", NatBehavior::BLOCK, "hard", json!(["hard", "APDM", "APDF", "block of 512"])),
            ("SR", NatBehavior::RANDOM, "hard", json!(["hard", "APDM", "APDF", "random"])),
            ("UB", NatBehavior::UDP_BLOCKED, "relay_only", json!(["unknown", null, null, null])),
        ];
        for (octet, (name, behavior, verdict, found)) in (23..).zip(classes) {
            let nat = self.net.nat(behavior, octet, link());
            let host = self.net.behind(&nat);
            self.place(name, &host, verdict, found);
            self._hosts.push(host);
            self._nats.push(nat);
        }
        self._hosts.extend([open, walled]);
        self._nats.push(firewall);
    }

    /// Networks that are no class of a NAT.
    fn add_special(&mut self) {
        let carrier = self.net.nat(NatBehavior::RANDOM, 41, link());
        let home = self.net.nat_behind(&carrier, NatBehavior::PORT_RESTRICTED, 42);
        let host = self.net.behind(&home);
        self.place("double NAT", &host, "hard", json!(["hard", "APDM", "APDF", "random"]));
        self._hosts.push(host);

        let office = self.net.nat(NatBehavior::PORT_443, 43, link());
        let host = self.net.behind(&office);
        let root = self.authority.root().to_str().unwrap().to_owned();
        let place = self.place("only port 443", &host, "relay_only", json!(["unknown", null, null, null]));
        place.options = ["--server", "https://203.0.113.10:443", "--ca", &root].map(str::to_owned).to_vec();
        self._hosts.push(host);
        self._nats.extend([carrier, home, office]);

        let proxy_host = self.net.public(PROXY, link());
        let proxy = proxy_host.python(
            "proxy.py",
            &["http", "3128", "--user", "me:a secret", "--host", "turn.test=203.0.113.10"],
        );
        proxy.expect("start", UP, |line| (line == "ready").then_some(()));
        let host = self.net.public(44, link());
        host.nft(ONLY_THE_PROXY);
        let place = self.place("proxy", &host, "relay_only", json!(["unknown", null, null, null]));
        place.options[1] = "turn.test:3478".to_owned();
        place.environment = vec![("HTTPS_PROXY", "http://me:a%20secret@203.0.113.11:3128".to_owned())];
        self._processes.push(proxy);
        self._hosts.extend([host, proxy_host]);

        let router = self.net.kernel_nat(NatKind::PortRestricted, 45, link());
        let host = self.net.net().behind(&router);
        router.router().nft(ONLY_THE_PORTAL);
        let portal = router.router().python("portal.py", &["8080"]);
        portal.expect("start", UP, |line| (line == "ready").then_some(()));
        self.place("captive portal", &host, "captive_portal", json!(["unknown", null, null, null]));
        self._processes.push(portal);

        let host = self.net.public(46, link());
        host.run("ip", &["addr", "flush", "dev", "eth0"]);
        self.place("offline", &host, "offline", json!(["unknown", null, null, null]));
        self._hosts.push(host);
        if tools::have(&["miniupnpd"]) {
            let nat = self.net.kernel_nat(NatKind::Symmetric, 47, link());
            let external = Ipv4Addr::new(198, 41, 0, 47);
            let router = nat.router();
            router.run("ip", &["addr", "add", &format!("{external}/32"), "dev", "out"]);
            self._daemons.push(start_daemon(&router, external, (true, true)));
            let host = self.net.net().behind(&nat);
            self.place("port mapping", &host, "mapped", json!(["hard", "APDM", "APDF", "random"]));
        }
        if tools::happens_to_have(&["tayga"]) {
            let nat64 = start_nat64(&self.net, link(), self.authority.folder());
            let (host, firewall) = self.net.ipv6_only(NatBehavior::FIREWALL, "2001:db8:6::21", link());
            host.resolve_at(NAT64_V6);
            let place = self.place("V6", &host, "easy", json!(["none", null, "APDF", null]));
            place.options[1] = format!("[{SERVER_V6}]:3478");
            self._processes.extend(nat64.processes);
            self._hosts.extend([host, nat64.host]);
            self._nats.push(firewall);
        }
    }
}

impl Place {
    fn command(&self, key: &str, options: &[&str]) -> Command {
        let mut command = self.host.command(env!("CARGO_BIN_EXE_agent"));
        command.arg("doctor").args(&self.options).args(options).env("AGENT_KEY", key);
        command.envs(self.environment.iter().cloned());
        command
    }
}

/// The events of a run, by type; of several servers the last.
fn events(printed: &str) -> Value {
    let lines = printed.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let events = lines.map(|event| (event["t"].as_str().unwrap().to_owned(), event));
    Value::Object(events.collect())
}

fn assert_named(key: &str, place: &Place) {
    let mut run = Proc::start(place.name, place.command(key, &["--json"]), Stdout::Lines);
    let started = Instant::now();
    let status = run.wait(UP);
    let took = started.elapsed();
    let found = events(&run.printed());
    let (nat, verdict) = (&found["nat"], &found["verdict"]);
    let named = json!([nat["kind"], nat["mapping"], nat["filtering"], nat["ports"]]);
    let context = format!("{}: {}", place.name, run.printed());
    assert_eq!(verdict["code"], place.verdict, "{context}");
    // A block that begins elsewhere looks like one of another size.
    let is_block = nat["ports"].as_str().is_some_and(|ports| ports.starts_with("block"));
    assert!(named == place.nat || is_block && place.name == "SB", "{named} {context}");
    let has_way = !["captive_portal", "offline"].contains(&place.verdict);
    assert_eq!(status.code(), Some(if has_way { 0 } else { 5 }), "{context}");
    assert_special(place, &found, &context);
    let seen_text = json!([found["internet"]["text"], nat["text"], verdict["text"]]).to_string();
    tools::print(&format!("{} after {took:.1?}: {seen_text}", place.name));
}

/// What only one network has.
fn assert_special(place: &Place, found: &Value, context: &str) {
    match place.name {
        "hairpin" => assert_eq!(found["nat"]["hairpin"], true, "{context}"),
        "PR" => assert_eq!(found["nat"]["hairpin"], false, "{context}"),
        "UB" => {
            assert_eq!(found["transports"]["udp"]["state"], "failed", "{context}");
            assert_eq!(found["server"]["turn_udp"]["code"], "timed_out", "{context}");
            assert_eq!(found["server"]["turn_tcp"]["state"], "ok", "{context}");
        }
        "proxy" => {
            let proxy = found["transports"]["proxy"].as_str().unwrap();
            assert!(proxy.contains("203.0.113.11:3128") && !proxy.contains("secret"), "{context}");
        }
        "captive portal" => {
            assert_eq!(found["internet"]["captive_portal"], true, "{context}");
            assert!(
                found["internet"]["hint"].as_str().unwrap().contains("http://portal.test/login"),
                "{context}"
            );
        }
        "port mapping" => {
            for protocol in ["upnp", "pcp", "nat_pmp"] {
                assert_eq!(found["port_mapping"][protocol]["state"], "yes", "{protocol} {context}");
            }
        }
        "V6" => assert_eq!(found["internet"]["nat64"], true, "{context}"),
        "O" => {
            assert_eq!(found["internet"]["ipv4"], "203.0.113.21", "{context}");
            assert_eq!(found["internet"]["clock_ahead_s"], 0, "{context}");
            assert_eq!(found["transports"]["tls_443"]["code"], "certificate", "{context}");
            for transport in ["stun", "turn_udp", "turn_tcp", "turn_websocket", "signaling"] {
                assert_eq!(found["server"][transport]["state"], "ok", "{transport} {context}");
            }
        }
        _ => {}
    }
}

#[test]
fn each_network_of_the_laboratory_is_named() {
    if !tools::have_laboratory() {
        return;
    }
    let world = World::new();
    let (key, places) = (world.server.key(), &world.places);
    let next = Mutex::new(places.iter());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(place) = { next.lock().unwrap().next() } {
                    assert_named(&key, place);
                }
            });
        }
    });
    let usual = places.iter().find(|place| place.name == "PR").unwrap();
    assert_text_and_json_agree(&key, usual);
}

/// A line without its times and ports, which change from run to run.
fn steady(line: &str) -> String {
    let words = line.split(' ').filter(|word| !word.chars().all(|c| c.is_ascii_digit()) && *word != "ms");
    words.map(|word| word.split("203.0.113.").next().unwrap()).collect::<Vec<_>>().join(" ")
}

fn assert_text_and_json_agree(key: &str, place: &Place) {
    let mut text = Proc::start("doctor", place.command(key, &[]), Stdout::Lines);
    let mut json = Proc::start("doctor --json", place.command(key, &["--json"]), Stdout::Lines);
    text.succeed(UP);
    json.succeed(UP);
    let events = json.lines(|line| serde_json::from_str::<Value>(line).ok());
    assert_eq!(events.len(), 6, "{}", json.printed());
    let lines = text.lines(|line| Some(steady(line)));
    for event in events {
        let line = steady(event["text"].as_str().unwrap());
        assert!(lines.iter().any(|shown| shown.ends_with(&line)), "{line}\n{}", text.printed());
    }
}

#[test]
fn a_server_with_one_address_leaves_what_it_cannot_tell_unknown() {
    if !tools::have_laboratory() {
        return;
    }
    let net = RoutedNet::new(2);
    let server_host = net.public(10, link());
    let server = TestServer::on(&server_host);
    let idle = NatBehavior { idle: Duration::from_millis(1500), ..NatBehavior::FULL_CONE };
    let nat = net.nat(idle, 21, link());
    let host = net.behind(&nat);
    let run = |options: &[&str], key: &str| {
        let mut command = host.command(env!("CARGO_BIN_EXE_agent"));
        command.args(["doctor", "--server", SERVER, "--json"]).args(options).env("AGENT_KEY", key);
        let mut doctor = Proc::start("doctor", command, Stdout::Lines);
        let status = doctor.wait(UP);
        (status.code(), events(&doctor.printed()), doctor.printed())
    };
    let (code, found, printed) = run(&["--lifetime", "3"], &server.key());
    assert_eq!(code, Some(0), "{printed}");
    let nat = &found["nat"];
    let named = json!([nat["mapping"], nat["filtering"], nat["mapping_lifetime"]]);
    assert_eq!(named, json!(["EIM or ADM", "EIF or ADF", "1 to 2 s"]), "{printed}");
    let (code, found, printed) = run(&[], "not the key");
    assert_eq!((code, &found["verdict"]["code"]), (Some(5), &json!("key_rejected")), "{printed}");
    assert!(found["server"]["hint"].as_str().unwrap().contains("--key-file FILE"), "{printed}");
    // Without a key all but the relay works.
    let (code, found, printed) = run(&[], "");
    assert_eq!((code, &found["verdict"]["code"]), (Some(0), &json!("easy")), "{printed}");
    assert_eq!(found["server"]["turn_udp"]["reason"], "401 (no key given)", "{printed}");
    server_host.run("ip", &["link", "set", "eth0", "down"]);
    let (code, found, printed) = run(&[], "");
    assert_eq!((code, &found["verdict"]["code"]), (Some(5), &json!("no_server")), "{printed}");
}
