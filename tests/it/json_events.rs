//! The events of `--json`: each verb's are those of its file in `golden/`, and `docs/json-events.md` names them all.
//!
//! A file has one pattern for each type of event. In a pattern `text`, `number`, `flag`, `list` and `object` stand for values of that kind, with `?` for values
//! that may be null; anything else stands for itself. A verb is added by a file and a line in [`VERBS`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::proc::{Proc, Stdout};
use crate::test_server::TestServer;

const UP: Duration = Duration::from_secs(30);

/// Runs a verb, and returns its events.
type Run = fn(&Bench) -> Vec<Value>;

/// A verb with its file, how to run it, and the events that every run has.
const VERBS: &[(&str, Run, &[&str])] = &[
    ("listen", |bench| bench.pipe().0, &["ticket", "path", "closed"]),
    ("connect", |bench| bench.pipe().1, &["path", "closed"]),
    (
        "doctor",
        |bench| {
            bench.run(&["doctor", "--no-port-mapping", "--server", &bench.server.address.to_string()], true)
        },
        &["internet", "transports", "nat", "port_mapping", "server", "verdict"],
    ),
    ("ping", Bench::ping, &["pong"]),
    (
        "share",
        |bench| bench.forward().0,
        &["ticket", "sharing", "guest", "refused", "guest_listening", "guest_left"],
    ),
    ("forward", |bench| bench.forward().1, &["listening", "not_forwarded", "path", "closed"]),
    ("send", |bench| bench.transfer().0, &["ticket", "path", "done", "left_out"]),
    ("recv", |bench| bench.transfer().1, &["offer", "path", "done", "left_out"]),
    ("error", |bench| bench.run(&["connect", "agent:x"], false), &["error"]),
];

struct Bench {
    server: TestServer,
}

impl Bench {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
        command.args(arguments).arg("--json").env("AGENT_KEY", self.server.key());
        command.env_remove("AGENT_TICKET").env_remove("AGENT_CODE");
        command
    }

    /// Runs a command to its end.
    fn run(&self, arguments: &[&str], succeeds: bool) -> Vec<Value> {
        let mut run = Proc::start(arguments[0], self.command(arguments), Stdout::Lines);
        assert_eq!(run.wait(UP).success(), succeeds, "{}", run.printed());
        events(&run)
    }

    /// A folder with a file, and a link that is left out.
    fn transfer(&self) -> (Vec<Value>, Vec<Value>) {
        let (server, folder) = (self.server.address.to_string(), tempfile::tempdir().unwrap());
        let [from, to] = ["from", "to"].map(|name| folder.path().join(name).to_str().unwrap().to_owned());
        [&from, &to].iter().for_each(|path| fs::create_dir(path).unwrap());
        fs::write(format!("{from}/file"), "content").unwrap();
        std::os::unix::fs::symlink("/etc/hostname", format!("{from}/link")).unwrap();
        let with_state = |arguments: &[&str]| {
            let mut command = self.command(arguments);
            command.env("AGENT_STATE", folder.path().join(arguments[0]));
            Proc::start(arguments[0], command, Stdout::Lines)
        };
        let mut sender = with_state(&["send", &from, "--server", &server]);
        let mut receiver = with_state(&["recv", "--yes", "--to", &to, &ticket_of(&sender)]);
        sender.succeed(UP);
        receiver.succeed(UP);
        (events(&sender), events(&receiver))
    }

    /// Two pings of a listener.
    fn ping(&self) -> Vec<Value> {
        let server = self.server.address.to_string();
        let listener = Proc::start("listen", self.command(&["listen", "--server", &server]), Stdout::Lines);
        self.run(&["ping", &ticket_of(&listener), "-c", "2", "--no-until-direct"], true)
    }

    /// A service that is not there, and a reverse forwarding.
    fn forward(&self) -> (Vec<Value>, Vec<Value>) {
        let server = self.server.address.to_string();
        let options = ["share", "tcp", "1", "--name", "web", "--allow-reverse", "--server", &server];
        let share = Proc::start("share", self.command(&options), Stdout::Lines);
        let options = ["forward", "0:web", "-R", "0:localhost:1", &ticket_of(&share)];
        let forward = Proc::start("forward", self.command(&options), Stdout::Lines);
        let address = forward.expect("listening", UP, |line| {
            let event: Value = serde_json::from_str(line).ok()?;
            event["at"].as_str().filter(|_| event["to"] == "web").map(str::to_owned)
        });
        let client = std::net::TcpStream::connect(address).unwrap();
        for (process, word) in
            [(&share, "\"refused\""), (&forward, "\"not_forwarded\""), (&share, "\"guest\",")]
        {
            process.expect(word, UP, |line| line.contains(word).then_some(()));
        }
        drop(client);
        let end = |mut process: Proc, word: &str| {
            process.terminate();
            process.expect(word, UP, |line| line.contains(word).then_some(()));
            assert_eq!(process.wait(UP).code(), Some(130), "{}", process.printed());
            events(&process)
        };
        let forwarded = end(forward, "\"closed\"");
        (end(share, "\"guest_left\""), forwarded)
    }

    /// A line in each direction between `listen` and `connect`.
    fn pipe(&self) -> (Vec<Value>, Vec<Value>) {
        let server = self.server.address.to_string();
        let mut listener =
            Proc::start("listen", self.command(&["listen", "--server", &server]), Stdout::Pipe);
        let (mut to_listener, _from_listener) = listener.take_pipes();
        let ticket = ticket_of(&listener);
        let mut connector = Proc::start("connect", self.command(&["connect", &ticket]), Stdout::Pipe);
        let (mut to_connector, _from_connector) = connector.take_pipes();
        for (input, process) in [(&mut to_listener, &listener), (&mut to_connector, &connector)] {
            process.expect("path", UP, |line| line.contains("\"path\"").then_some(()));
            input.write_all(b"hello\n").unwrap();
        }
        drop((to_listener, to_connector));
        listener.succeed(UP);
        connector.succeed(UP);
        (events(&listener), events(&connector))
    }
}

fn ticket_of(listener: &Proc) -> String {
    listener.expect("ticket", UP, |line| {
        let event: Value = serde_json::from_str(line).ok()?;
        event["ticket"].as_str().map(str::to_owned)
    })
}

fn events(process: &Proc) -> Vec<Value> {
    process.lines(|line| {
        // Standard error has nothing else.
        let event = serde_json::from_str(line);
        Some(event.unwrap_or_else(|error| panic!("{error}: {line}")))
    })
}

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Returns whether a value is one of the pattern.
fn matches(pattern: &Value, value: &Value) -> bool {
    match (pattern, value) {
        (Value::Object(pattern), Value::Object(value)) => {
            pattern.len() == value.len()
                && pattern
                    .iter()
                    .all(|(key, pattern)| value.get(key).is_some_and(|value| matches(pattern, value)))
        }
        (Value::String(word), value) => {
            let (kind, may_be_null) =
                word.strip_suffix('?').map_or((word.as_str(), false), |kind| (kind, true));
            let is_kind = match kind {
                "text" => value.is_string(),
                "number" => value.is_number(),
                "flag" => value.is_boolean(),
                "list" => value.is_array(),
                "object" => value.is_object(),
                _ => value == pattern,
            };
            is_kind || may_be_null && value.is_null()
        }
        (pattern, value) => pattern == value,
    }
}

fn patterns(verb: &str) -> BTreeMap<String, Map<String, Value>> {
    let path = folder("tests/it/golden").join(format!("{verb}.json"));
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn each_verb_reports_the_events_of_its_file() {
    let bench = Bench { server: TestServer::on_loopback("") };
    for (verb, run, expected) in VERBS {
        let (patterns, found) = (patterns(verb), run(&bench));
        for event in &found {
            let kind = event["t"].as_str().unwrap();
            assert_eq!(event["v"], 1, "{verb}: {event}");
            let pattern = patterns.get(kind).unwrap_or_else(|| panic!("{verb}: no pattern for {event}"));
            assert!(matches(&Value::Object(pattern.clone()), event), "{verb}: {event}\nis not {pattern:?}");
        }
        let kinds: BTreeSet<&str> = found.iter().filter_map(|event| event["t"].as_str()).collect();
        assert!(
            expected.iter().all(|kind| kinds.contains(kind)),
            "{verb}: {kinds:?} lacks one of {expected:?}"
        );
    }
}

#[test]
fn the_page_names_every_event_and_field() {
    let page = fs::read_to_string(folder("docs/json-events.md")).unwrap();
    let mut missing = BTreeSet::new();
    for file in fs::read_dir(folder("tests/it/golden")).unwrap() {
        let path = file.unwrap().path();
        for (kind, fields) in patterns(path.file_stem().unwrap().to_str().unwrap()) {
            let names = std::iter::once(&kind).chain(fields.keys());
            missing.extend(names.filter(|name| !page.contains(&format!("`{name}`"))).cloned());
        }
    }
    assert!(missing.is_empty(), "docs/json-events.md does not name {missing:?}");
}

#[test]
fn a_pattern_has_the_kinds_of_values() {
    let pattern = serde_json::json!({"v": 1, "t": "x", "a": "text", "b": "number?", "c": {"d": "flag"}});
    let with = |b: Value, d: Value| serde_json::json!({"v": 1, "t": "x", "a": "any", "b": b, "c": {"d": d}});
    assert!(matches(&pattern, &with(Value::Null, true.into())));
    assert!(matches(&pattern, &with(7.into(), false.into())));
    assert!(!matches(&pattern, &with("7".into(), false.into())));
    assert!(!matches(&pattern, &with(7.into(), Value::Null)));
    assert!(!matches(&pattern, &serde_json::json!({"v": 1, "t": "x"})));
}
