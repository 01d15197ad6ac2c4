//! An independent client of long-term credentials (RFC 8489).

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::proc::{Proc, Stdout};
use crate::test_server::{PASSWORD, TestServer, USER};
use crate::tools;

const SHORT: Duration = Duration::from_secs(30);
/// A realm as long as it may be.
const LONG_REALM: &str = "realm = \"a-realm-of-thirty-two-bytes-0123\"";

fn python(arguments: &[&str]) -> Proc {
    let mut command = Command::new("python3");
    command.arg(tools::client("longterm.py")).args(arguments);
    Proc::start(&format!("longterm.py {}", arguments[0]), command, Stdout::Lines)
}

/// What the client prints in the end.
fn report(arguments: &[&str]) -> Value {
    let mut client = python(arguments);
    client.succeed(SHORT);
    let printed = client.lines(|line| Some(line.clone())).concat();
    serde_json::from_str(&printed).unwrap_or(Value::String(printed))
}

fn as_judge(verb: &str, test_server: &TestServer) -> Value {
    report(&[verb, &test_server.address.to_string(), USER, PASSWORD])
}

/// The code that `user` gets when she asks for an allocation as browsers do.
fn code(test_server: &TestServer, user: &str, password: &str) -> Value {
    report(&["try", &test_server.address.to_string(), user, password, "3"])
}

fn ginnel(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_ginnel")).args(arguments).output().unwrap();
    assert!(output.status.success(), "ginnel {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_foreign_client_authenticates_in_every_way_of_the_rfc() {
    if !tools::have(&["python3"]) {
        return;
    }
    let test_server = TestServer::on_loopback("");
    let expected = json!({
        "sha256": [200, "sha256"],
        "sha256 by hash": [200, "sha256"],
        "sha256 with fingerprint": [200, "sha256"],
        "md5 by choice": [200, "sha256"],
        "as browsers do": [200, "sha1"],
        "as browsers do, by hash": [200, "sha1"],
        "both attributes, no choice": [200, "sha1"],
    });
    assert_eq!(as_judge("right", &test_server), expected);
}

#[test]
fn bid_down_tampering_and_guessing_are_refused() {
    if !tools::have(&["python3"]) {
        return;
    }
    let test_server = TestServer::on_loopback("");
    let expected = json!({
        "nonce bits: no features": 438,
        "nonce bits: no algorithms": 438,
        "nonce bits: more features": 438,
        "nonce without cookie": 438,
        "nonce of another port": 438,
        "no list": 400,
        "no choice": 400,
        "list cut to md5, md5 chosen": 400,
        "list turned round, md5 chosen": 400,
        "list with a stranger, md5 chosen": 400,
        "a choice that was not offered": 400,
        "sha256 chosen, md5's key": 401,
        "sha256 chosen, sha1 integrity": 401,
        "integrity cut to 16 bytes": 401,
        "sha256's key as browsers would": 401,
        "unknown attributes": [420, "7f017f02", "sha256"],
        "lifetime 0 and worse behind the integrity": [200, 600],
    });
    assert_eq!(as_judge("attack", &test_server), expected);
}

#[test]
fn refusals_on_the_wire_have_one_code_and_one_length() {
    if !tools::have(&["python3"]) {
        return;
    }
    let refused = as_judge("refuse", &TestServer::on_loopback(LONG_REALM));
    let refused: Vec<_> = refused.as_object().unwrap().values().collect();
    assert_eq!(refused, vec![&json!([401, 112]); 6]);
}

#[test]
fn a_bare_allocate_is_answered_with_less_than_three_times_its_length() {
    if !tools::have(&["python3"]) {
        return;
    }
    let sizes = report(&["sizes", &TestServer::on_loopback(LONG_REALM).address.to_string()]);
    assert_eq!((&sizes["asked"], &sizes["answered"]), (&json!(20), &json!(112)), "3 * (20 + 28) - 28 = 116");
    assert_eq!(sizes["kinds"], json!(["0009", "0014", "0015", "8002"]));
}

#[test]
fn users_of_the_http_hook_are_admitted_and_its_failures_give_no_answer() {
    if !tools::have(&["python3"]) {
        return;
    }
    let users = python(&["hook"]);
    let port: u16 = users.expect("port", SHORT, |line| line.strip_prefix("port ")?.parse().ok());
    let hook = format!("[auth.hook]\nurl = \"http://127.0.0.1:{port}/users\"\ndeadline_ms = 1000");
    let test_server = TestServer::on_loopback(&hook);
    for (user, password, expected) in [
        ("known", "secret", json!(200)),
        ("keyed", "secret", json!(200)),
        ("known", "wrong", json!(401)),
        ("nobody", "secret", json!(401)),
        ("over", "secret", json!(401)),
        ("broken", "secret", json!("silence")),
        ("liar", "secret", json!("silence")),
        ("slow", "secret", json!("silence")),
        ("known", "secret", json!(200)),
        (USER, PASSWORD, json!(200)),
    ] {
        assert_eq!(
            code(&test_server, user, password),
            expected,
            "{user} {password}\n{}",
            test_server.process.printed()
        );
    }
    let lookups =
        |who: &str| users.lines(|line| line.starts_with(&format!("asked {who} ginnel")).then_some(())).len();
    assert_eq!((lookups("known"), lookups("nobody"), lookups(USER)), (1, 1, 0), "{}", users.printed());
    assert!(lookups("broken") > 1, "a failure is not remembered");
    let warnings = test_server.process.lines(|line| line.contains("user look-up failed").then_some(())).len();
    assert_eq!(warnings, 1, "once a minute: {}", test_server.process.printed());
}

#[test]
fn a_changed_credentials_file_takes_effect() {
    if !tools::have(&["python3"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("users");
    let line = |user: &str| {
        let mut key = Command::new(env!("CARGO_BIN_EXE_ginnel"));
        key.args(["credentials", "key", user, "--realm", "ginnel", "--line"]);
        let mut key = Proc::start("ginnel credentials key", key, Stdout::Pipe);
        let (mut input, mut output) = key.take_pipes();
        std::io::Write::write_all(&mut input, b"secret\n").unwrap();
        drop(input);
        std::io::read_to_string(&mut output).unwrap()
    };
    fs::write(&path, line("first")).unwrap();
    let test_server = TestServer::on_loopback(&format!("[auth]\ncredentials_file = {path:?}"));
    assert_eq!(
        (code(&test_server, "first", "secret"), code(&test_server, "second", "secret")),
        (json!(200), json!(401))
    );
    fs::write(&path, line("second")).unwrap();
    let deadline = Instant::now() + SHORT;
    while code(&test_server, "second", "secret") != json!(200) {
        assert!(Instant::now() < deadline, "{}", test_server.process.printed());
    }
    assert_eq!(code(&test_server, "first", "secret"), json!(401));
    fs::write(&path, "nonsense\n").unwrap();
    test_server
        .process
        .expect("a complaint about line 1", SHORT, |line| line.contains("line 1").then_some(()));
    assert_eq!(code(&test_server, "second", "secret"), json!(200));
}

#[test]
fn credentials_from_the_command_line_work_until_they_expire() {
    if !tools::have(&["python3"]) {
        return;
    }
    let test_server = TestServer::on_loopback("");
    let state = test_server.state();
    let state = state.to_str().unwrap();
    for more in [&[][..], &["--sha256"]] {
        let arguments = [&["credentials", "--state", state, "--name", "guest", "--json"][..], more].concat();
        let minted: Value = serde_json::from_str(&ginnel(&arguments)).unwrap();
        let (user, password) = (minted["username"].as_str().unwrap(), minted["credential"].as_str().unwrap());
        assert_eq!(code(&test_server, user, password), json!(200));
        assert_eq!(code(&test_server, &user.replacen("17", "27", 1), password), json!(401));
    }
    let ice: Value = serde_json::from_str(&ginnel(&["credentials", "--state", state, "--ice"])).unwrap();
    assert!(ice["iceServers"][1]["username"].as_str().unwrap().ends_with(":guest"), "{ice}");
    let short = ginnel(&["credentials", "--state", state, "--ttl", "1"]);
    let (user, password) = short.split_once('\n').unwrap();
    let deadline = Instant::now() + SHORT;
    while code(&test_server, user, password) != json!(401) {
        assert!(Instant::now() < deadline, "{}", test_server.process.printed());
    }
    let nowhere =
        Command::new(env!("CARGO_BIN_EXE_ginnel")).args(["credentials", "--state", "/nowhere"]).output();
    assert!(String::from_utf8_lossy(&nowhere.unwrap().stderr).contains("no state at /nowhere"));
}

#[test]
fn only_authenticated_clients_are_sent_to_an_alternate_server() {
    if !tools::have(&["python3"]) {
        return;
    }
    let test_server = TestServer::on_loopback("alternate_server = [\"127.0.0.1:9\"]");
    assert_eq!(
        (code(&test_server, USER, PASSWORD), code(&test_server, "nobody", "x")),
        (json!(300), json!(401))
    );
}
