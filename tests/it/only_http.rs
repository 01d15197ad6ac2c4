//! A server behind something that passes only HTTP: the relay is reached by WebSocket.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread::spawn;
use std::time::Duration;

use serde_json::Value;

use crate::proc::{Proc, Stdout};
use crate::test_server::TestServer;

const UP: Duration = Duration::from_secs(30);

/// Passes the connections that begin with an HTTP request, and answers the others as a web server does.
fn start_front(server: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            spawn(move || pass(client, server));
        }
    });
    address
}

fn pass(mut client: TcpStream, server: SocketAddr) {
    let mut start = [0; 4];
    if client.read_exact(&mut start).is_err() {
        return;
    }
    if start != *b"GET " {
        client.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").ok();
        return;
    }
    let mut server = TcpStream::connect(server).unwrap();
    server.write_all(&start).unwrap();
    let (back, mut to_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
    spawn(move || {
        let mut back = back;
        std::io::copy(&mut back, &mut to_client).ok();
        to_client.shutdown(Shutdown::Both).ok();
    });
    std::io::copy(&mut client, &mut server).ok();
    server.shutdown(Shutdown::Both).ok();
}

#[test]
fn the_relay_is_reached_by_websocket_where_only_http_passes() {
    let test_server = TestServer::on_loopback("allow_peers = [\"127.0.0.1/32\"]");
    let (front, key) = (start_front(test_server.address).to_string(), test_server.key());
    let agent = |name: &str, arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
        command.args(arguments).args(["--server", &front, "--relay-only", "--json"]).env("AGENT_KEY", &key);
        Proc::start(name, command, Stdout::Pipe)
    };
    let mut listener = agent("listener", &["listen"]);
    let (_to_connector, from_listener) = listener.take_pipes();
    let ticket = listener.expect("ticket", UP, |line| {
        Some(serde_json::from_str::<Value>(line).ok()?["ticket"].as_str()?.to_owned())
    });
    let mut connector = agent("connector", &["connect", &ticket]);
    let (mut to_listener, _from_connector) = connector.take_pipes();
    let path: Value = connector.expect("path", UP, |line| {
        serde_json::from_str::<Value>(line).ok().filter(|event| event["t"] == "path")
    });
    assert_eq!((&path["kind"], &path["transport"]), (&"relay".into(), &"tcp".into()), "{path}");
    to_listener.write_all(b"by WebSocket\n").unwrap();
    let mut line = String::new();
    BufReader::new(from_listener).read_line(&mut line).unwrap();
    assert_eq!(line, "by WebSocket\n");
}
