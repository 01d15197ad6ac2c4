//! Users of the HTTP hook, and users with many names.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use ginnel::stun::{Message, Method};
use serde_json::Value;

use crate::raw_turn::{RawTurnClient, by_udp};
use crate::test_server::{Lines, TestServer};
use crate::turn_client::{BlockingTurnClient, config_of, response_code};

const TIMEOUT: Duration = Duration::from_secs(20);
const PASSWORD: &str = "a user's password";
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 41, 0, 1);
const FRIEND: Ipv4Addr = Ipv4Addr::new(127, 40, 0, 1);

/// Answers look-ups: names that begin with `good` are known; those that begin with `slow` get no answer; others are unknown.
fn directory() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || while answer(&stream).is_some() {});
        }
    });
    address
}

/// Reads one question and answers it; `None` at the end of the connection.
fn answer(stream: &TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let request: Value = serde_json::from_slice(&body).unwrap();
    let user = request["user"].as_str().unwrap();
    if user.starts_with("slow") {
        // Until the server gives it up.
        let _ = reader.read(&mut [0]);
        return None;
    }
    let (status, body) = match user.starts_with("good") {
        true => ("200 OK", format!("{{\"password\": \"{PASSWORD}\"}}")),
        false => ("404 Not Found", String::new()),
    };
    let mut writer = stream;
    write!(writer, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).ok()
}

fn test_server(lines: &str) -> TestServer {
    let rest =
        format!("[limits]\nunlimited_from = []\n[auth.hook]\nurl = \"http://{}/\"\n{lines}", directory());
    let lines = Lines { top: "workers = 2", turn: &rest };
    TestServer::with(&[Ipv4Addr::LOCALHOST.into()], lines)
}

/// A client whose request is sent only once, and not waited for.
fn raw_client(user: &str, password: &str, ip: Ipv4Addr, server: SocketAddr) -> RawTurnClient {
    RawTurnClient::of((user.to_owned(), password.to_owned()), ip, server)
}

fn error_code(answer: &[u8]) -> Option<u16> {
    Message::parse(answer).unwrap().unverified().error_code()
}

#[test]
fn the_first_refusal_of_a_user_who_was_looked_up_arrives() {
    let test_server = test_server("");
    for (user, ip) in [("good", FRIEND), ("nobody", OTHER)] {
        let mut client = raw_client(user, "wrong", ip, test_server.address);
        let request = by_udp(client.begin(Method::ALLOCATE));
        let request = client.sign(request).finish();
        client.send(&request);
        let answer = (0..40).find_map(|_| client.receive());
        assert_eq!(answer.and_then(|answer| error_code(&answer)), Some(401), "{user}, one request");
    }
}

#[test]
fn random_user_names_block_no_user_of_another_network() {
    let test_server = test_server("deadline_ms = 60000\nper_network = 10");
    let mut others: Vec<_> = (0..100)
        .map(|number| raw_client(&format!("slow{number}"), "x", OTHER, test_server.address))
        .collect();
    for other in &mut others {
        let request = by_udp(other.begin(Method::ALLOCATE));
        other.send(&other.sign(request).finish());
    }
    let friend = config_of(&("good".to_owned(), PASSWORD.to_owned()));
    BlockingTurnClient::new(friend, FRIEND, test_server.address).try_allocate().unwrap();
    test_server
        .process
        .expect("line about the limit", TIMEOUT, |line| line.contains("auth.hook.per_network").then_some(()));
}

/// The credentials of `GET /ice` for the access key.
fn ice(test_server: &TestServer) -> (String, String) {
    let mut stream = TcpStream::connect(test_server.address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let (key, host) = (test_server.key(), test_server.address);
    write!(stream, "GET /ice?key={key} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let body: Value = serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap();
    let relay = &body["iceServers"][1];
    (relay["username"].as_str().unwrap().to_owned(), relay["credential"].as_str().unwrap().to_owned())
}

#[test]
fn one_access_key_has_the_share_of_one_user_under_all_its_names() {
    let here: IpAddr = Ipv4Addr::LOCALHOST.into();
    let lines = Lines { turn: "allocations_per_user = 2", ..Lines::default() };
    let test_server = TestServer::with(&[here], lines);
    let mut names: Vec<_> = (0..3).map(|_| ice(&test_server)).collect();
    let allocate = |user| {
        BlockingTurnClient::new(config_of(user), Ipv4Addr::LOCALHOST, test_server.address).try_allocate()
    };
    let codes: Vec<_> = names.iter().map(|user| response_code(allocate(user))).collect();
    assert_eq!(codes, [0, 0, 486]);
    names.dedup();
    assert_eq!(names.len(), 3);
}
