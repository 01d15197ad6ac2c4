//! Access by tokens of other programs, page origins, and revoked tags.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message as Frame;

use crate::test_server::TestServer;
use crate::tools;
use crate::turn_client::{BlockingTurnClient, config_of, response_code};

const SECRET: &str = "a secret of thirty-two bytes or more";
const OWN: &str = "a secret of twenty-two";
const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
const SOON: Duration = Duration::from_secs(20);

/// Creates a token with Python's standard library; the arguments are header, claims and secret.
const PYTHON: &str = r#"
import base64, hashlib, hmac, sys
part = lambda data: base64.urlsafe_b64encode(data).rstrip(b"=")
header, claims, secret = (argument.encode() for argument in sys.argv[1:])
body = part(header) + b"." + part(claims)
print((body + b"." + part(hmac.new(secret, body, hashlib.sha256).digest())).decode())
"#;

fn output(mut command: Command) -> Vec<u8> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    output.stdout
}

fn hs256(header: &Value, claims: &Value, secret: &str) -> String {
    let mut python = Command::new("python3");
    python.args(["-c", PYTHON, &header.to_string(), &claims.to_string(), secret]);
    String::from_utf8(output(python)).unwrap().trim().to_owned()
}

fn openssl(folder: &Path, arguments: &str) -> Vec<u8> {
    let mut openssl = Command::new("openssl");
    openssl.args(arguments.split(' ')).current_dir(folder);
    output(openssl)
}

/// Signs with the key in `key.pem`.
fn ed_dsa(folder: &Path, claims: &Value) -> String {
    let part = |bytes: &[u8]| data_encoding::BASE64URL_NOPAD.encode(bytes);
    let body = format!("{}.{}", part(br#"{"alg":"EdDSA"}"#), part(claims.to_string().as_bytes()));
    std::fs::write(folder.join("body"), &body).unwrap();
    format!("{body}.{}", part(&openssl(folder, "pkeyutl -sign -inkey key.pem -rawin -in body")))
}

fn unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Status, head and body of a request.
pub(crate) fn http(server: SocketAddr, request: &str, headers: &str) -> (u16, String, Value) {
    let mut stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    write!(stream, "{request} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n{headers}\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_lowercase(), serde_json::from_str(body).unwrap_or_default())
}

pub(crate) fn bearer(key: &str) -> String {
    format!("Authorization: Bearer {key}\r\n")
}

pub(crate) fn status(server: SocketAddr, request: &str, key: &str) -> u16 {
    http(server, request, &bearer(key)).0
}

/// User name and password of the relay.
fn relay_of(servers: &Value) -> (String, String) {
    let relay = servers.as_array().and_then(|all| all.iter().find(|server| server["credential"].is_string()));
    let relay = relay.unwrap_or_else(|| panic!("no relay in {servers}"));
    (relay["username"].as_str().unwrap().to_owned(), relay["credential"].as_str().unwrap().to_owned())
}

/// One request of signalling by UDP, and its answer.
fn request(socket: &UdpSocket, message: &Value) -> Value {
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut buffer = [0; 1500];
    for _ in 0..10 {
        socket.send(message.to_string().as_bytes()).unwrap();
        if let Ok(len) = socket.recv(&mut buffer) {
            return serde_json::from_slice(&buffer[..len]).unwrap();
        }
    }
    panic!("no answer to {message}");
}

#[test]
fn valid_tokens_made_with_pythons_standard_library_admit() {
    if !tools::have(&["python3"]) {
        return;
    }
    let jwt = format!(
        "\n[signaling]\nopen = false\n[signaling.jwt]\nalgorithm = \"HS256\"\nkey = \"{SECRET}\"\naudience = \"relay\""
    );
    let test_server = TestServer::on_loopback(&jwt);
    let (header, end) = (json!({"alg": "HS256", "typ": "JWT"}), unix() + 600);
    let claims = json!({"exp": end, "aud": ["relay"], "scope": "register relay", "sub": "alice"});
    let good = hs256(&header, &claims, SECRET);
    let (code, _, body) = http(test_server.address, "GET /ice", &bearer(&good));
    assert_eq!(code, 200, "{body}");
    let tag = body["tag"].as_str().unwrap();
    let user = relay_of(&body["iceServers"]).0;
    let (name, of_page) = user.split_once('+').unwrap();
    assert_eq!(name, format!("{end}:{tag}"), "the relay ends with the token");
    assert_eq!(http(test_server.address, &format!("GET /ice?key={good}"), "").0, 200);
    let with = |field: &str, value: Value| {
        let mut claims = claims.clone();
        claims[field] = value;
        claims
    };
    let (head, rest) = good.split_once('.').unwrap();
    let (body, mark) = rest.split_once('.').unwrap();
    let richer = with("scope", json!("register relay admin"));
    let richer = hs256(&header, &richer, SECRET);
    let tampered = format!("{head}.{}.{mark}", richer.split('.').nth(1).unwrap());
    for (what, wrong) in [
        ("expired", hs256(&header, &with("exp", json!(unix() - 61)), SECRET)),
        ("too long", hs256(&header, &with("exp", json!(unix() + 90_000)), SECRET)),
        ("another secret", hs256(&header, &claims, "another secret of thirty-two bytes")),
        ("another audience", hs256(&header, &with("aud", json!("shop")), SECRET)),
        ("another algorithm", hs256(&json!({"alg": "HS384"}), &claims, SECRET)),
        ("no algorithm", hs256(&json!({"alg": "none"}), &claims, SECRET)),
        ("no signature", format!("{head}.{body}.")),
        ("tampered", tampered),
        ("no scope for the relay", hs256(&header, &with("scope", json!("register")), SECRET)),
    ] {
        assert_eq!(status(test_server.address, "GET /ice", &wrong), 403, "{what}: {wrong}");
    }
    // The same for signalling, where the server is not open.
    let socket = UdpSocket::bind((HERE, 0)).unwrap();
    socket.connect(test_server.address).unwrap();
    let register = |mid: u64, key: &str| json!({"t": 1, "mid": mid, "params": {"key": key, "secret": OWN}});
    assert_eq!(request(&socket, &register(1, "no key"))["code"], 204);
    let relay = hs256(&header, &with("scope", json!("relay")), SECRET);
    assert_eq!(request(&socket, &register(2, &relay))["code"], 204);
    let answer = request(&socket, &register(3, &good));
    let user = relay_of(&answer["extra"]["ice_servers"]).0;
    let (name, account) = user.split_once('+').unwrap();
    assert_eq!(name, format!("{end}:{}", answer["extra"]["tag"].as_str().unwrap()));
    assert_eq!(account, of_page, "one `sub` is one account");
}

#[test]
fn tokens_signed_by_openssl_admit_and_its_public_key_is_no_hmac_secret() {
    if !tools::have(&["python3", "openssl"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    openssl(folder, "genpkey -algorithm ed25519 -out key.pem");
    openssl(folder, "pkey -in key.pem -pubout -out public.pem");
    let public = folder.join("public.pem");
    let test_server =
        TestServer::on_loopback(&format!("\n[signaling.jwt]\nalgorithm = \"EdDSA\"\nkey_file = {public:?}"));
    let claims = json!({"exp": unix() + 600, "scope": ["relay"]});
    assert_eq!(status(test_server.address, "GET /ice", &ed_dsa(folder, &claims)), 200);
    let expired = ed_dsa(folder, &json!({"exp": unix() - 61, "scope": ["relay"]}));
    assert_eq!(status(test_server.address, "GET /ice", &expired), 403);
    let confused = hs256(&json!({"alg": "HS256"}), &claims, &std::fs::read_to_string(&public).unwrap());
    assert_eq!(status(test_server.address, "GET /ice", &confused), 403);
    openssl(folder, "genpkey -algorithm ed25519 -out key.pem");
    assert_eq!(status(test_server.address, "GET /ice", &ed_dsa(folder, &claims)), 403, "another key");
}

#[test]
fn an_unlisted_origin_gets_403_before_the_upgrade() {
    let test_server = TestServer::on_loopback("\n[signaling]\norigins = [\"https://app.example\"]");
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let open = |path: &str, origin: &str| {
        let mut stream = TcpStream::connect(test_server.address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n{upgrade}{origin}\r\n").unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        String::from_utf8(head[9..].to_vec()).unwrap()
    };
    for path in ["/ws", "/gateway", "/gateway/servers"] {
        let codes =
            ["", "Origin: https://app.example\r\n", "Origin: https://evil.example\r\n", "Origin: null\r\n"]
                .map(|origin| open(path, origin));
        assert_eq!(codes, ["101", "101", "403", "403"], "{path}");
    }
    let own = "Origin: https://app.example\r\n";
    let (code, head, _) = http(test_server.address, &format!("GET /ice?key={}", test_server.key()), own);
    assert!(code == 200 && head.contains("access-control-allow-origin: https://app.example"), "{head}");
    let (code, head, _) = http(test_server.address, "OPTIONS /ice", "Origin: https://evil.example\r\n");
    assert!(code == 204 && !head.contains("access-control-allow-origin:"), "{head}");
}

#[test]
fn clients_with_tokens_of_different_realms_are_isolated() {
    if !tools::have(&["python3"]) {
        return;
    }
    let key = "\n[[signaling.keys]]\nkey = \"a key of the blue realm\"\nscopes = []\nrealm = \"blue\"";
    let jwt = format!("{key}\n[signaling.jwt]\nalgorithm = \"HS256\"\nkey = \"{SECRET}\"");
    let test_server = TestServer::on_loopback(&jwt);
    let of_realm =
        |realm: &str| hs256(&json!({"alg": "HS256"}), &json!({"exp": unix() + 600, "realm": realm}), SECRET);
    let keys = [of_realm("blue"), "a key of the blue realm".to_owned(), of_realm("green"), test_server.key()];
    let register = |key: &String| {
        let socket = UdpSocket::bind((HERE, 0)).unwrap();
        socket.connect(test_server.address).unwrap();
        let answer = request(&socket, &json!({"t": 1, "mid": 1, "params": {"key": key}}));
        (socket, answer["extra"]["tag"].as_str().unwrap().to_owned())
    };
    let clients: Vec<_> = keys.iter().map(register).collect();
    let others = |own: usize| match own {
        0 => vec![1],
        1 => vec![0],
        _ => vec![],
    };
    for (own, (socket, tag)) in clients.iter().enumerate() {
        let listed =
            request(socket, &json!({"t": 3, "mid": 2, "params": {"tag": tag}}))["extra"]["tags"].clone();
        let expected: Vec<_> = others(own).into_iter().map(|other| clients[other].1.clone()).collect();
        assert_eq!(listed, json!(expected), "{own}");
    }
    for (own, (_, tag)) in clients.iter().enumerate() {
        for (other, (_, callee)) in clients.iter().enumerate().filter(|(other, _)| *other != own) {
            let code = if others(own).contains(&other) { 200 } else { 203 };
            let punching = UdpSocket::bind((HERE, 0)).unwrap();
            punching.connect(test_server.address).unwrap();
            let call = json!({"t": 4, "mid": 3 + other, "params": {"tag": tag, "rtag": callee}});
            assert_eq!(request(&punching, &call)["code"], code, "{own} calls {other}");
        }
    }
}

/// Clients of the relay whose peer continuously sends to all of them.
struct Relaying {
    clients: Vec<BlockingTurnClient>,
    relayed: Vec<SocketAddr>,
    peer: UdpSocket,
}

impl Relaying {
    /// Several, so that every worker has one of them.
    fn begin(user: &(String, String), server: SocketAddr) -> Self {
        let peer = UdpSocket::bind((HERE, 0)).unwrap();
        let at = peer.local_addr().unwrap();
        peer.set_read_timeout(Some(SOON)).unwrap();
        let begin = |_| {
            let mut client = BlockingTurnClient::new(config_of(user), HERE, server);
            let relayed = client.try_allocate().unwrap();
            client.bind_channel(at).unwrap();
            (client, relayed)
        };
        let (clients, relayed) = (0..6).map(begin).unzip();
        Self { clients, relayed, peer }
    }

    /// Whether each client receives what its peer sends now.
    fn receives(&self, what: &[u8]) -> Vec<bool> {
        self.relayed.iter().for_each(|relayed| {
            // The port may be closed already.
            let _ = self.peer.send_to(what, relayed);
        });
        // Not payloads: a client whose allocation has ended ignores them.
        let has_received = |client: &BlockingTurnClient| {
            let until = Instant::now() + Duration::from_millis(500);
            std::iter::from_fn(|| client.receive_datagram().filter(|_| Instant::now() < until))
                .any(|received| received.ends_with(what))
        };
        self.clients.iter().map(has_received).collect()
    }
}

#[tokio::test]
async fn a_revoked_tag_is_offline_and_its_relaying_stops_within_a_second() {
    let relay_only = "\n[[signaling.keys]]\nkey = \"only for the relay\"\nscopes = [\"relay\", \"register\"]";
    let limits = "\n[signaling.limits]\nrevocations = 2";
    let mut test_server =
        TestServer::on_loopback(&format!("allow_peers = [\"127.0.0.0/8\"]{relay_only}{limits}"));
    let (server, key, admin) =
        (test_server.address, test_server.key(), test_server.output_of(&["key", "--admin"]));
    let (mut web, _) = connect_async(format!("ws://{server}/ws")).await.unwrap();
    let register = json!({"t": 1, "mid": 1, "params": {"key": key, "secret": OWN}});
    web.send(Frame::Text(register.to_string().into())).await.unwrap();
    let receive = async |web: &mut tokio_tungstenite::WebSocketStream<_>| loop {
        match web.next().await.unwrap().unwrap() {
            Frame::Text(text) => return serde_json::from_str::<Value>(&text).unwrap(),
            Frame::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    };
    let answer = receive(&mut web).await;
    let tag = answer["extra"]["tag"].as_str().unwrap().to_owned();
    let user = relay_of(&answer["extra"]["ice_servers"]);
    let (_, _, other) = http(server, "GET /ice", &bearer(&key));
    let (mut mine, others) =
        (Relaying::begin(&user, server), Relaying::begin(&relay_of(&other["iceServers"]), server));
    assert_eq!((mine.receives(b"before"), others.receives(b"before")), (vec![true; 6], vec![true; 6]));

    let revoke = format!("POST /revoke?tag={tag}");
    let (code, head, _) = http(server, &revoke, "");
    assert!(code == 401 && head.contains("www-authenticate: bearer"), "{head}");
    assert_eq!(
        ["a guess", "only for the relay", &key].map(|shown| status(server, &revoke, shown)),
        [403, 403, 403]
    );
    assert_eq!(http(server, &format!("{revoke}&key={admin}"), "").0, 401, "not in the URL");
    assert_eq!(status(server, "POST /revoke", &admin), 400);
    let begun = Instant::now();
    let (code, _, body) = http(server, &revoke, &bearer(&admin));
    assert_eq!((code, body["tag"].as_str()), (200, Some(&*tag)), "{body}");
    assert!(body["until"].as_u64().unwrap() > unix() + 86_000);
    for client in &mut mine.clients {
        assert_eq!(response_code(client.renew()), 401);
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!((mine.receives(b"after"), others.receives(b"after")), (vec![false; 6], vec![true; 6]));
    assert_eq!(receive(&mut web).await, json!({"t": 1, "code": 211, "em": "revoked"}));
    assert!(matches!(web.next().await, Some(Ok(Frame::Close(_)))));

    // Nor does it come back, by any way, before or after a restart.
    let refused = |test_server: &TestServer| {
        let socket = UdpSocket::bind((HERE, 0)).unwrap();
        socket.connect(test_server.address).unwrap();
        let mut other = BlockingTurnClient::new(config_of(&user), HERE, test_server.address);
        let code = response_code(other.try_allocate());
        (request(&socket, &register)["code"].as_i64(), code)
    };
    assert_eq!(refused(&test_server), (Some(211), 401));
    let kept = test_server.state().join("revoked");
    assert_eq!(std::fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
    test_server.restart();
    assert_eq!(refused(&test_server), (Some(211), 401));
    assert_eq!(status(server, &format!("DELETE /revoke?tag={tag}"), &admin), 200);
    assert_eq!(status(server, &format!("DELETE /revoke?tag={tag}"), &admin), 404);
    assert_eq!(refused(&test_server), (Some(200), 0));
    // What cannot be kept counts all the same, and there is an end to how many there may be.
    std::fs::create_dir(test_server.state().join("revoked.new")).unwrap();
    let (code, _, body) = http(server, &revoke, &bearer(&admin));
    assert!(code == 500 && body["error"].as_str().unwrap().contains("not after a restart"), "{code} {body}");
    assert_eq!(refused(&test_server), (Some(211), 401));
    std::fs::remove_dir(test_server.state().join("revoked.new")).unwrap();
    let more = ["second", "third"].map(|tag| status(server, &format!("POST /revoke?tag={tag}"), &admin));
    assert_eq!(more, [200, 507]);
}
