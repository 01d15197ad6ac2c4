//! A client of RFC 8489's long-term credentials that shares no code with the server, and what it is refused.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::house::{House, PASSWORD, USER};
use crate::proc::{Proc, Stdout};
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

fn as_judge(verb: &str, house: &House) -> Value {
    report(&[verb, &house.address.to_string(), USER, PASSWORD])
}

/// The code that `user` gets when she asks for an allocation as browsers do.
fn code(house: &House, user: &str, password: &str) -> Value {
    report(&["try", &house.address.to_string(), user, password, "3"])
}

fn ginnel(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_ginnel")).args(arguments).output().unwrap();
    assert!(output.status.success(), "ginnel {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_foreign_client_gets_in_in_every_way_that_the_rfc_allows() {
    if !tools::have(&["python3"]) {
        return;
    }
    let house = House::on_loopback("");
    let expected = json!({
        "sha256": [200, "sha256"],
        "sha256 by hash": [200, "sha256"],
        "sha256 with fingerprint": [200, "sha256"],
        "md5 by choice": [200, "sha256"],
        "as browsers do": [200, "sha1"],
        "as browsers do, by hash": [200, "sha1"],
        "both attributes, no choice": [200, "sha1"],
    });
    assert_eq!(as_judge("right", &house), expected);
}

#[test]
fn a_foreign_attacker_who_bids_down_alters_or_guesses_is_refused() {
    if !tools::have(&["python3"]) {
        return;
    }
    let house = House::on_loopback("");
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
    assert_eq!(as_judge("attack", &house), expected);
}

#[test]
fn refusals_on_the_wire_have_one_code_and_one_length() {
    if !tools::have(&["python3"]) {
        return;
    }
    let refused = as_judge("refuse", &House::on_loopback(LONG_REALM));
    let refused: Vec<_> = refused.as_object().unwrap().values().collect();
    assert_eq!(refused, vec![&json!([401, 112]); 6]);
}

#[test]
fn a_bare_allocate_is_answered_with_less_than_three_times_its_length() {
    if !tools::have(&["python3"]) {
        return;
    }
    let sizes = report(&["sizes", &House::on_loopback(LONG_REALM).address.to_string()]);
    assert_eq!((&sizes["asked"], &sizes["answered"]), (&json!(20), &json!(112)), "3 * (20 + 28) - 28 = 116");
    assert_eq!(sizes["kinds"], json!(["0009", "0014", "0015", "8002"]));
}

#[test]
fn users_whom_only_an_http_server_knows_get_in_and_its_failures_are_silence() {
    if !tools::have(&["python3"]) {
        return;
    }
    let users = python(&["hook"]);
    let port: u16 = users.expect("port", SHORT, |line| line.strip_prefix("port ")?.parse().ok());
    let hook = format!("[auth.hook]\nurl = \"http://127.0.0.1:{port}/users\"\ndeadline_ms = 1000");
    let house = House::on_loopback(&hook);
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
        assert_eq!(code(&house, user, password), expected, "{user} {password}\n{}", house.server.printed());
    }
    let asked =
        |who: &str| users.lines(|line| line.starts_with(&format!("asked {who} ginnel")).then_some(())).len();
    assert_eq!((asked("known"), asked("nobody"), asked(USER)), (1, 1, 0), "{}", users.printed());
    assert!(asked("broken") > 1, "a failure is not remembered");
    let warnings = house.server.lines(|line| line.contains("users cannot be looked up").then_some(())).len();
    assert_eq!(warnings, 1, "once a minute: {}", house.server.printed());
}

#[test]
fn a_credentials_file_counts_as_it_is_now() {
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
    let house = House::on_loopback(&format!("[auth]\ncredentials_file = {path:?}"));
    assert_eq!((code(&house, "first", "secret"), code(&house, "second", "secret")), (json!(200), json!(401)));
    fs::write(&path, line("second")).unwrap();
    let deadline = Instant::now() + SHORT;
    while code(&house, "second", "secret") != json!(200) {
        assert!(Instant::now() < deadline, "{}", house.server.printed());
    }
    assert_eq!(code(&house, "first", "secret"), json!(401));
    fs::write(&path, "nonsense\n").unwrap();
    house.server.expect("a complaint about line 1", SHORT, |line| line.contains("line 1").then_some(()));
    assert_eq!(code(&house, "second", "secret"), json!(200));
}

#[test]
fn credentials_minted_on_the_command_line_work_until_they_end() {
    if !tools::have(&["python3"]) {
        return;
    }
    let house = House::on_loopback("");
    let state = house.state();
    let state = state.to_str().unwrap();
    for more in [&[][..], &["--sha256"]] {
        let arguments = [&["credentials", "--state", state, "--name", "guest", "--json"][..], more].concat();
        let minted: Value = serde_json::from_str(&ginnel(&arguments)).unwrap();
        let (user, password) = (minted["username"].as_str().unwrap(), minted["credential"].as_str().unwrap());
        assert_eq!(code(&house, user, password), json!(200));
        assert_eq!(code(&house, &user.replacen("17", "27", 1), password), json!(401));
    }
    let ice: Value = serde_json::from_str(&ginnel(&["credentials", "--state", state, "--ice"])).unwrap();
    assert!(ice["iceServers"][1]["username"].as_str().unwrap().ends_with(":guest"), "{ice}");
    let short = ginnel(&["credentials", "--state", state, "--ttl", "1"]);
    let (user, password) = short.split_once('\n').unwrap();
    let deadline = Instant::now() + SHORT;
    while code(&house, user, password) != json!(401) {
        assert!(Instant::now() < deadline, "{}", house.server.printed());
    }
    let nowhere =
        Command::new(env!("CARGO_BIN_EXE_ginnel")).args(["credentials", "--state", "/nowhere"]).output();
    assert!(String::from_utf8_lossy(&nowhere.unwrap().stderr).contains("no state at /nowhere"));
}

#[test]
fn a_server_that_sends_its_clients_elsewhere_says_so_to_those_it_knows() {
    if !tools::have(&["python3"]) {
        return;
    }
    let house = House::on_loopback("alternate_server = [\"127.0.0.1:9\"]");
    assert_eq!((code(&house, USER, PASSWORD), code(&house, "nobody", "x")), (json!(300), json!(401)));
}
