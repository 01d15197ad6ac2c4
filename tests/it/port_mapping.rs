//! Two agents behind symmetric NATs, one of which maps ports for its hosts.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::lab::{Host, NatKind, Net};
use crate::proc::{Proc, Stdout};
use crate::test_server::TestServer;
use crate::tools;
use crate::waiting::{pause_under_test, try_until};

const UP: Duration = Duration::from_secs(30);

/// The chains that `miniupnpd` fills.
const CHAINS: &str = "
    add rule ip nat input iifname in accept
    table inet mappings {
      chain nat_rules { } ; chain forward_rules { } ; chain source_rules { }
      chain pre { type nat hook prerouting priority -110; jump nat_rules; }
      chain post { type nat hook postrouting priority 90; jump source_rules; }
      chain forward { type filter hook forward priority -5; jump forward_rules; }
    }";

/// The daemon of a router, and the folder of its files.
pub(crate) struct Daemon(Proc, #[expect(dead_code)] TempDir);

/// Starts the daemon on a router. `external` is an address that it takes for public: those of the laboratory are for documentation.
pub(crate) fn start_daemon(router: &Host, external: Ipv4Addr, protocols: (bool, bool)) -> Daemon {
    start_daemon_with(router, external, protocols, &["-4"])
}

fn start_daemon_with(
    router: &Host,
    external: Ipv4Addr,
    (upnp, pcp): (bool, bool),
    options: &[&str],
) -> Daemon {
    router.nft(CHAINS);
    let folder = tempfile::tempdir().unwrap();
    let word = |is_on| if is_on { "yes" } else { "no" };
    let external = match external.is_private() {
        // The daemon refuses to be told a private one.
        true => String::new(),
        false => format!("ext_ip={external}"),
    };
    let lines = format!(
        "ext_ifname=out\n{external}\nlistening_ip=in\nenable_upnp={}\nenable_natpmp={}\nsecure_mode=yes\n\
         system_uptime=yes\nupnp_table_name=mappings\nupnp_nat_table_name=mappings\nupnp_forward_chain=forward_rules\n\
         upnp_nat_chain=nat_rules\nupnp_nat_postrouting_chain=source_rules\nallow 1024-65535 10.0.0.0/8 1024-65535\n\
         deny 0-65535 0.0.0.0/0 0-65535\n",
        word(upnp),
        word(pcp)
    );
    let (configuration, pid) = (folder.path().join("conf"), folder.path().join("pid"));
    std::fs::write(&configuration, lines).unwrap();
    let mut command = router.command("miniupnpd");
    command.arg("-d").args(options).arg("-f").arg(configuration).arg("-P").arg(pid);
    let daemon = Proc::start("miniupnpd", command, Stdout::Lines);
    daemon.expect("start", UP, |line| line.contains("istening ").then_some(()));
    Daemon(daemon, folder)
}

fn agent(name: &str, host: &Host, arguments: &[&str]) -> Proc {
    let mut command = host.command(env!("CARGO_BIN_EXE_agent"));
    command.args(arguments).arg("--json").env_remove("AGENT_KEY");
    Proc::start(name, command, Stdout::Pipe)
}

fn event(line: &str, kind: &str) -> Option<Value> {
    serde_json::from_str::<Value>(line).ok().filter(|event| event["t"] == kind)
}

fn mapped(router: &Host) -> String {
    let mut command: Command = router.command("nft");
    let listed = command.args(["list", "chain", "inet", "mappings", "nat_rules"]).output().unwrap();
    String::from_utf8(listed.stdout).unwrap()
}

#[test]
fn without_port_mapping_the_router_is_left_alone() {
    if !tools::have_laboratory() || !tools::have(&["miniupnpd"]) {
        return;
    }
    let net = Net::new();
    let test_server = TestServer::on(&net.island(10));
    let nats = [21, 22].map(|octet| net.nat(NatKind::Symmetric, octet));
    let hosts = nats.each_ref().map(|nat| net.behind(nat));
    let external = net.add_outer_address(&nats[0]);
    let router = nats[0].router();
    let _daemon = start_daemon(&router, external, (true, true));
    let (server, key) = (test_server.address.to_string(), test_server.key());
    let arguments = ["listen", "--server", &server, "--key", &key, "--no-port-mapping"];
    let mut listener = agent("listener", &hosts[0], &arguments);
    let _to_listener = listener.take_pipes();
    let ticket =
        listener.expect("ticket", UP, |line| Some(event(line, "ticket")?["ticket"].as_str()?.to_owned()));
    let mut connector = agent("connector", &hosts[1], &["connect", &ticket]);
    let _to_connector = connector.take_pipes();
    // With mappings the path is direct before the reason of a relay is known.
    connector.expect("relayed path", UP, |line| {
        event(line, "path").filter(|path| path["kind"] == "relay" && path["reason"].is_string())
    });
    assert!(!mapped(&router).contains("dnat"), "{}", mapped(&router));
}

/// Connects two agents behind symmetric NATs; the router of the listener maps ports by these protocols.
fn assert_direct(protocols: (bool, bool)) {
    if !tools::have_laboratory() || !tools::have(&["miniupnpd"]) {
        return;
    }
    let net = Net::new();
    let test_server = TestServer::on(&net.island(10));
    let nats = [21, 22].map(|octet| net.nat(NatKind::Symmetric, octet));
    let hosts = nats.each_ref().map(|nat| net.behind(nat));
    let external = net.add_outer_address(&nats[0]);
    let router = nats[0].router();
    let _daemon = start_daemon(&router, external, protocols);

    let (server, key) = (test_server.address.to_string(), test_server.key());
    let mut listener = agent("listener", &hosts[0], &["listen", "--server", &server, "--key", &key]);
    let _to_listener = listener.take_pipes();
    let ticket =
        listener.expect("ticket", UP, |line| Some(event(line, "ticket")?["ticket"].as_str()?.to_owned()));
    let mut connector = agent("connector", &hosts[1], &["connect", &ticket]);
    let to_connector = connector.take_pipes();
    let direct = connector.expect("direct path", UP, |line| {
        event(line, "path").filter(|path| path["kind"] == "direct" && path["transport"] != "tcp")
    });
    let remote = direct["remote"].as_str().unwrap();
    assert!(remote.starts_with(&format!("{external}:")), "{direct}");
    assert!(mapped(&router).contains("dnat"), "{}", mapped(&router));

    drop(to_connector);
    connector.terminate();
    listener.terminate();
    let is_deleted = || if mapped(&router).contains("dnat") { Err(mapped(&router)) } else { Ok(()) };
    let deleted = try_until(Instant::now() + UP, is_deleted);
    assert!(deleted.is_ok(), "{deleted:?}\n{}", listener.printed());
}

/// The router's rules for hosts behind its firewall.
fn pinholes(router: &Host) -> String {
    let listed = router.command("nft").args(["list", "chain", "inet", "mappings", "forward_rules"]).output();
    String::from_utf8(listed.unwrap().stdout).unwrap()
}

/// A listener with an IPv6 address behind a router that opens its firewall by these protocols.
fn assert_pinholes(protocols: (bool, bool)) {
    if !tools::have_laboratory() || !tools::have(&["miniupnpd"]) {
        return;
    }
    const HOST: &str = "2001:db8:21::2";
    // As the rules of the daemon name it.
    const WORD: &str = "0x20010db8002100000000000000000002";
    let net = Net::new();
    let test_server = TestServer::on(&net.island(10));
    let nat = net.nat(NatKind::PortRestricted, 21);
    let host = net.behind(&nat);
    let router = nat.router();
    for machine in [&router, &host] {
        machine.enable_ipv6();
    }
    router.run("ip", &["addr", "add", "2001:db8:21::1/64", "dev", "in", "nodad"]);
    router.run("ip", &["addr", "add", "2001:db8:99::21/64", "dev", "out", "nodad"]);
    host.run("ip", &["addr", "add", &format!("{HOST}/64"), "dev", "eth0", "nodad"]);
    host.run("ip", &["route", "add", "default", "via", "2001:db8:21::1"]);
    let external = net.add_outer_address(&nat);
    if !protocols.1 {
        // The daemon speaks PCP over IPv6 all the same.
        router.nft("table inet without_pcp { chain in { type filter hook input priority -50; udp dport 5351 drop; }; }");
    }
    let daemon = start_daemon_with(&router, external, protocols, &[]);
    let server = test_server.address.to_string();
    let mut listener = agent("listener", &host, &["listen", "--server", &server]);
    let _to_listener = listener.take_pipes();
    let opened = try_until(Instant::now() + UP, || {
        let rules = pinholes(&router);
        if rules.contains(WORD) { Ok(()) } else { Err(rules) }
    });
    assert!(opened.is_ok(), "{opened:?}\n{}\n{}", listener.printed(), daemon.0.printed());
    let by_upnp = daemon.0.printed().contains("#AddPinhole");
    assert_eq!(by_upnp, !protocols.1, "{}", daemon.0.printed());
    listener.terminate();
    let closed = try_until(Instant::now() + UP, || {
        let rules = pinholes(&router);
        if rules.contains(WORD) { Err(rules) } else { Ok(()) }
    });
    assert!(closed.is_ok(), "{closed:?}\n{}", listener.printed());
}

#[test]
fn the_firewall_of_a_router_is_opened_by_upnp_and_closed_at_the_end() {
    assert_pinholes((true, false));
}

#[test]
fn the_firewall_of_a_router_is_opened_by_pcp_and_closed_at_the_end() {
    assert_pinholes((false, true));
}

/// The signalling no longer carries the new candidate: it goes over the connection itself.
#[test]
fn a_port_that_is_mapped_after_the_calls_token_has_expired_makes_the_path_direct() {
    if !tools::have_laboratory() || !tools::have(&["miniupnpd"]) {
        return;
    }
    const TOKEN: Duration = Duration::from_secs(1);
    let net = Net::new();
    let test_server = TestServer::on_with(&net.island(10), "[signaling.times]\ntoken = 1\n");
    let nats = [21, 22].map(|octet| net.nat(NatKind::Symmetric, octet));
    let hosts = nats.each_ref().map(|nat| net.behind(nat));
    let external = net.add_outer_address(&nats[0]);
    let (server, key) = (test_server.address.to_string(), test_server.key());
    let mut listener = agent("listener", &hosts[0], &["listen", "--server", &server, "--key", &key]);
    let _to_listener = listener.take_pipes();
    let ticket =
        listener.expect("ticket", UP, |line| Some(event(line, "ticket")?["ticket"].as_str()?.to_owned()));
    let mut connector = agent("connector", &hosts[1], &["connect", &ticket]);
    let _to_connector = connector.take_pipes();
    connector.expect("relayed path", UP, |line| event(line, "path").filter(|path| path["kind"] == "relay"));

    pause_under_test(3 * TOKEN);
    let router = nats[0].router();
    let _daemon = start_daemon(&router, external, (true, true));
    // The listener looks at its network again; only a connector calls again by itself.
    hosts[0].add_inner_address("10.99.0.1/32");
    let direct = connector.expect("direct path", UP, |line| {
        event(line, "path").filter(|path| path["kind"] == "direct" && path["transport"] != "tcp")
    });
    assert!(direct["remote"].as_str().unwrap().starts_with(&format!("{external}:")), "{direct}");
}

#[test]
fn a_port_mapped_by_upnp_makes_two_symmetric_nats_direct() {
    assert_direct((true, false));
}

#[test]
fn a_port_mapped_by_pcp_makes_two_symmetric_nats_direct() {
    assert_direct((false, true));
}
