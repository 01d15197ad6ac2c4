//! `agent share`, `agent forward` and `agent socks`, as processes over a running server.

use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::proc::{Proc, Stdout};
use crate::test_server::TestServer;
use crate::tools;
use crate::waiting::{pause_under_test, wait_for, wait_until};

const UP: Duration = Duration::from_secs(60);
/// Connections at a time.
const MANY: usize = 500;

fn agent(arguments: &[&str]) -> Proc {
    let mut command = Command::new(tools::binary("agent"));
    command.args(arguments);
    for variable in ["AGENT_KEY", "AGENT_CODE", "AGENT_TICKET"] {
        command.env_remove(variable);
    }
    Proc::start(arguments[0], command, Stdout::Lines)
}

/// A server, a sharing agent, and the ticket of that.
struct Share {
    server: TestServer,
    agent: Proc,
    ticket: String,
}

impl Share {
    fn start(services: &[&str]) -> Self {
        let server = TestServer::on_loopback("");
        let address = server.address.to_string();
        let agent = agent(&[&["share", "--server", &address], services].concat());
        let ticket = agent.expect("ticket", UP, |line| {
            let command = line.strip_prefix("    agent ")?;
            command.split(' ').find(|word| word.starts_with("agent:")).map(str::to_owned)
        });
        Self { server, agent, ticket }
    }

    fn forward(&self, arguments: &[&str]) -> Proc {
        agent(&[&["forward"], arguments, &[&self.ticket]].concat())
    }

    fn printed(&self, forward: &Proc) -> String {
        format!("{}\n{}\n{}", self.agent.printed(), forward.printed(), self.server.process.printed())
    }
}

/// The address at which a process forwards to `target`.
fn listening(forward: &Proc, target: &str) -> String {
    let arrow = format!(" → {target}");
    forward.expect(target, UP, |line| {
        let (at, rest) = line.strip_prefix("Listening ")?.split_once(&arrow)?;
        rest.starts_with(" · ").then(|| at.to_owned())
    })
}

fn ends_with(mut process: Proc, code: i32, mention: &str) {
    let status = process.wait(UP);
    let printed = process.printed();
    assert_eq!(status.code(), Some(code), "{printed}");
    assert!(printed.contains(mention), "no {mention:?}\n{printed}");
}

/// Answers the bytes of each connection after their end.
fn answering() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            small_thread(move || {
                let mut bytes = Vec::new();
                if stream.read_to_end(&mut bytes).is_ok() {
                    let _ = stream.write_all(&bytes);
                }
            });
        }
    });
    address
}

fn small_thread(run: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().stack_size(64 << 10).spawn(run).unwrap();
}

/// Sends a question, ends that direction, and returns the answer.
fn ask(at: &str, question: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(UP)).unwrap();
    stream.write_all(question).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap_or_else(|error| panic!("{error} after {} bytes", answer.len()));
    answer
}

/// Open descriptors and resident KiB of a process.
fn use_of(process: &Proc) -> (usize, u64) {
    let folder = format!("/proc/{}", process.id());
    let status = std::fs::read_to_string(format!("{folder}/status")).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let resident = resident.trim().split(' ').next().unwrap().parse().unwrap();
    (std::fs::read_dir(format!("{folder}/fd")).unwrap().count(), resident)
}

#[test]
fn tcp_is_forwarded_with_many_connections_at_a_time_and_each_direction_ends_on_its_own() {
    let service = answering();
    let share = Share::start(&["tcp", &service.port().to_string(), "--name", "web"]);
    let direct = format!("127.0.0.1:0:127.0.0.1:{}", service.port());
    let forward = share.forward(&["0:web", &direct]);
    let at = listening(&forward, "web");
    let question: Vec<u8> = (0..1_000_000_u32).map(|at| (at % 251) as u8).collect();
    assert!(ask(&at, &question) == question, "{}", share.printed(&forward));
    assert_eq!(ask(&listening(&forward, &service.to_string()), b"by address"), b"by address");

    let before = [use_of(&share.agent), use_of(&forward)];
    let mut clients: Vec<_> = (0..MANY)
        .map(|number| {
            let mut stream = TcpStream::connect(&at).unwrap();
            write!(stream, "client {number}").unwrap();
            stream
        })
        .collect();
    // All are open at the service at the same time.
    for process in [&share.agent, &forward] {
        wait_until(UP, "all connections are open", || use_of(process).0 >= MANY);
    }
    let idle = [use_of(&share.agent), use_of(&forward)];
    for (before, idle) in before.iter().zip(&idle) {
        let each = idle.1.saturating_sub(before.1) / MANY as u64;
        assert!(each < 64, "{each} KiB for an idle connection");
    }
    for (number, client) in clients.iter_mut().enumerate() {
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.set_read_timeout(Some(UP)).unwrap();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, format!("client {number}"));
    }
    drop(clients);
    for (process, before) in [&share.agent, &forward].iter().zip(&before) {
        wait_until(UP, "all connections are closed", || use_of(process).0 <= before.0 + 4);
    }
}

/// Opens and closes `count` connections, in every way, eight at a time.
fn churn(at: &str, count: usize) {
    std::thread::scope(|scope| {
        for worker in 0..8 {
            scope.spawn(move || {
                for number in (worker..count).step_by(8) {
                    let text = number.to_string();
                    match number % 4 {
                        0 => drop(TcpStream::connect(at).unwrap()),
                        1 => {
                            let mut stream = TcpStream::connect(at).unwrap();
                            stream.write_all(text.as_bytes()).unwrap();
                        }
                        _ => assert_eq!(ask(at, text.as_bytes()), text.as_bytes()),
                    }
                }
            });
        }
    });
}

fn assert_no_leak(count: usize) {
    let service = answering();
    let share = Share::start(&["tcp", &service.port().to_string(), "--name", "web"]);
    let forward = share.forward(&["0:web"]);
    let at = listening(&forward, "web");
    // Buffers and tables have their size after the first ones.
    churn(&at, count / 5);
    let processes = [&share.agent, &forward];
    let settled = |process: &Proc| {
        wait_for(UP, || {
            let (descriptors, resident) = use_of(process);
            if descriptors < 60 {
                Ok((descriptors, resident))
            } else {
                Err(format!("{descriptors} descriptors"))
            }
        })
    };
    let before = processes.map(settled);
    let started = Instant::now();
    churn(&at, count);
    let rate = count as f64 / started.elapsed().as_secs_f64();
    for (process, before) in processes.iter().zip(before) {
        wait_until(UP, "all descriptors are closed", || use_of(process).0 <= before.0 + 4);
        let growth = use_of(process).1.saturating_sub(before.1);
        tools::print(&format!("{count} connections, {rate:.0}/s: {before:?} {growth} KiB more"));
        assert!(growth < 12_288 + count as u64 / 4, "{growth} KiB more after {count} connections");
    }
    // A leaked stream would be missing: as many connections as are permitted can be open at a time.
    let clients: Vec<_> = (0..1000).map(|_| TcpStream::connect(&at).unwrap()).collect();
    wait_until(UP, "all connections are open", || use_of(&share.agent).0 >= 1000);
    drop(clients);
}

#[test]
fn a_thousand_short_connections_leave_nothing_behind() {
    assert_no_leak(1000);
}

#[test]
#[ignore = "long: 10 000 short forwarded connections (GINNEL_LONG_RUNS), after which both agents have the memory and descriptors of before"]
fn long_short_connections() {
    assert_no_leak(tools::switch("GINNEL_LONG_RUNS", 10_000));
}

#[test]
fn udp_and_unix_sockets_are_forwarded_with_many_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let (remote, local) = (folder.path().join("remote.sock"), folder.path().join("local.sock"));
    let listener = UnixListener::bind(&remote).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            small_thread(move || {
                let mut bytes = Vec::new();
                if stream.read_to_end(&mut bytes).is_ok() {
                    let _ = stream.write_all(&bytes);
                }
            });
        }
    });
    let echo = UdpSocket::bind("127.0.0.1:0").unwrap();
    let udp = echo.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok((length, from)) = echo.recv_from(&mut buffer) {
            let _ = echo.send_to(&buffer[..length], from);
        }
    });
    let share =
        Share::start(&["udp", &udp, "unix", remote.to_str().unwrap(), "--name", "dns", "--name", "db"]);
    let to_db = format!("{}:db", local.display());
    let forward = share.forward(&["0:dns/udp", &to_db]);
    listening(&forward, "db");

    let mut clients: Vec<_> = (0..MANY).map(|_| UnixStream::connect(&local).unwrap()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        write!(client, "client {number}").unwrap();
    }
    wait_until(UP, "all connections are open", || use_of(&share.agent).0 >= MANY);
    for (number, client) in clients.iter_mut().enumerate() {
        client.set_read_timeout(Some(UP)).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, format!("client {number}"));
    }

    let at = listening(&forward, "dns");
    let mut buffer = vec![0; 65_536];
    let sources: Vec<_> = (0..MANY).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    // Few at a time: the buffer of the local socket holds some hundred datagrams. All flows stay open.
    for (wave, sources) in sources.chunks(50).enumerate() {
        let text = |number: usize| format!("source {wave} {number}");
        for (number, socket) in sources.iter().enumerate() {
            socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            socket.connect(&at).unwrap();
            socket.send(text(number).as_bytes()).unwrap();
        }
        for (number, socket) in sources.iter().enumerate() {
            // As users of UDP do, it sends again.
            let length = wait_for(UP, || match socket.recv(&mut buffer) {
                Ok(length) => Ok(length),
                Err(error) => {
                    socket.send(text(number).as_bytes()).unwrap();
                    Err(format!("{error}\n{}", share.printed(&forward)))
                }
            });
            assert_eq!(&buffer[..length], text(number).as_bytes());
        }
    }
    wait_until(UP, "all flows are open", || use_of(&share.agent).0 >= MANY);
    // One of WireGuard's, and one that needs many packets.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(UP)).unwrap();
    socket.connect(&at).unwrap();
    for length in [1452, 20_000] {
        let sent = vec![7; length];
        socket.send(&sent).unwrap();
        let received = socket.recv(&mut buffer).unwrap();
        assert!(buffer[..received] == sent, "{received} of {length} bytes");
    }
    forward.terminate();
    ends_with(forward, 130, "Closed ");
    assert!(!local.exists(), "the socket file is removed");
}

#[test]
fn a_reverse_forwarding_listens_at_the_other_side_if_that_permits_it() {
    let service = answering();
    let forbidding = Share::start(&["tcp", "9"]);
    let reverse = format!("0:{service}");
    ends_with(forbidding.forward(&["-R", &reverse]), 4, "--allow-reverse");
    let share = Share::start(&["--allow-reverse"]);
    let forward = share.forward(&["-R", &reverse]);
    let at = forward.expect("port there", UP, |line| {
        line.strip_prefix("Listening ")?.split_once(" there → ").map(|(at, _)| at.to_owned())
    });
    share.agent.expect("port", UP, |line| line.contains(&format!("listens at {at} here")).then_some(()));
    assert_eq!(ask(&at, b"backwards"), b"backwards");
    forward.terminate();
    ends_with(forward, 130, "Closed ");
    wait_until(UP, "the port there is closed", || TcpStream::connect(&at).is_err());
}

/// Answers each HTTP request with this text.
fn http(text: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            small_thread(move || {
                let mut request = [0; 2048];
                if stream.read(&mut request).is_ok_and(|length| length > 0) {
                    let length = text.len();
                    let _ = write!(
                        stream,
                        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}"
                    );
                }
            });
        }
    });
    address
}

fn socks(share: &Share) -> (Proc, String) {
    let socks = agent(&["socks", "0", &share.ticket]);
    let at = listening(&socks, "SOCKS 5 from the other side");
    (socks, at)
}

#[test]
fn curl_reaches_the_network_of_the_other_side_and_only_what_it_permits() {
    if !tools::happens_to_have(&["curl"]) {
        return;
    }
    let (service, other) = (http("hello through socks"), http("not shared"));
    let share = Share::start(&["tcp", &service.port().to_string(), "any"]);
    let (socks, at) = socks(&share);
    let curl = |port: u16| {
        let url = format!("http://localhost:{port}/");
        Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "30", "--socks5-hostname", &at, &url])
            .output()
            .unwrap()
    };
    let got = curl(service.port());
    assert_eq!(
        String::from_utf8_lossy(&got.stdout),
        "hello through socks",
        "{got:?}\n{}",
        share.printed(&socks)
    );
    // Loopback was not shared, apart from one port.
    let refused = curl(other.port());
    assert!(!refused.status.success() && refused.stdout.is_empty(), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("(2)"), "not allowed: {refused:?}");
    socks.expect("reason", UP, |line| line.contains("is not a public address").then_some(()));
}

#[test]
fn chromium_loads_a_page_through_socks() {
    if !tools::have(&["chromium"]) {
        return;
    }
    let service = http("<p>hello through socks</p>");
    let share = Share::start(&["any", "--allow-net", "127.0.0.0/8"]);
    let (socks, at) = socks(&share);
    let profile = tempfile::tempdir().unwrap();
    let mut chromium = Command::new("chromium");
    chromium
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("--proxy-server=socks5://{at}"))
        .args(["--proxy-bypass-list=<-loopback>", "--dump-dom"])
        .arg(format!("http://localhost:{}/", service.port()))
        .env("HOME", profile.path());
    let mut chromium = Proc::start("chromium", chromium, Stdout::Lines);
    let status = chromium.wait(UP);
    let printed = chromium.printed();
    assert!(
        status.success() && printed.contains("hello through socks"),
        "{printed}\n{}",
        share.printed(&socks)
    );
}

#[test]
fn failures_of_forwarding_print_the_next_command_and_have_their_exit_codes() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    // Before anything is connected: there is no such ticket.
    ends_with(agent(&["forward", &format!("{port}:ssh"), "agent:nonsense"]), 1, "another port");
    ends_with(agent(&["socks", &port.to_string(), "agent:nonsense"]), 1, "another port");
    for (arguments, mention) in [
        (&["forward", "agent:x"][..], "agent forward [BIND:]PORT:TARGET"),
        (&["forward", "70000:ssh", "agent:x"], "\"70000:ssh\" is no forwarding"),
        (&["forward", "22:a b", "agent:x"], "agent forward [BIND:]PORT:TARGET"),
        (&["forward", "-R", "8080", "agent:x"], "agent forward -R [BIND:]PORT:HOST:PORT"),
        (&["forward", "0:ssh", "agent:nonsense"], "error: this is not a valid ticket"),
        (&["socks", "host", "agent:x"], "agent socks [BIND:]PORT"),
        (&["share", "--server", "h"], "agent share tcp PORT"),
        (&["share", "tcp", "--server", "h"], "error: tcp is followed by no service"),
        (&["share", "sctp", "22", "--server", "h"], "agent share tcp PORT"),
        (&["share", "tcp", "22", "--name", "a b", "--server", "h"], "error: \"a b\" is no name of a service"),
        (&["share", "tcp", "22"], "no server given"),
        (&["share", "unix", "relative", "--server", "h"], "agent share unix /ABSOLUTE/PATH"),
        (
            &["share", "tcp", "22", "--allow-net", "10.0.0.0/8", "--server", "h"],
            "agent share any --allow-net",
        ),
    ] {
        ends_with(agent(arguments), 2, mention);
    }
    let share = Share::start(&["tcp", &port.to_string(), "udp", "9", "--name", "ssh", "--name", "dns"]);
    ends_with(share.forward(&["0:sh"]), 4, "no service has this name; shared: ssh, dns");
    ends_with(share.forward(&["0:dns"]), 2, "agent forward PORT:NAME/udp");
    ends_with(share.forward(&["0:ssh/udp"]), 2, "without /udp");
    ends_with(share.forward(&["0:127.0.0.1:1"]), 4, "tcp 127.0.0.1:1 is not shared");
    ends_with(share.forward(&["0:/run/x.sock"]), 4, "agent share tcp HOST:PORT");
    share.agent.expect("refusal", UP, |line| line.starts_with("Refused  1: sh: ").then_some(()));

    // A service that is not there: the local connection is reset, and both sides say why.
    let forward = share.forward(&["0:ssh"]);
    let at = listening(&forward, "ssh");
    drop(taken);
    let mut client = TcpStream::connect(&at).unwrap();
    client.set_read_timeout(Some(UP)).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    forward.expect("reason", UP, |line| (line == "Refused  ssh: nothing listens there").then_some(()));

    // The other side ends: so does this one.
    share.agent.terminate();
    ends_with(share.agent, 130, "Left     ");
    ends_with(forward, 7, "it is not shared any more");
}

#[test]
fn a_share_has_a_number_of_guests_and_a_time() {
    let service = answering();
    let port = service.port().to_string();
    let mut share = Share::start(&["tcp", &port, "--name", "web", "--guests", "1", "--for", "10s"]);
    let first = share.forward(&["0:web"]);
    assert_eq!(ask(&listening(&first, "web"), b"one"), b"one");
    ends_with(share.forward(&["0:web"]), 7, "too many guests");
    share.agent.succeed(UP);
    ends_with(first, 7, "the time for which it was shared is over");
}

#[test]
fn every_line_of_json_is_an_event_with_a_version() {
    let service = answering();
    let server = TestServer::on_loopback("");
    let share = agent(&[
        "share",
        "tcp",
        &service.port().to_string(),
        "--json",
        "--server",
        &server.address.to_string(),
    ]);
    let event = |process: &Proc, t: &str| {
        process.expect(t, UP, |line| {
            let event: Value = serde_json::from_str(line).ok()?;
            (event["t"] == t).then_some(event)
        })
    };
    let ticket = event(&share, "ticket")["ticket"].as_str().unwrap().to_owned();
    let forward = agent(&["forward", &format!("0:{}", service.port()), &ticket, "--json"]);
    let at = event(&forward, "listening")["at"].as_str().unwrap().to_owned();
    assert_eq!(ask(&at, b"json"), b"json");
    event(&share, "guest");
    forward.terminate();
    event(&forward, "closed");
    let left = event(&share, "guest_left");
    assert_eq!(
        (&left["bytes_in"], &left["bytes_out"], &left["connections"]),
        (&4.into(), &4.into(), &1.into())
    );
    let mut kinds = String::new();
    for process in [&share, &forward] {
        for line in process.lines(|line| Some(line.clone())) {
            let event: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {line}"));
            assert_eq!(event["v"], 1, "{line}");
            write!(kinds, "{} ", event["t"]).unwrap();
        }
    }
    assert!(kinds.contains("sharing") && kinds.contains("path"), "{kinds}");
}

#[test]
#[ignore = "long: the other side is silent for longer than QUIC waits; the forwarding goes on when it is back"]
fn long_forwarding_returns_after_a_loss() {
    let service = answering();
    let share = Share::start(&["tcp", &service.port().to_string(), "--name", "web"]);
    let forward = share.forward(&["0:web"]);
    let at = listening(&forward, "web");
    let mut old = TcpStream::connect(&at).unwrap();
    old.write_all(b"old").unwrap();
    share.agent.signal("STOP");
    forward.expect("loss", Duration::from_secs(150), |line| line.starts_with("Lost     ").then_some(()));
    old.set_read_timeout(Some(UP)).unwrap();
    assert_eq!(old.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    pause_under_test(Duration::from_secs(5));
    share.agent.signal("CONT");
    forward.expect("return", Duration::from_secs(60), |line| line.starts_with("Back     ").then_some(()));
    assert_eq!(ask(&at, b"new"), b"new", "{}", share.printed(&forward));
}
