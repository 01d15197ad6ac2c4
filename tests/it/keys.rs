//! The access key and the admin key of a state folder.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message as Frame;

use crate::admission::{bearer, http, status};
use crate::test_server::TestServer;

/// A server that lists tags only to operators.
const CLOSED: &str = "\n[signaling]\nopen = false\nlist = false\npresence = false";

/// The answers to some messages on one WebSocket.
async fn exchange(test_server: &TestServer, path: &str, messages: &[Value]) -> Vec<Value> {
    let (mut web, _) = connect_async(format!("ws://{}{path}", test_server.address)).await.unwrap();
    let mut answers = Vec::new();
    for message in messages {
        web.send(Frame::Text(message.to_string().into())).await.unwrap();
        answers.push(loop {
            match web.next().await.unwrap().unwrap() {
                Frame::Text(text) => break serde_json::from_str(&text).unwrap(),
                Frame::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        });
    }
    answers
}

fn codes(answers: &[Value]) -> Vec<i64> {
    answers.iter().map(|answer| answer["code"].as_i64().unwrap()).collect()
}

fn register(key: &str) -> Value {
    json!({"t": 1, "mid": 1, "params": {"key": key, "secret": "a secret of its own tag"}})
}

#[tokio::test]
async fn the_access_key_registers_and_relays_but_does_not_list_watch_or_revoke() {
    let test_server = TestServer::on_loopback(CLOSED);
    let key = test_server.key();
    let mine = exchange(&test_server, "/ws", &[register(&key)]).await;
    assert!(mine[0]["extra"]["ice_servers"].to_string().contains("credential"), "{mine:?}");
    let tag = mine[0]["extra"]["tag"].as_str().unwrap();
    let list = json!({"t": 3, "mid": 2, "params": {"tag": tag}});
    let watch = json!({"t": 60, "mid": 3, "params": {"tags": [tag]}});
    assert_eq!(codes(&exchange(&test_server, "/ws", &[register(&key), list, watch]).await), [200, 204, 204]);
    assert_eq!(http(test_server.address, &format!("GET /ice?key={key}"), "").0, 200);
    assert_eq!(status(test_server.address, "GET /ice", &key), 200);
    for request in ["POST /revoke?tag=somebody", "DELETE /revoke?tag=somebody"] {
        let (code, _, body) = http(test_server.address, request, &bearer(&key));
        assert_eq!((code, body["error"].as_str().unwrap().contains("`admin`")), (403, true), "{body}");
    }
}

#[tokio::test]
async fn the_admin_key_is_accepted_only_in_a_header_without_an_origin() {
    let test_server = TestServer::on_loopback(CLOSED);
    let (key, admin) = (test_server.key(), test_server.output_of(&["key", "--admin"]));
    assert_ne!(key, admin);
    let revoke = "POST /revoke?tag=somebody";
    assert_eq!(http(test_server.address, &format!("{revoke}&key={admin}"), "").0, 401, "not in the URL");
    let page = format!("Origin: http://{}\r\n{}", test_server.address, bearer(&admin));
    let (code, _, body) = http(test_server.address, revoke, &page);
    assert_eq!((code, body["error"].as_str().unwrap().contains("page")), (403, true), "{body}");
    let (code, _, body) = http(test_server.address, &format!("GET /ice?key={admin}"), "");
    assert_eq!((code, body["error"].as_str().unwrap().contains("admin key")), (403, true), "{body}");
    assert_eq!(status(test_server.address, "GET /ice", &admin), 403);
    assert_eq!(codes(&exchange(&test_server, "/ws", &[register(&admin)]).await), [204]);
    assert_eq!(codes(&exchange(&test_server, &format!("/ws?key={admin}"), &[register(&admin)]).await), [204]);
    assert_eq!(status(test_server.address, revoke, &admin), 200);
    assert_eq!(status(test_server.address, "DELETE /revoke?tag=somebody", &admin), 200);
}

#[test]
fn an_older_state_folder_gets_an_admin_key_and_logs_one_line() {
    let mut test_server = TestServer::on_loopback("");
    let key = test_server.key();
    let upgrade_lines = |test_server: &TestServer| {
        test_server.process.lines(|line| line.contains("--admin").then(|| line.clone()))
    };
    assert_eq!(upgrade_lines(&test_server), [""; 0]);
    std::fs::remove_file(test_server.state().join("admin-key")).unwrap();
    test_server.restart();
    let lines = upgrade_lines(&test_server);
    assert!(lines.len() == 1 && lines[0].contains("no longer revokes"), "{lines:?}");
    assert_eq!(test_server.key(), key, "the access key stays");
    let kept = std::fs::metadata(test_server.state().join("admin-key")).unwrap();
    assert_eq!(kept.permissions().mode() & 0o777, 0o600);
    test_server.restart();
    assert_eq!(upgrade_lines(&test_server), [""; 0]);
}

fn ginnel(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ginnel")).args(arguments).current_dir(folder).output().unwrap()
}

#[test]
fn commands_that_print_keys_name_the_missing_state_folder_and_create_nothing() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    std::fs::set_permissions(folder.path().join("empty"), PermissionsExt::from_mode(0o700)).unwrap();
    let commands: [&[&str]; 5] =
        [&["key"], &["key", "--admin"], &["key", "--gateway"], &["gateway", "ticket"], &["credentials"]];
    for command in commands {
        for state in [&[][..], &["--state", "elsewhere"], &["--state", "empty"]] {
            let output = ginnel(folder.path(), &[command, state].concat());
            let error = String::from_utf8(output.stderr).unwrap();
            assert!(!output.status.success() && output.stdout.is_empty(), "{command:?} {state:?}");
            let named = state.last().copied().unwrap_or("state");
            assert!(error.contains("no state") && error.contains(named), "{command:?} {state:?}: {error}");
            assert!(error.contains("--state") && error.contains("--config"), "{error}");
        }
    }
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left, [folder.path().join("empty")], "nothing was created");
    assert_eq!(std::fs::read_dir(&left[0]).unwrap().count(), 0, "nothing was created");
}
