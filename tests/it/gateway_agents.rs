//! `agent share` and `agent connect --gateway` on the command line, and the gateway client library, with a running gateway.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use ginnel::gateway::client::{
    ClientBuilder, ConnectError, DialError, Endpoint, Key, Raw, ServerBuilder, Settings, Tls,
};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::authority::Authority;
use crate::proc::{Proc, Stdout};
use crate::test_server::{Lines, TestServer, free_ports};
use crate::waiting::pause_under_test;

const UP: Duration = Duration::from_secs(30);

/// A service that answers, after its client's last byte, how many there were and what they sum up to.
fn service() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                if stream.read_to_end(&mut bytes).is_ok() {
                    let _ = stream.write_all(answer(&bytes).as_bytes());
                }
            });
        }
    });
    address
}

fn answer(bytes: &[u8]) -> String {
    format!("{} {}", bytes.len(), bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>())
}

fn test_server(rest: &str) -> TestServer {
    let ports = free_ports();
    TestServer::on_loopback(&format!("[gateway]\nserver_port = {ports}\nhmac_port = {}\n{rest}", ports + 1))
}

fn agent(arguments: &[&str], key: Option<&str>, stdout: Stdout) -> Proc {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
    command
        .args(arguments)
        .env_remove("AGENT_KEY")
        .env_remove("AGENT_CODE")
        .env_remove("AGENT_TICKET")
        .env_remove("AGENT_GATEWAY_TOKEN");
    if let Some(key) = key {
        command.env("AGENT_KEY", key);
    }
    Proc::start(arguments[0], command, stdout)
}

/// Shares the service under 7 and waits until it is registered.
fn share(gateway: &str, to: SocketAddr, transport: &str, key: &str) -> Proc {
    let to = to.to_string();
    let arguments = ["share", "--gateway", gateway, "--id", "7", "--to", &to, "--transport", transport];
    let share = agent(&arguments, Some(key), Stdout::Lines);
    share.expect("start", UP, |line| line.starts_with("Sharing  ").then_some(()));
    share
}

/// What comes back from 7 for these bytes on standard input.
fn request(arguments: &[&str], bytes: &[u8], processes: &[&Proc]) -> String {
    let mut connect = agent(&[&["connect"], arguments].concat(), None, Stdout::Pipe);
    let (mut stdin, mut stdout) = connect.take_pipes();
    stdin.write_all(bytes).unwrap();
    drop(stdin);
    let mut answer = String::new();
    stdout.read_to_string(&mut answer).unwrap();
    let status = connect.wait(UP);
    let printed: Vec<_> = processes.iter().map(|side| side.printed()).collect();
    assert!(status.success(), "{status}\n{}\n{}", connect.printed(), printed.join("\n"));
    answer
}

#[test]
fn a_service_is_reached_by_its_id_over_every_transport() {
    let test_server = test_server("");
    let service = service();
    let key = test_server.output_of(&["key", "--gateway"]);
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
    let metrics = test_server.address.port();
    for (transport, gateway) in
        [("web", test_server.address), ("hmac", ports(&test_server).1), ("md5", ports(&test_server).0)]
    {
        let share = share(&gateway.to_string(), service, transport, &key);
        for gateway in [test_server.address.to_string(), format!("ws://127.0.0.1:{metrics}")] {
            let got = request(&["--gateway", &gateway, "--id", "7"], &bytes, &[&share, &test_server.process]);
            assert_eq!(got, answer(&bytes), "{transport} {gateway}");
        }
        let closed = format!(": {} B out, {} B in", answer(&bytes).len(), bytes.len());
        share.expect("end of a visit", UP, |line| line.ends_with(&closed).then_some(()));
    }
}

/// The ports for servers, MD5 and HMAC, as the configuration of [`test_server`] has them.
fn ports(test_server: &TestServer) -> (SocketAddr, SocketAddr) {
    let config = std::fs::read_to_string(test_server.state().with_file_name("ginnel.toml")).unwrap();
    let port = |name: &str| {
        let line = config.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
        SocketAddr::new(test_server.address.ip(), line.unwrap().parse().unwrap())
    };
    (port("server_port"), port("hmac_port"))
}

#[test]
fn local_connections_run_in_parallel_and_a_service_survives_a_gateway_restart() {
    let mut test_server = test_server("");
    let key = test_server.output_of(&["key", "--gateway"]);
    let gateway = test_server.address.to_string();
    let share = share(&gateway, service(), "web", &key);
    let listen = ["connect", "--gateway", &gateway, "--id", "7", "--listen", "127.0.0.1:0", "--json"];
    let connect = agent(&listen, None, Stdout::Lines);
    let at = connect.expect("local address", UP, |line| {
        let event: Value = serde_json::from_str(line).ok()?;
        event["at"].as_str()?.parse::<SocketAddr>().ok()
    });
    let exchange = |bytes: &[u8]| -> std::io::Result<String> {
        let mut stream = TcpStream::connect(at)?;
        stream.set_read_timeout(Some(UP))?;
        stream.write_all(bytes)?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    };
    // More than a gateway client may have, and a silent one.
    let idle = TcpStream::connect(at).unwrap();
    std::thread::scope(|scope| {
        for number in 0..12_u8 {
            let exchange = &exchange;
            scope.spawn(move || {
                let bytes = vec![number; 200_000];
                assert_eq!(exchange(&bytes).unwrap(), answer(&bytes));
            });
        }
    });
    drop(idle);
    test_server.restart();
    share.expect("return", UP, |line| line.starts_with("Back     ").then_some(()));
    assert_eq!(exchange(b"again").unwrap(), answer(b"again"), "{}", connect.printed());
    for mut side in [share, connect] {
        side.terminate();
        assert_eq!(side.wait(UP).code(), Some(130), "{}", side.printed());
    }
}

/// The gateway's and the endpoint's usual time limits for receivers do not apply.
#[test]
fn a_late_reader_receives_everything() {
    const MUCH: usize = 20_000_000;
    let test_server = test_server("[gateway.times]\npause = 0.3");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let service = listener.local_addr().unwrap();
    std::thread::spawn(move || listener.accept().unwrap().0.write_all(&vec![9; MUCH]));
    let share = share(
        &test_server.address.to_string(),
        service,
        "web",
        &test_server.output_of(&["key", "--gateway"]),
    );
    let arguments = ["connect", "--gateway", &test_server.address.to_string(), "--id", "7"];
    let mut connect = agent(&arguments, None, Stdout::Pipe);
    let (stdin, mut stdout) = connect.take_pipes();
    connect.expect("connection", UP, |line| line.starts_with("Found    ").then_some(()));
    pause_under_test(Duration::from_secs(2));
    drop(stdin);
    let mut bytes = Vec::new();
    stdout.read_to_end(&mut bytes).unwrap();
    assert!(bytes == vec![9; MUCH], "{} bytes\n{}\n{}", bytes.len(), connect.printed(), share.printed());
    connect.succeed(UP);
}

#[test]
fn failures_print_the_next_command_and_have_their_exit_codes() {
    let test_server = test_server("require_token = true");
    let gateway = test_server.address.to_string();
    let access = test_server.key();
    let token = test_server.output_of(&["gateway", "token", "--server", "8"]);
    let hmac = ports(&test_server).1.to_string();
    let share = ["share", "--gateway", &gateway, "--to", "22", "--id"];
    let connect = ["connect", "--gateway", &gateway, "--id"];
    let table: [(Vec<&str>, Option<&str>, i32, &str); 10] = [
        ([&share[..], &["7"]].concat(), None, 2, "ginnel key --gateway"),
        ([&share[..], &["7"]].concat(), Some(&access), 4, "2147483648"),
        (
            vec!["share", "--gateway", &hmac, "--transport", "hmac", "--to", "22", "--id", "7"],
            Some(&access),
            4,
            "--key-file",
        ),
        (vec!["connect", "--gateway", "127.0.0.1:1", "--id", "7"], None, 5, "[gateway] enabled"),
        ([&connect[..], &["7", "--gateway-token", "agent:x"]].concat(), None, 2, "gt_"),
        ([&connect[..], &["7"]].concat(), None, 4, "ginnel gateway token"),
        ([&connect[..], &["8", "--gateway-token", &token]].concat(), None, 3, "agent share --id"),
        ([&connect[..], &["7", "--gateway-token", &token]].concat(), None, 3, "agent share --id"),
        ([&connect[..], &["8", "--ticket", &token]].concat(), None, 2, "--gateway-token gt_"),
        (vec!["serve", "--gateway", &gateway, "--id", "7"], None, 2, "--to"),
    ];
    for (arguments, key, code, hint) in table {
        let mut run = agent(&arguments, key, Stdout::Lines);
        let status = run.wait(UP);
        assert_eq!(status.code(), Some(code), "{arguments:?}\n{}", run.printed());
        assert!(run.printed().contains(hint), "{arguments:?}\n{}", run.printed());
    }
    let mut json =
        agent(&[&connect[..], &["8", "--json", "--gateway-token", &token]].concat(), None, Stdout::Lines);
    assert_eq!(json.wait(UP).code(), Some(3));
    let event: Value = json.expect("event", UP, |line| serde_json::from_str(line).ok());
    assert_eq!((&event["t"], &event["code"]), (&"error".into(), &"offline".into()));
}

/// The gateway requires a certificate for the server's id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_library_server_presents_a_client_certificate_over_mtls() {
    let (authority, servers) = (Authority::new(), Authority::naming(&["server-7"]));
    let port = free_ports();
    let lines = format!("[gateway]\ntls_port = {port}\nclient_ca = {:?}", servers.root());
    let test_server = TestServer::with_tls(Lines { turn: &lines, ..Lines::default() }, Some(&authority));
    let read = |path| std::fs::read(path).unwrap();
    let key = Key::new(test_server.output_of(&["key", "--gateway"])).unwrap();
    let trusting = Tls::system().roots(read(authority.root()));
    let identity = trusting.clone().identity(read(servers.certificate()), read(servers.key()));
    let server = |id, tls: &Tls| {
        ServerBuilder::md5(format!("tls://localhost:{port}"), id, key.clone()).tls(tls.clone())
    };
    tokio::spawn(echo(server(7, &identity).connect().await.unwrap()));
    let client = ClientBuilder::new(test_server.address.to_string()).connect().await.unwrap();
    let mut connection = client.dial(7).await.unwrap();
    connection.send(Bytes::from("Hello")).await.unwrap();
    assert_eq!(connection.receive().await.unwrap().unwrap(), "Hello");
    let nobody = server(7, &trusting).connect().await;
    assert!(matches!(nobody, Err(ConnectError::Tls(_) | ConnectError::Refused)), "{nobody:?}");
    let other = server(8, &identity).connect().await;
    assert!(matches!(other, Err(ConnectError::Refused)), "{other:?}");
}

fn quick() -> Settings {
    let quick = Duration::from_millis(20);
    Settings { reconnect: Some((quick, quick)), ..Settings::default() }
}

async fn echo(server: Endpoint<Raw>) {
    while let Ok(mut connection) = server.accept().await {
        tokio::spawn(async move {
            while let Ok(Some(message)) = connection.receive().await {
                if connection.send(message).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Over TLS, as a WebSocket and as plain TCP.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_library_uses_tls_and_trusts_only_the_configured_roots() {
    let authority = Authority::new();
    let test_server = TestServer::with_tls(Lines::default(), Some(&authority));
    let key = Key::new(test_server.output_of(&["key", "--gateway"])).unwrap();
    let tls = Tls::system().roots(std::fs::read(authority.root()).unwrap());
    let server = ServerBuilder::hmac(format!("wss://{}", test_server.tls), 7, key).tls(tls.clone());
    tokio::spawn(echo(server.connect().await.unwrap()));
    for way in ["wss", "tls"] {
        let client = ClientBuilder::new(format!("{way}://{}", test_server.tls)).settings(quick());
        let untrusted =
            client.clone().tls(Tls::system().roots(std::fs::read(Authority::new().root()).unwrap()));
        assert!(matches!(untrusted.connect().await, Err(ConnectError::Tls(_))), "{way}");
        let client = client.tls(tls.clone()).connect().await.unwrap();
        let mut connection = client.dial(7).await.unwrap();
        for message in [Bytes::from("Hello"), Bytes::new(), vec![7; connection.max_message()].into()] {
            connection.send(message.clone()).await.unwrap();
            assert_eq!(connection.receive().await.unwrap(), Some(message), "{way}");
        }
        assert!(matches!(client.dial(8).await, Err(DialError::Refused(8))));
    }
}

/// Each of the two ends writes more than any queue holds before it reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_carry_bulk_data_both_ways_between_a_server_with_credit_and_a_client_without() {
    const MUCH: usize = 20_000_000;
    let test_server = test_server("");
    let key = Key::new(test_server.output_of(&["key", "--gateway"])).unwrap();
    let server = ServerBuilder::hmac(ports(&test_server).1.to_string(), 7, key).connect().await.unwrap();
    let client = ClientBuilder::new(test_server.address.to_string()).connect().await.unwrap();
    let (there, here) = (client.dial(7).await.unwrap(), server.accept().await.unwrap());
    let mut tasks = tokio::task::JoinSet::new();
    for stream in [there.into_stream(), here.into_stream()] {
        tasks.spawn(async move {
            let (mut read, mut write) = tokio::io::split(stream);
            let sent: Vec<u8> = (0..MUCH).map(|at| (at % 253) as u8).collect();
            let mut received = Vec::new();
            let writing = async {
                write.write_all(&sent).await?;
                write.shutdown().await
            };
            tokio::try_join!(writing, read.read_to_end(&mut received)).unwrap();
            assert!(received == sent, "{} bytes", received.len());
        });
    }
    tasks.join_all().await;
}
