//! The frames of the original programs, byte for byte.

use std::io::Write;

use serde_json::{Value, json};

use super::{CHEAP, Messaging, PASSWORD};
use crate::metrics;

#[test]
fn the_bytes_of_the_original_programs_get_the_bytes_of_the_original_server() {
    let messaging = Messaging::start(CHEAP);
    let mut client = messaging.connect_raw();
    let push = client.read_exact(4 + 0x12b);
    assert_eq!(push[..12], *b"\0\0\x01\x2b\x08\x01\x22\xa6\x02\x30\x82\x01");
    // A heartbeat, and fetching before the login.
    client.stream.write_all(b"\0\0\0\0").unwrap();
    assert_eq!(client.read_exact(4), b"\0\0\0\0");
    client.stream.write_all(b"\0\0\0\x03\x08\xca\x01").unwrap();
    let body = br#"{"code":300,"msg":"you need login first"}"#;
    let expected = [&b"\0\0\0\x2e\x08\xca\x01\x22\x29"[..], body].concat();
    assert_eq!(client.read_exact(expected.len()), expected);
    // In pieces, and several at once.
    for byte in b"\0\0\0\0" {
        client.stream.write_all(&[*byte]).unwrap();
    }
    client.stream.write_all(&[0; 12]).unwrap();
    assert_eq!(client.read_exact(16), [0; 16]);
    // Any 256 bytes are a session key; other lengths are none.
    client.send(2, "", &[1; 256]);
    let ok = [&b"\0\0\0\x1b\x08\x02\x22\x17"[..], br#"{"code":100,"msg":"ok"}"#].concat();
    assert_eq!(client.read_exact(ok.len()), ok);
    client.send(2, "", &[1; 128]);
    assert!(client.frame().3.starts_with(br#"{"code":200,"#));
    // Broken protobuf is answered, and the connection stays open.
    client.stream.write_all(b"\0\0\0\x02\x22\x09").unwrap();
    let (cmd, _, _, data) = client.frame();
    assert!(cmd == 3 && data.starts_with(br#"{"code":200,"msg":"#));
    client.stream.write_all(b"\0\0\0\x02\x08\x68").unwrap();
    assert!(client.is_closed(), "logout");
}

#[test]
fn users_register_log_in_and_are_online_once() {
    let messaging = Messaging::start(CHEAP);
    let mut older = messaging.user("alice");
    let mut client = messaging.connect();
    let account = json!({"username": "alice", "password": PASSWORD});
    assert_eq!(client.code(102, &account), 1001);
    assert_eq!(client.code(100, &json!({"username": "alice", "password": "x"})), 1002);
    assert_eq!(client.code(100, &json!({"username": "nobody", "password": "x"})), 1002);
    assert_eq!(client.code(100, &account), 100);
    assert_eq!(older.read_exact(6), b"\0\0\0\x02\x08\x67");
    assert!(older.is_closed());
}

#[test]
fn messages_outlive_the_server() {
    let mut messaging = Messaging::start(CHEAP);
    let mut bob = messaging.user("bob");
    bob.send(104, "", b"");
    let mut alice = messaging.user("alice");
    for id in ["1", "2", "3"] {
        alice.send(200, id, json!({"to": "bob", "msg": id}).to_string().as_bytes());
        assert_eq!(alice.frame(), (200, id.to_owned(), false, vec![]));
    }
    messaging.server.restart();
    let mut bob = messaging.user("bob");
    bob.send(202, "", b"");
    let (cmd, _, _, data) = bob.frame();
    let expected = r#"[{"from":"alice","to":"bob","msg":"1","msgid":"1"},{"from":"alice","to":"bob","msg":"2","msgid":"2"},{"from":"alice","to":"bob","msg":"3","msgid":"3"}]"#;
    assert_eq!((cmd, std::str::from_utf8(&data).unwrap()), (201, expected));
    bob.send(201, "", br#"[{"msgid":"1"},{"msgid":"2"}]"#);
    bob.send(202, "", b"");
    let (_, _, _, data) = bob.frame();
    assert_eq!(serde_json::from_slice::<Value>(&data).unwrap()[0]["msgid"], "3");
    let value = |name: &str| metrics::value(messaging.server.address, &format!("ginnel_messaging_{name}"));
    assert_eq!((value("acknowledged_messages_total"), value("online")), (2, 1));
}

#[test]
fn the_dispatcher_answers_on_the_main_port_and_on_its_own() {
    let port = crate::test_server::free_ports();
    let messaging = Messaging::start(&format!("dispatcher_port = {port}\n{CHEAP}"));
    let main = messaging.server.address;
    let own = std::net::SocketAddr::new(main.ip(), port);
    let found = format!(r#"{{"code":100,"msg":"ok","ip":"127.0.0.1","port":{}}}"#, messaging.plain.port());
    for (address, target, body) in [
        (main, "/?id=alice", &*found),
        (own, "/?id=alice", &found),
        (own, "/any/path?x=1&id=alice", &found),
        (own, "/", r#"{"code":200,"msg":"id is null"}"#),
        (main, "/?id=", r#"{"code":200,"msg":"id is null"}"#),
    ] {
        let answer = get(address, target);
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with(&format!("\r\n\r\n{body}")),
            "{answer}"
        );
        assert!(answer.to_lowercase().contains("content-type: text/plain\r\n"), "{answer}");
    }
    assert!(get(main, "/").contains("<html"), "the page is where it was");
}

fn get(address: std::net::SocketAddr, target: &str) -> String {
    use std::io::Read;
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(super::PATIENCE)).unwrap();
    write!(stream, "GET {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}
