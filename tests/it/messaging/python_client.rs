//! An independent client in Python (`tests/clients/messaging.py`).

use std::process::Command;

use serde_json::json;

use super::{CHEAP, Messaging};
use crate::tools;

#[test]
fn a_client_in_python_does_everything_once() {
    let has_crypto = || {
        let found = Command::new("python3").args(["-c", "import cryptography"]).output();
        found.is_ok_and(|output| output.status.success())
    };
    if !tools::have(&["python3"]) {
        return;
    }
    if !has_crypto() {
        return tools::note("no python3-cryptography");
    }
    let messaging = Messaging::start(CHEAP);
    let report = messaging.server.report("messaging.py", &["session", &messaging.plain.to_string()]);
    let texts: Vec<_> = (0..5).map(|index| format!("message {index} ü")).collect();
    let expected = json!({
        "before_login": 300,
        "register": [100, 1001],
        "wrong": 1002,
        "login": 100,
        "add": [2002, 100, 2001, 100, 100],
        "device": 100,
        "acknowledged": 5,
        "fetched": texts,
        "fetched_again": [texts[4]],
        "pushed": [201, true, "on"],
        "login_elsewhere": 100,
        "conflict": [103, true],
        "logout": true,
    });
    assert_eq!(report, expected);
    let main = messaging.server.address.to_string();
    let answer = messaging.server.report("messaging.py", &["dispatch", &main, "alice"]);
    assert_eq!((&answer["code"], &answer["port"]), (&json!(100), &json!(messaging.plain.port())));
}
