//! The two UDP ports of signalling, tested with plain sockets (S0-25 to S0-30).

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};

use crate::test_server::TestServer;

const TIMEOUT: Duration = Duration::from_secs(10);
/// How long it is listened for what must not come: longer than the first repetition takes.
const SILENCE: Duration = Duration::from_millis(1200);

/// A client's sockets (S0-28): it registers and is notified at the first (S0-29), punches and answers from the second (S0-30).
struct Client {
    main: UdpSocket,
    hole: UdpSocket,
    tag: Value,
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket
}

fn send(socket: &UdpSocket, to: SocketAddr, message: &Value) {
    socket.send_to(message.to_string().as_bytes(), to).unwrap();
}

/// The next message of that type, and from where it came.
fn receive(socket: &UdpSocket, t: i64) -> (Value, SocketAddr) {
    let mut buffer = [0; 2048];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).unwrap_or_else(|error| panic!("no {t}: {error}"));
        let message: Value = serde_json::from_slice(&buffer[..length]).unwrap();
        if message["t"] == t {
            return (message, from);
        }
    }
}

fn assert_silent(socket: &UdpSocket) {
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    let mut buffer = [0; 2048];
    let received = socket.recv_from(&mut buffer);
    assert!(
        received.is_err(),
        "{:?}",
        received.map(|(length, from)| (buffer[..length].escape_ascii().to_string(), from))
    );
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
}

impl Client {
    fn new(server: SocketAddr) -> Self {
        let (main, hole) = (socket(), socket());
        send(&main, server, &json!({"t": 1, "mid": 1}));
        let (welcome, from) = receive(&main, -1);
        assert_eq!(from, server);
        let tag = welcome["extra"]["tag"].clone();
        send(&main, server, &json!({"t": 2, "tag": tag}));
        assert_eq!(receive(&main, -2), (json!({"t": -2, "code": 200}), server));
        Self { main, hole, tag }
    }
}

#[test]
fn port_1_only_answers_and_port_2_sends_requests_and_accepts_answers() {
    let test_server =
        TestServer::on_loopback("[signaling]\nnotify_from = \"aux\"\n[signaling.times]\nquestion = 1");
    let port_1 = test_server.address;
    let port_2 = SocketAddr::new(port_1.ip(), port_1.port() + 1);
    let (a, b) = (Client::new(port_1), Client::new(port_1));
    send(&a.hole, port_1, &json!({"t": 4, "mid": 2, "params": {"tag": a.tag, "rtag": b.tag}}));
    let (calling, from) = receive(&a.hole, -4);
    assert_eq!(from, port_1);
    let token = &calling["extra"]["token"];

    let (notified, from) = receive(&b.main, 51);
    assert_eq!((from, &notified["token"], &notified["params"]["ltag"]), (port_2, token, &a.tag));
    let hole = a.hole.local_addr().unwrap();
    let notified_address = (&notified["params"]["host"], &notified["params"]["port"]);
    assert_eq!(notified_address, (&json!(hole.ip().to_string()), &json!(hole.port())));

    send(&b.hole, port_2, &json!({"t": -51, "mid": notified["mid"], "token": token, "code": 200}));
    let (answered, from) = receive(&a.hole, 52);
    assert_eq!((from, &answered["token"]), (port_2, token));
    assert_eq!(answered["extra"]["rport"], b.hole.local_addr().unwrap().port());
    send(&a.hole, port_2, &json!({"t": -52, "mid": answered["mid"], "token": token, "code": 200}));

    for client in [&a, &b] {
        let (question, from) = receive(&client.hole, 53);
        assert_eq!(from, port_2);
        let extra = json!({"punching": false});
        send(
            &client.hole,
            port_2,
            &json!({"t": -53, "mid": question["mid"], "token": token, "code": 200, "extra": extra}),
        );
    }
    assert_silent(&a.hole);
    // The callee's main socket has received only 51, and port 1 has sent no request.
    assert_silent(&b.main);
}
