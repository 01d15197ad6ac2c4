//! The messaging commands of `agent`, against a running server: with another agent, with a client of the TCP protocol, and with files that
//! were changed.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{CHEAP, Messaging};
use crate::authority::Authority;
use crate::proc::{Proc, Stdout};
use crate::test_server::{Lines, TestServer, free_ports};

const UP: Duration = Duration::from_secs(60);
/// The exit code for something that was refused.
const REFUSED: i32 = 4;

/// A machine: the accounts of one user.
pub(super) struct Home {
    folder: TempDir,
    pub(super) server: String,
}

/// What a command printed.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) code: Option<i32>,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Home {
    pub(super) fn new(server: &Messaging) -> Self {
        Self::at(format!("ws://{}", server.server.address))
    }

    pub(super) fn at(server: String) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), server }
    }

    /// A machine on which the user is registered.
    pub(super) fn registered(server: &Messaging, user: &str) -> Self {
        let home = Self::new(server);
        let run = home.ok(&["login", &home.server, user]);
        assert!(run.stderr.contains("registered") && run.stdout.is_empty(), "{run:?}");
        home
    }

    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
        command.args(arguments).env("AGENT_STATE", self.folder.path());
        command
    }

    fn run_with(&self, arguments: &[&str], stdin: &str, stdout: Stdio) -> Run {
        let mut command = self.command(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
        // A command that does not read it has ended before.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        let output = child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Run { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    pub(super) fn run(&self, arguments: &[&str]) -> Run {
        self.run_with(arguments, "", Stdio::piped())
    }

    #[track_caller]
    pub(super) fn ok(&self, arguments: &[&str]) -> Run {
        let run = self.run(arguments);
        assert_eq!(run.code, Some(0), "{arguments:?}: {run:?}");
        run
    }

    #[track_caller]
    fn refused(&self, arguments: &[&str], text: &str) {
        let run = self.run(arguments);
        assert_eq!(run.code, Some(REFUSED), "{arguments:?}: {run:?}");
        assert!(run.stderr.contains(text), "{arguments:?}: {run:?}");
    }

    pub(super) fn inbox(&self) -> Run {
        self.ok(&["inbox"])
    }

    /// The fingerprint that the machine shows of its own account.
    fn fingerprint(&self) -> String {
        let own = self.ok(&["devices"]).stdout;
        own.lines().next().unwrap().split_once("  ").unwrap().1.to_owned()
    }

    /// A file of the only account.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        fn find(folder: &Path, name: &str) -> Option<PathBuf> {
            let mut paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
            paths.find_map(|path| match path.is_dir() {
                true => find(&path, name),
                false => path.ends_with(name).then_some(path),
            })
        }
        find(self.folder.path(), name).unwrap()
    }
}

fn server() -> Messaging {
    Messaging::start(CHEAP)
}

#[test]
fn two_agents_exchange_messages_while_one_of_them_is_offline() {
    let server = server();
    let (alice, bob) = (Home::registered(&server, "alice"), Home::registered(&server, "bob"));
    let stored = alice.ok(&["msg", "bob", "deploy", "is", "green"]);
    assert!(stored.stderr.contains("Stored   for bob · encrypted to 1 device"), "{stored:?}");
    let piped = alice.run_with(&["msg", "bob"], "one\ntwo\n", Stdio::piped());
    assert_eq!(piped.code, Some(0), "{piped:?}");
    let inbox = bob.inbox();
    let lines: Vec<_> = inbox.stdout.lines().collect();
    assert!(
        lines[0].ends_with("Z  alice  deploy is green") || lines[0].ends_with("  alice  deploy is green")
    );
    assert!(lines[1].ends_with("  alice  one") && lines[2] == "    two", "{inbox:?}");
    assert!(inbox.stderr.contains("New key  of alice: "), "{inbox:?}");
    assert!(inbox.stderr.contains(&alice.fingerprint()), "{inbox:?}");
    let again = bob.inbox();
    assert!(again.stdout.is_empty() && again.stderr.contains("no new messages"), "{again:?}");
    let receipts = alice.ok(&["inbox", "--json"]);
    let events: Vec<Value> =
        receipts.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let delivered = events.iter().filter(|event| event["t"] == "receipt" && event["state"] == "delivered");
    assert_eq!(delivered.count(), 2, "{receipts:?}");
}

#[test]
fn a_message_that_was_not_shown_is_not_lost() {
    let server = server();
    let (alice, bob) = (Home::registered(&server, "alice"), Home::registered(&server, "bob"));
    alice.ok(&["msg", "bob", "important"]);
    let full = File::options().write(true).open("/dev/full").unwrap();
    let failed = bob.run_with(&["inbox"], "", full.into());
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert!(alice.inbox().stderr.contains("no new messages"), "no receipt before it is shown");
    assert!(bob.inbox().stdout.ends_with("  alice  important\n"));
    assert!(alice.inbox().stderr.contains("Delivered to bob"));
}

#[test]
fn an_agent_follows_its_inbox_while_another_command_of_the_account_sends() {
    let server = server();
    let (alice, bob) = (Home::registered(&server, "alice"), Home::registered(&server, "bob"));
    let follower = Proc::start("bob's inbox", bob.command(&["inbox", "--follow"]), Stdout::Lines);
    let waited = alice.ok(&["msg", "bob", "hello", "--wait=60"]);
    assert!(waited.stderr.contains("Delivered to bob"), "{waited:?}");
    follower.expect("the message", UP, |line| line.ends_with("  alice  hello").then_some(()));
    bob.ok(&["msg", "alice", "hi"]);
    let second = bob.run(&["inbox"]);
    assert_eq!(second.code, Some(REFUSED), "{second:?}");
    assert!(alice.inbox().stdout.ends_with("  bob  hi\n"));
    follower.expect("the receipt", UP, |line| line.starts_with("Delivered to alice").then_some(()));
    // The receipt is written down for the command that waits.
    let waiting =
        Proc::start("bob waits", bob.command(&["msg", "alice", "again", "--wait=60"]), Stdout::Lines);
    waiting.expect("its storage", UP, |line| line.starts_with("Stored").then_some(()));
    assert!(alice.inbox().stdout.ends_with("  bob  again\n"));
    waiting.expect("its delivery", UP, |line| line.starts_with("Delivered").then_some(()));
}

#[test]
fn an_agent_that_follows_its_inbox_outlives_a_restart_of_the_server() {
    let mut server = server();
    let (alice, bob) = (Home::registered(&server, "alice"), Home::registered(&server, "bob"));
    let follower = Proc::start("bob's inbox", bob.command(&["inbox", "--follow"]), Stdout::Lines);
    alice.ok(&["msg", "bob", "before", "--wait=60"]);
    server.server.restart();
    follower.expect("the loss", UP, |line| line.contains("connection lost").then_some(()));
    alice.ok(&["msg", "bob", "after"]);
    follower.expect("the message", UP, |line| line.ends_with("  alice  after").then_some(()));
    let shown = follower.lines(|line| line.ends_with("  alice  before").then_some(()));
    assert_eq!(shown.len(), 1, "{}", follower.printed());
}

#[test]
fn an_identity_key_that_has_changed_is_refused_until_the_user_trusts_it() {
    let server = server();
    let (alice, bob) = (Home::registered(&server, "alice"), Home::registered(&server, "bob"));
    let fingerprint = bob.fingerprint();
    assert_eq!(alice.ok(&["devices", "bob"]).stdout.lines().next(), Some(&*format!("bob  {fingerprint}")));
    // As if alice had seen another key before, which the server has replaced.
    let state = alice.file("state.json");
    let text = fs::read_to_string(&state).unwrap();
    fs::write(&state, text.replace(&fingerprint, "0123 ".repeat(8).trim_end())).unwrap();
    alice.refused(&["msg", "bob", "hello"], "the identity key has changed: it was 0123");
    alice.refused(&["devices", "bob"], "agent devices trust");
    bob.ok(&["msg", "alice", "hi"]);
    let inbox = alice.run(&["inbox"]);
    assert_eq!(inbox.code, Some(REFUSED), "{inbox:?}");
    assert!(inbox.stdout.is_empty() && inbox.stderr.contains("Refused  a message in the name of bob"));
    let words: Vec<&str> = fingerprint.split(' ').collect();
    alice.ok(&[&["devices", "trust", "bob"], &words[..]].concat());
    alice.ok(&["msg", "bob", "hello"]);
    assert!(bob.inbox().stdout.ends_with("  alice  hello\n"));
    // A server that says that bob has no keys any more is not believed either.
    let lost = fs::read_to_string(&state).unwrap().replace("user:bob", "user:carl");
    fs::write(&state, lost).unwrap();
    let _carl = server.user("carl");
    alice.refused(&["msg", "carl", "hello"], "the server denies its keys");
}

#[test]
fn a_second_device_is_linked_and_removed() {
    let server = server();
    let (alice, laptop) = (Home::registered(&server, "alice"), Home::registered(&server, "bob"));
    let phone = Home::new(&server);
    let requested = phone.ok(&["devices", "request", &phone.server, "bob", "--label", "phone", "--json"]);
    let code: Value = serde_json::from_str(&requested.stderr).unwrap();
    phone.refused(&["login", &phone.server, "bob"], "agent devices request");
    let added = laptop.ok(&["devices", "add", code["code"].as_str().unwrap()]);
    assert!(added.stderr.contains("Added    phone"), "{added:?}");
    let login = phone.ok(&["login", &phone.server, "bob"]);
    assert!(login.stderr.contains(&laptop.fingerprint()), "{login:?}");
    let stored = alice.ok(&["msg", "bob", "to both"]);
    assert!(stored.stderr.contains("encrypted to 2 devices"), "{stored:?}");
    for device in [&laptop, &phone] {
        assert!(device.inbox().stdout.ends_with("  alice  to both\n"));
    }
    phone.ok(&["msg", "bob", "a note to myself"]);
    assert!(laptop.inbox().stdout.ends_with("  bob  a note to myself\n"));
    phone.ok(&["msg", "alice", "from the phone"]);
    let copy = laptop.inbox();
    assert!(copy.stdout.ends_with("  (sent) to alice  from the phone\n"), "{copy:?}");
    assert!(!phone.inbox().stderr.contains("copy-"), "no receipts for copies");
    let devices = laptop.ok(&["devices"]).stdout;
    let number = devices.lines().find(|line| line.ends_with("  phone")).unwrap().split_whitespace().next();
    phone.refused(&["devices", "remove", "1"], "does not have the account's identity key");
    laptop.ok(&["devices", "remove", number.unwrap()]);
    assert!(!laptop.ok(&["devices"]).stdout.contains("phone"));
    phone.refused(&["inbox"], "the server refused");
    // What it has sent before is not lost.
    let inbox = alice.inbox();
    assert!(inbox.stdout.ends_with("  bob (from a device that was removed)  from the phone\n"), "{inbox:?}");
    laptop.ok(&["devices", "rename", "2", "lap top"]);
    assert!(laptop.ok(&["devices"]).stdout.contains("  lap top  (this device)\n"));
    // Added again it has another mailbox.
    laptop.ok(&["devices", "add", code["code"].as_str().unwrap()]);
    let inbox = phone.inbox();
    assert!(inbox.stderr.contains("another mailbox"), "{inbox:?}");
    let devices = laptop.ok(&["devices"]).stdout;
    let own = devices.lines().find(|line| line.ends_with("(this device)")).unwrap();
    let run = laptop.run(&["devices", "remove", own.split_whitespace().next().unwrap()]);
    assert!(run.code == Some(2) && run.stderr.contains("the device that you use"), "{run:?}");
}

#[test]
fn a_refused_registration_and_an_unreachable_address_leave_nothing_in_the_way() {
    let server = server();
    let (laptop, phone) = (Home::registered(&server, "alice"), Home::new(&server));
    phone.refused(&["login", &phone.server, "alice"], "taken");
    let request = phone.ok(&["devices", "request", &phone.server, "alice", "--json"]);
    let code: Value = serde_json::from_str(request.stderr.lines().last().unwrap()).unwrap();
    laptop.ok(&["devices", "add", code["code"].as_str().unwrap()]);
    let login = phone.ok(&["login", &phone.server, "alice"]);
    assert!(login.stderr.contains(&laptop.fingerprint()), "{login:?}");
    // With TLS first, whose certificate is not trusted.
    let dora = Home::new(&server);
    let host = server.server.address.to_string();
    assert_eq!(dora.run(&["login", &host, "dora"]).code, Some(5));
    dora.ok(&["login", &dora.server, "dora"]);
    let password = dora.run(&["login", &dora.server, "dora", "--password"]);
    assert!(password.code == Some(2) && password.stderr.contains("agent password"), "{password:?}");
}

#[test]
fn a_mistyped_fingerprint_replaces_nothing() {
    let server = server();
    let (alice, bob) = (Home::registered(&server, "alice"), Home::registered(&server, "bob"));
    alice.ok(&["devices", "bob"]);
    let wrong = "0000 1111 2222 3333 4444 5555 6666 7777";
    assert_eq!(alice.run(&["devices", "trust", "bob", wrong]).code, Some(REFUSED));
    alice.ok(&["msg", "bob", "hello"]);
    assert!(bob.inbox().stdout.ends_with("  alice  hello\n"));
    alice.ok(&["devices", "trust", "bob", &bob.fingerprint()]);
    let own = alice.run(&["devices", "trust", "alice", wrong]);
    assert!(own.code == Some(2) && own.stderr.contains("your own account"), "{own:?}");
}

#[test]
fn a_user_of_the_tcp_protocol_and_an_agent_reach_each_other_without_encryption() {
    let server = server();
    let alice = Home::registered(&server, "alice");
    let mut carl = server.user("carl");
    alice.refused(&["msg", "carl", "hello", "--encrypted-only"], "reads no encrypted messages");
    let stored = alice.ok(&["msg", "carl", "hello"]);
    assert!(stored.stderr.contains("NOT ENCRYPTED"), "{stored:?}");
    let (cmd, _, _, data) = carl.frame();
    let pushed: Value = serde_json::from_slice(&data).unwrap();
    assert_eq!((cmd, &pushed[0]["from"], &pushed[0]["msg"]), (201, &json!("alice"), &json!("hello")));
    let text = "\u{1b}[2Jevil\nbob: I am bob";
    carl.send(200, "m1", json!({"to": "alice", "msg": text}).to_string().as_bytes());
    let (cmd, _, _, data) = carl.frame();
    assert_eq!((cmd, data.len()), (200, 0));
    let inbox = alice.inbox();
    assert!(
        inbox.stdout.contains("  carl (NOT ENCRYPTED)  \\u{1b}[2Jevil\n    bob: I am bob\n"),
        "{inbox:?}"
    );
    let devices = alice.ok(&["devices", "carl"]);
    assert!(devices.stdout.contains("NOT ENCRYPTED"), "{devices:?}");
}

#[test]
fn an_account_with_a_password_gets_keys_inside_tls_only() {
    let authority = Authority::new();
    let turn = format!("[messaging]\nenabled = true\nport = {}\n{CHEAP}\n", free_ports());
    let server = TestServer::with_tls(Lines { top: "workers = 1", turn: &turn }, Some(&authority));
    let root = authority.root();
    let plain = Home::at(format!("ws://{}", server.address));
    fs::write(plain.folder.path().join("password"), "secret\n").unwrap();
    let file = plain.folder.path().join("password").to_str().unwrap().to_owned();
    let refused = plain.run(&["login", &plain.server, "alice", "--password-file", &file]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    let secure = Home::at(server.address.to_string());
    let untrusted = secure.run(&["login", &secure.server, "alice"]);
    assert!(untrusted.code == Some(5) && untrusted.stderr.contains("--ca FILE"), "{untrusted:?}");
    let ca = root.to_str().unwrap();
    secure.ok(&["login", &secure.server, "alice", "--ca", ca, "--password-file", &file]);
    let bob = Home::at(server.address.to_string());
    bob.ok(&["login", &bob.server, "bob", "--ca", ca]);
    bob.ok(&["msg", "alice", "hello"]);
    assert!(secure.inbox().stdout.ends_with("  bob  hello\n"));
    fs::write(&file, "another secret\n").unwrap();
    let set = secure.ok(&["password", "--password-file", &file]);
    assert!(set.stderr.contains("Password set"), "{set:?}");
    let other = Home::at(server.address.to_string());
    other.refused(
        &["login", &other.server, "alice", "--ca", ca, "--password-file", &file],
        "the account has keys already",
    );
    fs::write(&file, "secret\n").unwrap();
    other.refused(
        &["login", &other.server, "alice", "--ca", ca, "--password-file", &file],
        "the account, the key or the password is wrong",
    );
    other.refused(&["login", &other.server, "alice", "--ca", ca], "taken");
}

#[test]
fn contacts_are_listed_and_mistakes_are_explained() {
    let server = server();
    let nobody = Home::new(&server);
    let run = nobody.run(&["msg", "bob", "hello"]);
    assert!(run.code == Some(2) && run.stderr.contains("agent login SERVER USER"), "{run:?}");
    let (alice, bob) = (Home::registered(&server, "alice"), Home::registered(&server, "bob"));
    let unknown = alice.run(&["msg", "nobody", "hello"]);
    assert!(unknown.code == Some(3) && unknown.stderr.contains("there is no nobody"), "{unknown:?}");
    let empty = alice.run(&["msg", "bob"]);
    assert!(empty.code == Some(2) && empty.stderr.contains("empty"), "{empty:?}");
    let empty = alice.run(&["msg", "bob", ""]);
    assert!(empty.code == Some(2) && empty.stderr.contains("empty"), "{empty:?}");
    let long = alice.run_with(&["msg", "bob"], &"x".repeat(70_000), Stdio::piped());
    assert!(long.code == Some(2) && long.stderr.contains("at most 64000 bytes"), "{long:?}");
    let label = nobody.run(&["login", &nobody.server, "lab", "--label", "x\u{1b}[31m"]);
    assert!(label.code == Some(2) && label.stderr.contains("no control characters"), "{label:?}");
    let no_certificate = alice.file("account.json");
    let ca = nobody.run(&["login", &nobody.server, "lab", "--ca", no_certificate.to_str().unwrap()]);
    assert!(ca.code == Some(2) && ca.stderr.contains("no certificate"), "{ca:?}");
    let account = alice.run(&["inbox", "--account", "nobody@ws://nowhere"]);
    assert!(
        account.code == Some(2) && account.stderr.contains("no account nobody@ws://nowhere"),
        "{account:?}"
    );
    let added = alice.run(&["contacts", "add", "nobody"]);
    assert!(added.code == Some(3) && added.stderr.contains("there is no nobody"), "{added:?}");
    assert_eq!(alice.ok(&["contacts"]).stdout, "");
    assert!(alice.ok(&["contacts", "add", "bob"]).stderr.ends_with("Added    bob\n"));
    bob.ok(&["contacts", "add", "alice"]);
    assert_eq!(alice.ok(&["contacts"]).stdout, "offline  bob\n");
    let follower = Proc::start("bob's inbox", bob.command(&["inbox", "--follow"]), Stdout::Lines);
    alice.ok(&["msg", "bob", "hello", "--wait=60"]);
    assert_eq!(alice.ok(&["contacts"]).stdout, "online   bob\n");
    drop(follower);
    assert_eq!(alice.ok(&["contacts", "remove", "bob"]).stderr, "Removed  bob\n");
    assert_eq!(alice.ok(&["contacts"]).stdout, "");
    // The second account of this machine, and the first one by its name.
    alice.ok(&["login", &alice.server, "carl"]);
    let account = format!("alice@{}", server.server.address);
    assert!(alice.ok(&["devices"]).stdout.starts_with("carl  "));
    assert!(alice.ok(&["devices", "--account", &account]).stdout.starts_with("alice  "));
    assert!(alice.ok(&["login", &alice.server, "alice"]).stderr.contains("logged in"));
    assert!(alice.ok(&["devices"]).stdout.starts_with("alice  "));
}

#[test]
fn an_inbox_that_cannot_remember_what_it_has_shown_says_why() {
    let server = server();
    let (alice, bob) = (Home::registered(&server, "alice"), Home::registered(&server, "bob"));
    alice.ok(&["msg", "bob", "hello"]);
    assert!(bob.inbox().stdout.ends_with("hello\n"));
    alice.ok(&["msg", "bob", "again"]);
    // In place of the file that is replaced: also who may do anything cannot write it.
    let state = bob.file("state.json");
    let text = fs::read_to_string(&state).unwrap();
    let lock = state.with_file_name("state.lock");
    fs::remove_file(&lock).unwrap();
    fs::create_dir(&lock).unwrap();
    let run = bob.run(&["inbox"]);
    assert!(run.code == Some(1) && run.stderr.contains("state.lock"), "{run:?}");
    fs::remove_dir(&lock).unwrap();
    assert_eq!(fs::read_to_string(&state).unwrap(), text);
    assert!(bob.inbox().stdout.ends_with("again\n"), "it comes again");
}

/// Forwards connections to a server, and cuts the first ones when their client asks for something after its login.
fn cutting_proxy(server: SocketAddr, cuts: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for (number, client) in listener.incoming().enumerate() {
            let (mut client, mut server) = (client.unwrap(), TcpStream::connect(server).unwrap());
            let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            std::thread::spawn(move || {
                let mut buffer = [0; 65_536];
                // The upgrade to a WebSocket, the login, and then the first question.
                for read in 1.. {
                    let length = client.read(&mut buffer).unwrap_or(0);
                    if length == 0
                        || (number < cuts && read == 3)
                        || server.write_all(&buffer[..length]).is_err()
                    {
                        break;
                    }
                }
                let _ = client.shutdown(std::net::Shutdown::Both);
                let _ = server.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    address
}

#[test]
fn a_message_over_a_connection_that_is_cut_after_the_login_is_sent_again_and_the_user_is_told() {
    let server = server();
    let bob = Home::registered(&server, "bob");
    let alice = Home::at(format!("ws://{}", cutting_proxy(server.server.address, 3)));
    // The registration is the first of the connections, and asks for nothing after it.
    alice.ok(&["login", &alice.server, "alice"]);
    let sent = alice.ok(&["msg", "bob", "hello"]);
    assert_eq!(sent.stderr.matches("connection lost, trying again").count(), 2, "{sent:?}");
    assert!(sent.stderr.contains("Stored   for bob"), "{sent:?}");
    assert_eq!(bob.inbox().stdout.lines().count(), 1);
}
