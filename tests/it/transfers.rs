//! Many short transfers through a NAT that loses packets: each ends with 0 on both sides.

use std::io::{Read, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::{Host, NatKind, Net};
use crate::proc::{Proc, Stdout};
use crate::test_server::TestServer;
use crate::tools;

const UP: Duration = Duration::from_secs(60);
/// Percent of the UDP packets in each direction.
const LOSS: u8 = 10;
const SENT: [usize; 2] = [30_000, 300];
/// Internets at the same time.
const AT_ONCE: usize = 4;

fn agent(name: &str, host: &Host, arguments: &[&str], key: &str) -> Proc {
    let mut command = host.command(env!("CARGO_BIN_EXE_agent"));
    command.args(arguments).arg("--json").env("AGENT_KEY", key).env_remove("AGENT_CODE");
    Proc::start(name, command, Stdout::Pipe)
}

/// Sends from the connector to the listener and an answer back. Returns what went wrong.
fn transfer(server: &TestServer, [listening, connecting]: [&Host; 2], option: &str) -> Option<String> {
    let (address, key) = (server.address.to_string(), server.key());
    let mut listener = agent("listener", listening, &["listen", option, "--server", &address], &key);
    let (mut to_connector, mut from_connector) = listener.take_pipes();
    let ticket = listener.wait_for(UP, |line| {
        let event: Value = serde_json::from_str(line).ok()?;
        Some(event["ticket"].as_str()?.to_owned())
    });
    let Some(ticket) = ticket else { return Some(format!("no ticket\n{}", listener.printed())) };
    let mut connector = agent("connector", connecting, &["connect", &ticket, option], &key);
    let (mut to_listener, mut from_listener) = connector.take_pipes();
    let receiving = std::thread::spawn(move || {
        let mut request = Vec::new();
        let _ = from_connector.read_to_end(&mut request);
        let _ = to_connector.write_all(&vec![b'a'; SENT[1]]);
        request.len()
    });
    let _ = to_listener.write_all(&vec![b'r'; SENT[0]]);
    drop(to_listener);
    let mut answer = Vec::new();
    let _ = from_listener.read_to_end(&mut answer);
    let deadline = Instant::now() + UP;
    let statuses =
        [&mut listener, &mut connector].map(|side| side.ended_by(deadline).and_then(|status| status.code()));
    let moved = [receiving.join().unwrap(), answer.len()];
    (statuses != [Some(0); 2] || moved != SENT)
        .then(|| format!("{statuses:?}, {moved:?} bytes\n{}\n{}", listener.printed(), connector.printed()))
}

/// Transfers until `next` has reached `runs`; every second one is relayed.
fn transfer_many(next: &AtomicUsize, runs: usize, failures: &Mutex<Vec<String>>) {
    let net = Net::new();
    let server_host = net.public(10);
    let (near, far) = (net.nat(NatKind::PortRestricted, 21), net.nat(NatKind::PortRestricted, 22));
    near.lose(LOSS);
    let hosts = [net.behind(&near), net.behind(&far)];
    let server = TestServer::on(&server_host);
    loop {
        let run = next.fetch_add(1, Ordering::Relaxed);
        if run >= runs {
            return;
        }
        let option = if run.is_multiple_of(2) { "--no-relay" } else { "--relay-only" };
        if let Some(failure) = transfer(&server, [&hosts[run / 2 % 2], &hosts[1 - run / 2 % 2]], option) {
            tools::print(&format!("{run}, {option}: {failure}"));
            failures.lock().unwrap().push(failure);
        }
        if run % 50 == 49 {
            tools::print(&format!("{}: {} failures", run + 1, failures.lock().unwrap().len()));
        }
    }
}

#[test]
#[ignore = "long: 500 transfers through a NAT that loses one packet in ten, direct and relayed; both sides end with 0"]
fn long_transfers() {
    if !tools::have_laboratory() {
        return;
    }
    let (runs, next, failures) =
        (tools::switch("GINNEL_LONG_RUNS", 500), AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| transfer_many(&next, runs, &failures));
        }
    });
    let failed = failures.lock().unwrap().len();
    assert_eq!(failed, 0, "of {runs}");
}
