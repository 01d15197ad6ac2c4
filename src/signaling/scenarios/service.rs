//! The service on loopback: real sockets, real WebSockets, and the Python client in `tests/clients/`.

use super::config;
use crate::net::udp::{BatchUdpSocket, Role, RxBuffers};
use crate::signaling::{
    AccessKey, Config, Handle, Jwt, JwtKey, Limits, Origins, Rate, ServerPort, Service, Sockets, Times, start,
};
use axum::extract::ConnectInfo;
use futures_util::{SinkExt, StreamExt};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use mio::{Interest, Token, unix::SourceFd};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Signalling with its two UDP ports and HTTP, on loopback.
struct TestService {
    service: Service,
    main: SocketAddr,
    http: SocketAddr,
    stopped: Arc<AtomicBool>,
}

impl TestService {
    async fn open(config: Config) -> Self {
        let [main, aux] = [(); 2].map(|()| BatchUdpSocket::bind(ANY, Role::Single).unwrap());
        let sockets = Sockets { main: vec![main.try_clone().unwrap()], aux: vec![aux.try_clone().unwrap()] };
        let service = start(config, sockets, [1; 32]);
        let stopped = Arc::new(AtomicBool::new(false));
        let (at, handle, stop) = (main.local_addr(), service.handle(), Arc::clone(&stopped));
        std::thread::spawn(move || {
            forward_datagrams([(ServerPort::Main, main), (ServerPort::Aux, aux)], &handle, &stop)
        });
        let listener = TcpListener::bind(ANY).await.unwrap();
        let http = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, service.handle()));
        Self { service, main: at, http, stopped }
    }

    async fn websocket(&self) -> Socket {
        connect_async(format!("ws://{}/ws", self.http)).await.unwrap().0
    }

    async fn get(&self, path: &str, header: &str) -> (String, Value) {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{header}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        (head.to_ascii_lowercase(), serde_json::from_str(body).unwrap())
    }

    async fn close(self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.service.shutdown().await;
    }
}

/// Passes datagrams to signalling, as the workers of the data plane do.
fn forward_datagrams(ports: [(ServerPort, BatchUdpSocket); 2], handle: &Handle, stopped: &AtomicBool) {
    let (mut poll, mut rx_buffers) = (mio::Poll::new().unwrap(), RxBuffers::default());
    for (index, (_, socket)) in ports.iter().enumerate() {
        poll.registry()
            .register(&mut SourceFd(&socket.as_raw_fd()), Token(index), Interest::READABLE)
            .unwrap();
    }
    while !stopped.load(Ordering::Relaxed) {
        poll.poll(&mut mio::Events::with_capacity(2), Some(Duration::from_millis(100))).unwrap();
        for (kind, socket) in &ports {
            while let Ok(batch) = socket.recv(&mut rx_buffers) {
                for datagram in rx_buffers.datagrams(batch) {
                    let _ = handle.send_datagram(
                        *kind,
                        datagram.from,
                        datagram.local_ip,
                        datagram.payload.as_bytes(),
                    );
                }
                rx_buffers.clear();
            }
        }
    }
}

async fn serve(listener: TcpListener, handle: Handle) {
    while let Ok((stream, peer)) = listener.accept().await {
        let router = handle.router().layer(axum::Extension(ConnectInfo(peer)));
        let service = TowerToHyperService::new(router);
        let http = hyper::server::conn::http1::Builder::new();
        tokio::spawn(http.serve_connection(TokioIo::new(stream), service).with_upgrades());
    }
}

async fn send(socket: &mut Socket, message: &Value) {
    socket.send(Message::Text(message.to_string().into())).await.unwrap();
}

async fn receive(socket: &mut Socket) -> Value {
    loop {
        match socket.next().await.unwrap().unwrap() {
            Message::Text(text) => return serde_json::from_str(&text).unwrap(),
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Reads to the end; returns whether the server has sent a Close frame.
async fn is_closed(socket: &mut Socket) -> bool {
    while let Some(Ok(message)) = socket.next().await {
        if matches!(message, Message::Close(_)) {
            return true;
        }
    }
    false
}

#[tokio::test]
async fn a_udp_client_calls_a_websocket_client_through_real_sockets() {
    let server = TestService::open(config()).await;
    let mut web = server.websocket().await;
    send(&mut web, &json!({"t": 1, "mid": 1})).await;
    let callee = receive(&mut web).await["extra"]["tag"].clone();
    let main = server.main;
    let exchange = tokio::task::spawn_blocking(move || {
        let socket = UdpSocket::bind(ANY).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let ask = |message: Value| {
            socket.send_to(message.to_string().as_bytes(), main).unwrap();
            let mut buffer = [0; 2000];
            let (len, _) = socket.recv_from(&mut buffer).unwrap();
            super::parsed(&buffer[..len])
        };
        let tag = ask(json!({"t": 1, "mid": 1}))["extra"]["tag"].clone();
        let call = json!({"t": 4, "mid": 2, "params": {"tag": tag, "rtag": callee}});
        (ask(call), socket.local_addr().unwrap())
    });
    let (answer, caller) = exchange.await.unwrap();
    let notified = receive(&mut web).await;
    assert_eq!(notified["token"], answer["extra"]["token"]);
    assert_eq!(notified["params"]["port"], caller.port());
    server.close().await;
    assert!(is_closed(&mut web).await);
}

#[tokio::test]
async fn ice_servers_require_a_key() {
    let server = TestService::open(config()).await;
    let (head, body) = server.get("/ice?key=the%20key", "").await;
    assert!(head.starts_with("http/1.1 200") && head.contains("cache-control: no-store"), "{head}");
    assert!(head.contains("access-control-allow-origin: *"));
    assert_eq!(body["iceServers"][1]["urls"], json!(["turn:192.0.2.1:3478"]));
    let (head, bearer) = server.get("/ice", "Authorization: Bearer the key\r\n").await;
    assert!(head.starts_with("http/1.1 200"));
    assert_ne!(bearer["iceServers"][1]["username"], body["iceServers"][1]["username"]);
    let (head, body) = server.get("/ice", "").await;
    assert!(head.starts_with("http/1.1 401") && head.contains("www-authenticate: bearer"));
    assert!(body["error"].is_string());
    let (head, body) = server.get("/ice?key=wrong", "").await;
    assert!(head.starts_with("http/1.1 403") && body["error"].is_string());
    server.close().await;
}

#[tokio::test]
async fn credentials_of_one_key_share_one_account_and_are_rate_limited() {
    let limits = Limits {
        ice_per_key: Rate::new(0.001, 2.0),
        ice_per_network: Rate::new(0.001, 6.0),
        ..Limits::default()
    };
    let access_keys = vec![AccessKey::new("one"), AccessKey::new("two")];
    let server = TestService::open(Config { access_keys, limits, ..config() }).await;
    let ask = async |key: &str| {
        let (head, body) = server.get(&format!("/ice?key={key}"), "").await;
        let user = body["iceServers"][1]["username"]
            .as_str()
            .map(|user| user.rsplit_once('+').unwrap().1.to_owned());
        (head, user)
    };
    let (first, second, other) = (ask("one").await.1, ask("one").await.1, ask("two").await.1);
    assert!(first.is_some() && first == second && first != other);
    let (head, user) = ask("one").await;
    assert!(head.starts_with("http/1.1 429") && head.contains("retry-after: 1") && user.is_none(), "{head}");
    let status = async |key| ask(key).await.0.split(' ').nth(1).unwrap().to_owned();
    assert_eq!([status("two").await, status("wrong").await], ["200", "403"]);
    assert_eq!([status("wrong").await, status("two").await], ["429", "429"], "the network's");
    server.close().await;
}

#[tokio::test]
async fn http_and_signalling_share_one_rate_of_jwt_signature_checks() {
    let jwt = JwtKey::ed_dsa("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo").map(Jwt::new);
    let limits = Limits { per_proof: Rate::new(0.001, 2.0), ..Limits::default() };
    let server = TestService::open(Config { jwt, limits, ..config() }).await;
    let status = async |key: &str| {
        let (head, _) = server.get(&format!("/ice?key={key}"), "").await;
        head.split(' ').nth(1).unwrap().to_owned()
    };
    let guess = "eyJhbGciOiJFZERTQSJ9.e30.AAAA";
    assert_eq!([status(guess).await, status(guess).await, status(guess).await], ["403", "403", "429"]);
    assert_eq!(status("the%20key").await, "200");
    server.close().await;
}

#[tokio::test]
async fn pages_of_other_origins_open_no_websocket_and_cannot_read_ice_servers() {
    let origins = Origins::only(vec!["https://app.example".into()]).unwrap();
    let server = TestService::open(Config { origins, ..config() }).await;
    let from = async |origin: Option<&'static str>| {
        let mut request = format!("ws://{}/ws", server.http).into_client_request().unwrap();
        if let Some(origin) = origin {
            request.headers_mut().insert("origin", origin.parse().unwrap());
        }
        match connect_async(request).await {
            Ok(_) => 101,
            Err(tungstenite::Error::Http(response)) => response.status().as_u16(),
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!((from(None).await, from(Some("https://app.example")).await), (101, 101));
    assert_eq!((from(Some("https://evil.example")).await, from(Some("null")).await), (403, 403));
    let (head, _) = server.get("/ice?key=the%20key", "Origin: https://app.example\r\n").await;
    assert!(head.contains("access-control-allow-origin: https://app.example\r\n"), "{head}");
    assert!(head.contains("vary: origin"), "{head}");
    let (head, _) = server.get("/ice?key=the%20key", "Origin: https://evil.example\r\n").await;
    assert!(!head.contains("access-control-allow-origin") && head.contains("vary: origin"), "{head}");
    server.close().await;
}

#[tokio::test]
async fn a_websocket_is_closed_after_an_oversized_message_silence_or_binary() {
    let times = Times { idle: Duration::from_millis(300), ping: Duration::from_secs(9), ..Times::default() };
    let server = TestService::open(Config { times, ..config() }).await;
    let mut long = server.websocket().await;
    let text = Message::Text("x".repeat(70_000).into());
    let _ = long.send(text).await;
    is_closed(&mut long).await;
    let mut binary = server.websocket().await;
    binary.send(Message::Binary(vec![1].into())).await.unwrap();
    assert!(is_closed(&mut binary).await);
    let mut silent = server.websocket().await;
    assert!(is_closed(&mut silent).await);
    server.close().await;
}

#[tokio::test]
async fn a_websocket_over_the_limit_is_closed_with_1013_and_the_limit_as_the_reason() {
    let limits = Limits { connections_per_network: 1, ..Limits::default() };
    let server = TestService::open(Config { limits, ..config() }).await;
    let mut first = server.websocket().await;
    send(&mut first, &json!({"t": 1, "mid": 1})).await;
    assert_eq!(receive(&mut first).await["code"], 200);
    let mut second = server.websocket().await;
    let Some(Ok(Message::Close(Some(close)))) = second.next().await else { panic!("no close with a reason") };
    let reason = "limit reached: signaling.limits.connections_per_network";
    assert_eq!((u16::from(close.code), close.reason.as_str()), (1013, reason));
    server.close().await;
}

#[tokio::test]
async fn pings_keep_a_quiet_websocket_open() {
    let times =
        Times { idle: Duration::from_millis(400), ping: Duration::from_millis(50), ..Times::default() };
    let server = TestService::open(Config { times, ..config() }).await;
    let mut web = server.websocket().await;
    for _ in 0..20 {
        assert!(matches!(web.next().await, Some(Ok(Message::Ping(_)))));
    }
    send(&mut web, &json!({"t": 1, "mid": 1})).await;
    assert_eq!(receive(&mut web).await["t"], -1);
    server.close().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_closed_without_effect_on_others() {
    let limits = Limits { outbox: 4, per_source: Rate::new(1e9, 1e9), ..Limits::default() };
    let server = TestService::open(Config { limits, ..config() }).await;
    let mut non_reading = server.websocket().await;
    let request = json!({"t": 77, "pad": "x".repeat(100)}).to_string();
    let flood = async {
        loop {
            non_reading.send(Message::Text(request.clone().into())).await?;
        }
    };
    let ended: Result<(), tungstenite::Error> =
        tokio::time::timeout(Duration::from_secs(60), flood).await.unwrap();
    assert!(ended.is_err());
    let mut web = server.websocket().await;
    send(&mut web, &json!({"t": 1, "mid": 1})).await;
    assert_eq!(receive(&mut web).await["t"], -1);
    server.close().await;
}

#[expect(clippy::print_stderr, reason = "a skip must be seen")]
fn print_skip(why: &str) {
    eprintln!("skipped: {why}");
}

/// Runs the client; its events come on stdout.
fn python(server: SocketAddr, arguments: &[&str]) -> std::io::Result<Child> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/plain_client.py");
    let mut command = Command::new("python3");
    command.arg(script).arg("--server").arg(server.to_string()).args(["--timeout", "30"]).args(arguments);
    command.stdout(Stdio::piped()).spawn()
}

fn events(child: Child) -> Vec<Value> {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn two_plain_clients_punch_and_exchange_a_hundred_datagrams() {
    let server = TestService::open(config()).await;
    let Ok(listening) = python(server.main, &["listen"]) else {
        print_skip("python3 is not installed");
        return server.close().await;
    };
    let calling = python(server.main, &["call", "first"]).unwrap();
    let both = tokio::task::spawn_blocking(|| [events(listening), events(calling)]);
    for side in both.await.unwrap() {
        let names: Vec<_> = side.iter().map(|event| event["event"].as_str().unwrap()).collect();
        // The call may arrive before the answer to the heartbeat that completes the registration.
        assert!(["registered", "punched"].iter().all(|name| names.contains(name)), "{names:?}");
        let exchanged = side.iter().find(|event| event["event"] == "exchanged").unwrap();
        assert_eq!((&exchanged["sent"], &exchanged["received"]), (&json!(100), &json!(100)));
    }
    server.close().await;
}

#[tokio::test]
async fn a_replaced_websocket_gets_the_reason_before_its_close_and_a_watcher_gets_no_event() {
    let server = TestService::open(config()).await;
    let register =
        |epoch| json!({"t": 1, "mid": 1, "params": {"secret": "a secret of twenty-two", "epoch": epoch}});
    let (mut older, mut newer, mut watcher) =
        (server.websocket().await, server.websocket().await, server.websocket().await);
    send(&mut older, &register(1)).await;
    let tag = receive(&mut older).await["extra"]["tag"].clone();
    send(&mut watcher, &json!({"t": 1, "mid": 1})).await;
    receive(&mut watcher).await;
    send(&mut watcher, &json!({"t": 60, "mid": 2, "params": {"tags": [tag]}})).await;
    assert_eq!(receive(&mut watcher).await["extra"], json!({"online": [tag]}));
    send(&mut newer, &register(2)).await;
    assert_eq!(receive(&mut newer).await["extra"]["tag"], tag);
    assert_eq!(receive(&mut older).await, json!({"t": 1, "code": 210, "em": "replaced by a newer session"}));
    assert!(is_closed(&mut older).await);
    newer.close(None).await.unwrap();
    assert_eq!(receive(&mut watcher).await, json!({"t": 60, "params": {"offline": [tag]}}));
    server.close().await;
}
