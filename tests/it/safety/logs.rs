//! Logs contain no personal data unless enabled, and an unwritable log stops nothing.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::proc::{Proc, Stdout};
use crate::test_server::{PASSWORD, TestServer, USER, free_ports};
use crate::tools;
use crate::turn_client::BlockingTurnClient;

const SHORT: Duration = Duration::from_secs(10);

#[test]
fn no_address_and_no_name_appears_in_the_log() {
    if !tools::have(&["python3"]) {
        return;
    }
    let test_server = TestServer::on_loopback("");
    let mut hold = Command::new("python3");
    hold.arg(tools::client("turn.py")).args(["hold", &test_server.address.to_string(), USER, PASSWORD]);
    let hold = Proc::start("turn.py hold", hold, Stdout::Lines);
    hold.expect("allocation", SHORT, |line| (line == "held").then_some(()));
    let is_log = |line: &str| [" INFO ", " WARN ", " ERROR "].iter().any(|level| line.contains(level));
    let created = |line: &str| (is_log(line) && line.contains("allocation created")).then_some(());
    test_server.process.expect("log line of an allocation", SHORT, created);
    let lines: Vec<String> = test_server.process.lines(|line| is_log(line).then(|| line.clone()));
    for line in lines {
        assert!(!line.contains("127.0.0.1") && !line.contains(USER), "{line}");
    }
}

/// What a log may be that takes nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Log {
    FullDisk,
    EndedReader,
    Closed,
}

/// A server of this configuration whose log takes nothing.
fn serve_into(log: Log, config: &std::path::Path) -> Proc {
    let mut serve = Command::new("sh");
    let redirect = match log {
        Log::FullDisk => ">/dev/full 2>&1",
        Log::EndedReader => "",
        Log::Closed => ">&- 2>&-",
    };
    serve.args(["-c", &format!("exec \"$0\" serve --print-ice --config \"$1\" {redirect}")]);
    serve.arg(env!("CARGO_BIN_EXE_ginnel")).arg(config);
    match log {
        Log::EndedReader => Proc::start_without_reader("ginnel serve", serve),
        Log::FullDisk | Log::Closed => Proc::start("ginnel serve", serve, Stdout::Lines),
    }
}

/// The value of a counter of `/metrics`.
fn counter(server: SocketAddr, name: &str) -> u64 {
    let mut stream = TcpStream::connect(server).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let value = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("no {name}: {answer}"))
}

#[test]
fn an_unwritable_log_stops_nothing_and_is_counted() {
    for log in [Log::FullDisk, Log::EndedReader, Log::Closed] {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("ginnel.toml");
        let port = free_ports();
        let text = format!(
            "state = {:?}\nlisten = [\"127.0.0.1\"]\nport = {port}\naux_port = {}\n[tls]\nport = 0\n[turn]\nusers = {{ {USER} = \"{PASSWORD}\" }}\n",
            folder.path().join("state"),
            port + 1
        );
        std::fs::write(&config, text).unwrap();
        let mut server = serve_into(log, &config);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let deadline = Instant::now() + SHORT;
        // The TCP port is open before UDP answers; the client retries.
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline && server.ended_by(Instant::now()).is_none(), "{log:?}");
        }
        for _ in 0..3 {
            BlockingTurnClient::allocate(Ipv4Addr::LOCALHOST, address);
        }
        // Closed descriptors are opened again onto nothing, which takes everything.
        let dropped = || counter(address, "ginnel_log_lines_dropped_total");
        while log != Log::Closed && dropped() < 3 {
            assert!(Instant::now() < deadline, "{log:?}: {}", dropped());
        }
        server.signal("HUP");
        BlockingTurnClient::allocate(Ipv4Addr::LOCALHOST, address);
        assert_eq!(server.ended_by(Instant::now()), None, "{log:?}");
        server.terminate();
        server.succeed(SHORT);
    }
}

#[test]
fn unwritable_output_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    let (ginnel, agent) = (env!("CARGO_BIN_EXE_ginnel"), env!("CARGO_BIN_EXE_agent"));
    let test_server = TestServer::on_loopback("");
    let state = test_server.state().display().to_string();
    let at = test_server.address.to_string();
    let listen = [agent, "listen", "--server", &at, "--log", "trace"];
    let commands: [&[&str]; 12] = [
        &[ginnel, "--help"],
        &[ginnel, "nonsense"],
        &[ginnel, "config"],
        &[ginnel, "key", "--state", &state],
        &[ginnel, "key", "--state", "nowhere"],
        &[ginnel, "gateway", "ticket", "--state", &state],
        &[ginnel, "credentials", "--state", &state],
        &[ginnel, "load", "binding", "--server", &at, "--count", "10"],
        &[agent, "--help"],
        &[agent, "connect", "nonsense"],
        &[agent, "connect", "--log", "trace", "nonsense"],
        &listen,
    ];
    for command in commands {
        for redirect in [">/dev/full 2>&1", ">&- 2>&-"] {
            let program = format!("exec \"$0\" \"$@\" {redirect}");
            let mut sh = Command::new("timeout");
            // Listening has no end of its own.
            let limit = if command == listen { "1" } else { "10" };
            sh.args([limit, "sh", "-c", &program]).args(command).current_dir(folder.path());
            let status = sh.status().unwrap();
            assert!(
                status.code().is_some_and(|code| code != 101 && code < 128),
                "{command:?} {redirect}: {status}"
            );
        }
    }
}

#[test]
fn an_unknown_log_level_is_refused_with_a_list_of_the_levels() {
    let mut agent = Command::new(env!("CARGO_BIN_EXE_agent"));
    let output = agent.args(["connect", "--log", "verbose", "nonsense"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && stderr.contains("debug or trace"), "{stderr}");
}

/// Starts a program with a full pipe without a reader as standard error, and prints its exit code.
const STALLED: &str = r"
import fcntl, os, subprocess, sys
reader, writer = os.pipe()
os.set_blocking(writer, False)
for size in (4096, 1):
    try:
        while True: os.write(writer, b'x' * size)
    except BlockingIOError: pass
os.set_blocking(writer, True)
program = subprocess.Popen(sys.argv[1:], stderr=writer)
try: print(program.wait(20))
except subprocess.TimeoutExpired: program.kill()
";

#[test]
fn a_failed_start_exits_although_nobody_reads_its_output() {
    if !tools::have(&["python3"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut python = Command::new("python3");
    python.args(["-c", STALLED, env!("CARGO_BIN_EXE_ginnel"), "serve", "--config", "nowhere.toml"]);
    let output = python.current_dir(folder.path()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1\n");
}
