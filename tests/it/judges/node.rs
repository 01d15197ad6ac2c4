//! `ginnel.js` in Node, with the packages that `web/README.md` names.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::proc::{Proc, Stdout};
use crate::test_server::TestServer;
use crate::tools;

const PACKAGES: [&str; 2] = ["werift@0.25.2", "ws@8.18.3"];
const UP: Duration = Duration::from_secs(60);

/// A folder with the packages and the module, kept for later runs; `None`, visibly, where they cannot be had.
fn folder() -> Option<PathBuf> {
    if !tools::have(&["node", "npm"]) {
        return None;
    }
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(PACKAGES.join("+"));
    if !folder.join("node_modules/.package-lock.json").is_file() {
        let mut install = Command::new("npm");
        install.args(["install", "--no-audit", "--no-fund", "--prefix"]).arg(&folder).args(PACKAGES);
        let output = install.output().unwrap();
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            // An unreachable registry is no failure of the module.
            tools::note(&format!("npm brings no {}: {why}", PACKAGES.join(", ")));
            return None;
        }
    }
    let module = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("web/ginnel.js");
    std::fs::copy(module, folder.join("ginnel.mjs")).unwrap();
    Some(folder)
}

#[test]
fn two_clients_in_node_connect_by_the_tag_of_a_key() {
    let Some(folder) = folder() else { return };
    let test_server = TestServer::on_loopback("");
    let mut command = Command::new("node");
    command
        .arg(tools::client("pair.mjs"))
        .arg(test_server.address.to_string())
        .arg(test_server.key())
        .arg(&folder);
    let mut pair = Proc::start("node", command, Stdout::Lines);
    pair.succeed(UP);
    let event = |name: &str| {
        let of_name =
            |line: &String| serde_json::from_str::<Value>(line).ok().filter(|event| event["event"] == name);
        pair.lines(of_name).pop().unwrap_or_else(|| panic!("no {name}\n{}", pair.printed()))
    };
    assert_eq!(event("registered")["secrets"], json!([false, true]), "{}", pair.printed());
    let exchanged = event("exchanged");
    assert_eq!(exchanged["lines"], json!(["hello from the caller", "hello from the callee"]));
    assert_eq!(exchanged["peers"], json!([true, true]));
    assert_eq!(event("again"), json!({"event": "again", "same": true, "older": "replaced"}));
}

/// Address changes, dead lines and restarts of the server, in named orders and in random ones.
#[test]
fn a_relayed_call_outlives_every_order_of_outages_of_a_simulated_network() {
    if !tools::have(&["node"]) {
        return;
    }
    let module = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("web/ginnel.js");
    let mut command = Command::new("node");
    command.arg(tools::client("repairs.mjs")).arg(module);
    let seeds = tools::switch("GINNEL_LONG_RUNS", 100);
    command.arg(seeds.to_string());
    let mut repairs = Proc::start("node", command, Stdout::Lines);
    repairs.succeed(UP);
    let recovered = repairs.lines(|line| serde_json::from_str::<Value>(line).ok());
    assert_eq!(recovered[0]["seeds"], json!(seeds), "{}", repairs.printed());
}

/// A page's backend uses a server that requires a key.
#[test]
fn the_backends_of_the_readme_get_their_users_relays() {
    if !tools::have(&["node"]) {
        return;
    }
    let secret = "a secret of the web application, 32 bytes";
    let test_server = TestServer::on_loopback(&format!(
        "\n[signaling]\nopen = false\n[signaling.jwt]\nalgorithm = \"HS256\"\nkey = \"{secret}\""
    ));
    let readme = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("web/README.md");
    let mut command = Command::new("node");
    command.arg(tools::client("backend.mjs")).arg(readme).arg(test_server.address.to_string());
    command.env("GINNEL_KEY", test_server.key()).env("GINNEL_JWT_SECRET", secret);
    let mut backend = Proc::start("node", command, Stdout::Lines);
    backend.succeed(UP);
    let answers = backend.lines(|line| serde_json::from_str::<Value>(line).ok());
    assert_eq!(answers.len(), 2, "{}", backend.printed());
    for answer in answers {
        let urls = answer["iceServers"].to_string();
        assert!(urls.contains("turn:") && urls.contains("credential"), "{answer}");
    }
}
