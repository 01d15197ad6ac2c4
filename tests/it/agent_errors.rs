//! Real runs of `agent` give the errors of the table in `docs/agent.md`; those that no test here can cause are listed with the reason.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use ginnel::agent::Ticket;
use serde_json::Value;

use crate::admission::{bearer, http};
use crate::error_table::{Row, rows_of_the_code};
use crate::proc::{Proc, Stdout};
use crate::test_server::TestServer;

const UP: Duration = Duration::from_secs(40);
/// Runs at the same time; most of them only wait.
const WORKERS: usize = 5;

/// Why refusals of accounts and messages are not caused here.
const REFUSAL: &str =
    "an answer about an account or message; `messaging::agents` and `messaging::websocket` have them";

/// Why errors of `share`, `forward` and `socks` are not caused here.
const FORWARDING: &str = "the tests of forwarding have it";

/// Rows that are not caused here: stage, code, the beginning of the hint, and why.
const NOT_HERE: &[(&str, &str, &str, &str)] = &[
    ("usage", "interrupted", "", "a signal ends the command without a report"),
    ("usage", "usage", "the same command again", "the same"),
    ("usage", "usage", "--state DIR", "a user without a home"),
    ("usage", "usage", "agent login SERVER USER", "`messaging::agents` has it"),
    ("usage", "usage", "agent password", "`messaging::agents` has it"),
    ("server", "timed_out", "is the gateway up", "needs a host that answers nothing at all"),
    ("local", "local", "run it again with", "a fault of this program"),
    ("signal", "refused", "try again later", "the server must be full"),
    (
        "signal",
        "refused",
        "run `agent listen` again",
        "a server that lost its state in the middle of a session",
    ),
    ("code", "spent_code", "", "a connector that is faster than another; `short_codes` has it"),
    ("code", "wrong_code", "", "`short_codes` has it"),
    ("connection", "revoked", "", "`short_codes` has it"),
    ("signal", "replaced", "", "two listeners never have the same secret of a tag"),
    ("handshake", "", "", "needs a server that attacks, as the unit tests of `agent::quic` have it"),
    ("connection", "relay_lost", "", "takes a minute; `outages` and `sessions` have it"),
    (
        "path",
        "no_path",
        "leave out --no-relay: the",
        "needs two networks without a direct path; `paths` has it",
    ),
    ("path", "no_path", "give the other side the key", "the same"),
    ("path", "no_path", "give this side the key", "the same"),
    ("path", "no_path", "is the server's port 3478 open", "needs two networks without a direct path"),
    ("server", "taken", "", "`share` waits for the id"),
    ("signal", "timed_out", "try again; is the gateway", "needs a gateway under load"),
    ("server", "impostor", "", "needs a gateway with the key of another; `gateway::handshakes` has it"),
    (
        "connection",
        "lost",
        "",
        "a connection that breaks at the right moment; `gateway_agents` and `messaging::agents` have it",
    ),
    ("connection", "peer_ended", "read what `agent share`", "the same"),
    ("local", "local", "another address or port", "a local port that is taken; `gateway_agents` has it"),
    ("forward", "", "", FORWARDING),
    ("local", "local", "a port above 1023", FORWARDING),
    ("local", "local", "an address of this host", FORWARDING),
    ("local", "local", "another port or path", FORWARDING),
    ("usage", "usage", "--allow-reverse=", FORWARDING),
    ("usage", "usage", "a second `agent share`", FORWARDING),
    ("usage", "usage", "agent forward", FORWARDING),
    ("usage", "usage", "agent share", FORWARDING),
    ("usage", "usage", "agent socks", FORWARDING),
    ("usage", "usage", "one --name NAME", FORWARDING),
    ("server", "protocol", "", "needs a server of another version"),
    (
        "server",
        "timed_out",
        "it may be stored",
        "needs a server that stops in the middle; `messaging::agents` has it",
    ),
    ("delivery", "timed_out", "", "`messaging::agents` has it"),
    ("server", "not_enabled", "", "`messaging::agents` has it"),
    ("server", "certificate", "", "`messaging::agents` has it"),
    ("server", "replaced", "", "`messaging::agents` has it"),
    ("server", "device_removed", "", "`messaging::agents` has it"),
    ("server", "not_found", "", REFUSAL),
    ("server", "name_taken", "", REFUSAL),
    ("local", "disk_full", "make room", "a file system of its own"),
    ("local", "state", "--state FOLDER", "a folder that cannot be written; tests run as root"),
    ("local", "write", "agent recv --to FOLDER", "the same"),
    ("transfer", "disk_full", "", "a file system of its own"),
    ("transfer", "write", "", "a folder that cannot be written; tests run as root"),
    (
        "transfer",
        "incomplete",
        "",
        "a file that changes while it is read; `file_transfer::transfer_tests` has it",
    ),
    ("transfer", "busy", "", "two receivers at the same moment"),
    ("transfer", "declined", "", "a terminal on which somebody answers no"),
    ("transfer", "other_transfer", "", "a sender that has changed what it sends"),
    ("transfer", "protocol", "", "a peer that breaks the rules; `file_transfer::transfer_tests` has it"),
    ("transfer", "wrong_hash", "", "a peer that lies; `file_transfer::transfer_tests` has it"),
    ("server", "wrong_credentials", "", REFUSAL),
    ("server", "registration_closed", "", REFUSAL),
    ("server", "mailbox_full", "", REFUSAL),
    ("server", "sender_share_full", "", REFUSAL),
    ("server", "storage_full", "", REFUSAL),
    ("server", "contacts_only", "", REFUSAL),
    ("server", "too_many_devices", "", REFUSAL),
    ("server", "contact_exists", "", REFUSAL),
    ("server", "no_device", "", REFUSAL),
    ("server", "refused", "try again later", REFUSAL),
    ("server", "unreachable", "is the name right, `ginnel serve` running there, and TCP 3478 open?", REFUSAL),
    ("usage", "tls_required", "", "`messaging::agents` has it"),
    ("usage", "too_long", "", "`messaging::agents` has it"),
    ("trust", "", "", "a server that lies; `messaging::agents` has them"),
    ("local", "no_identity", "", "`messaging::agents` has it"),
    ("local", "busy", "", "two commands at the same moment; `messaging::agents` has it"),
    ("local", "local", "another folder", "a folder that cannot be written; `messaging::agents` has it"),
    ("usage", "usage", "leave out --message", "`messaging::agents` has it"),
    ("usage", "usage", "--account USER@SERVER", "`messaging::agents` has it"),
    ("usage", "usage", "agent devices", "`messaging::agents` has it"),
];

/// What the runs share.
struct Bench {
    /// It relays to nobody on this host, and has no gateway.
    server: TestServer,
    gateway: TestServer,
    folder: tempfile::TempDir,
    found: Mutex<BTreeSet<Row>>,
}

impl Bench {
    fn new() -> Self {
        Self {
            server: TestServer::on_loopback("[gateway]\nenabled = false\n"),
            gateway: TestServer::on_loopback("[gateway]\nrequire_token = true\n"),
            folder: tempfile::tempdir().unwrap(),
            found: Mutex::default(),
        }
    }

    fn command(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
        for name in
            ["AGENT_KEY", "AGENT_TICKET", "AGENT_CODE", "AGENT_GATEWAY_TOKEN", "ALL_PROXY", "HTTPS_PROXY"]
        {
            command.env_remove(name);
        }
        command.args(arguments).arg("--json").env("AGENT_STATE", self.folder.path().join("state"));
        command.envs(environment.iter().copied());
        command
    }

    fn start(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Proc {
        Proc::start(arguments[0], self.command(arguments, environment), Stdout::Lines)
    }

    /// Runs a command to its end, which is an error; records it.
    fn fails(&self, arguments: &[&str], environment: &[(&str, &str)]) {
        let run = self.start(arguments, environment);
        self.record(run);
    }

    fn record(&self, mut run: Proc) {
        let status = run.wait(UP);
        let events = run.lines(|line| serde_json::from_str::<Value>(line).ok());
        let event = events.iter().find(|event| event["t"] == "error");
        let event = event.unwrap_or_else(|| panic!("no error: {status} {}", run.printed()));
        let text =
            |name: &str| event[name].as_str().unwrap_or_else(|| panic!("no {name}: {event}")).to_owned();
        assert!(!text("what").is_empty(), "{event}");
        let exit_code = u8::try_from(status.code().unwrap()).unwrap();
        let row = Row { exit_code, stage: text("stage"), code: text("code"), hint: text("hint") };
        self.found.lock().unwrap().insert(row);
    }

    /// Starts a listener; returns its ticket.
    fn listener(&self, key: &str, options: &[&str]) -> (Proc, Ticket) {
        let server = self.server.address.to_string();
        let arguments = [&["listen", "--server", &server][..], options].concat();
        let listener = self.start(&arguments, &[("AGENT_KEY", key)]);
        let ticket = listener.expect("ticket", UP, |line| {
            let event: Value = serde_json::from_str(line).ok()?;
            event["ticket"].as_str().map(str::to_owned)
        });
        (listener, ticket.parse().unwrap())
    }
}

fn usage(bench: &Bench) {
    let ticket = Ticket::new("turn.invalid".parse().unwrap(), "tag", [7; 16]).to_string();
    let gateway = ["connect", "--gateway", "127.0.0.1:1", "--id", "7"];
    let share = ["share", "--gateway", "127.0.0.1:1", "--id", "7", "--to", "1"];
    let none = "/nonexistent";
    for (arguments, environment) in [
        (&["listen"][..], &[][..]),
        (&["doctor"], &[]),
        (&["connect"], &[]),
        (&["connect", &ticket, "--ticket-file", none], &[]),
        (&["connect", "agent:x"], &[]),
        (&["connect", "gt_x"], &[]),
        (&["connect", "7-crater-x"], &[]),
        (&["connect", "7-crater-violin"], &[]),
        (&["ping", "7-crater-violin"], &[]),
        (&["connect", "--code-fd", "99"], &[]),
        (&["connect"], &[("AGENT_CODE", "x")]),
        (&gateway, &[("AGENT_TICKET", "gt_x")]),
        (&[&gateway[..], &["--ticket", "gt_x"]].concat(), &[]),
        (&[&gateway[..], &["--gateway-token", "x"]].concat(), &[]),
        (&[&gateway[..], &["--gateway-token-file", none]].concat(), &[]),
        (&["connect", "--gateway", "https://", "--id", "7"], &[]),
        (&share, &[]),
        (&["serve"], &[]),
        (&["connect", &ticket], &[("ALL_PROXY", "ftp://h")]),
        (&["listen", "--server", "127.0.0.1:1", "--ask-key"], &[]),
        (&["listen", "--server", "127.0.0.1:1", "--key-file", none], &[]),
        (&["listen", "--server", "127.0.0.1:1", "--ca", none], &[]),
        (&["connect", "--ticket-file", none], &[]),
        (&["inbox"], &[]),
        (&["send", none, "--server", "127.0.0.1:1"], &[]),
        (&["recv", &ticket], &[]),
        (&["recv", &ticket, "--yes", "--to", "/dev/null/folder"], &[]),
    ] {
        bench.fails(arguments, environment);
    }
}

fn nobody(bench: &Bench) -> String {
    Ticket::new(bench.server.address.to_string().parse().unwrap(), "nobody2345", [7; 16]).to_string()
}

fn servers(bench: &Bench) {
    let (server, nobody) = (bench.server.address.to_string(), nobody(bench));
    bench.fails(&["connect", &nobody], &[]);
    bench.fails(&["connect", "7-crater-violin", "--server", &server], &[]);
    bench.fails(&["connect", &nobody, "--server", "127.0.0.1:1"], &[]);
    bench.fails(&["listen", "--server", &server], &[("AGENT_KEY", "not the key of this server")]);
    let mut full = Command::new("sh");
    let doctor = ["doctor", "--no-port-mapping", "--server", &server];
    full.args(["-c", "exec \"$0\" \"$@\" > /dev/full", env!("CARGO_BIN_EXE_agent")])
        .args(doctor)
        .arg("--json");
    // Events are on standard error.
    Proc::start("doctor --json", full, Stdout::Lines).succeed(UP);
    let mut full = Command::new("sh");
    full.args(["-c", "exec \"$0\" \"$@\" > /dev/full", env!("CARGO_BIN_EXE_agent")]).args(doctor);
    let mut full = Proc::start("doctor", full, Stdout::Lines);
    assert_eq!(full.wait(UP).code(), Some(1), "{}", full.printed());
    let text = full.printed();
    let row = rows_of_the_code().into_iter().find(|row| text.contains(&row.hint) && row.exit_code == 1);
    bench.found.lock().unwrap().insert(row.unwrap_or_else(|| panic!("no hint of the table: {text}")));
}

/// A port that accepts connections and answers nothing.
fn silent_server(bench: &Bench) {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    bench.fails(&["connect", &nobody(bench), "--server", &address], &[]);
}

fn silent_gateway(bench: &Bench) {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    bench.fails(&["connect", "--gateway", &address, "--id", "7"], &[("AGENT_GATEWAY_TOKEN", "gt_x")]);
}

/// The operator revokes the tag of a listener.
fn revoked(bench: &Bench) {
    let (listener, ticket) = bench.listener(&bench.server.key(), &[]);
    let admin = bench.server.output_of(&["key", "--admin"]);
    let revoke = format!("POST /revoke?tag={}", ticket.tag());
    assert_eq!(http(bench.server.address, &revoke, &bearer(&admin)).0, 200);
    bench.record(listener);
}

fn gateways(bench: &Bench) {
    let gateway = bench.gateway.address.to_string();
    let connect = ["connect", "--gateway", &gateway, "--id", "7"];
    let token = bench.gateway.output_of(&["gateway", "token"]);
    bench.fails(&connect, &[]);
    bench.fails(&connect, &[("AGENT_GATEWAY_TOKEN", &token)]);
    bench.fails(&["connect", "--gateway", "127.0.0.1:1", "--id", "7"], &[]);
    bench.fails(&["connect", "--gateway", &format!("wss://{gateway}"), "--id", "7"], &[]);
    let share = ["share", "--gateway", &gateway, "--id", "7", "--to", "1"];
    bench.fails(&share, &[("AGENT_KEY", "not the key of this gateway, but as long")]);
}

fn calls(bench: &Bench) {
    let key = bench.server.key();
    let (listener, ticket) = bench.listener(&key, &[]);
    let other = Ticket::new(ticket.server().clone(), ticket.tag(), [8; 16]).to_string();
    bench.fails(&["connect", &other], &[]);
    let ticket = ticket.to_string();
    // The first connector uses the ticket up, and ends badly.
    let mut first = Proc::start("connect", bench.command(&["connect", &ticket], &[]), Stdout::Pipe);
    let _pipes = first.take_pipes();
    first.expect("path", UP, |line| line.contains("\"path\"").then_some(()));
    bench.fails(&["connect", &ticket], &[]);
    first.terminate();
    first.wait(UP);
    bench.record(listener);
}

/// A file that the receiver has already, and a sender that runs twice.
fn files(bench: &Bench) {
    let (server, key) = (bench.server.address.to_string(), bench.server.key());
    let (from, to) = (bench.folder.path().join("from"), bench.folder.path().join("to"));
    for folder in [&from, &to] {
        std::fs::create_dir(folder).unwrap();
        std::fs::write(folder.join("name"), folder.to_str().unwrap()).unwrap();
    }
    let file = from.join("name");
    let send = ["send", "--server", &server, file.to_str().unwrap()];
    let environment = [("AGENT_KEY", key.as_str())];
    let sender = bench.start(&send, &environment);
    let ticket = sender.expect("ticket", UP, |line| {
        let event: Value = serde_json::from_str(line).ok()?;
        event["ticket"].as_str().map(str::to_owned)
    });
    bench.fails(&send, &environment);
    bench.fails(&["recv", "--yes", "--to", to.to_str().unwrap(), &ticket], &[]);
    bench.record(sender);
}

/// Runs two sides that find no path with these options.
fn assert_no_path(bench: &Bench, theirs: &str, ours: &str) {
    let (_listener, ticket) = bench.listener("", &[theirs]);
    bench.fails(&["connect", &ticket.to_string(), ours], &[]);
}

#[test]
fn every_error_of_the_table_is_caused_or_named_as_an_exception() {
    let bench = Bench::new();
    let parts: Mutex<Vec<fn(&Bench)>> = Mutex::new(vec![
        usage,
        revoked,
        servers,
        gateways,
        calls,
        silent_gateway,
        silent_server,
        files,
        |bench| assert_no_path(bench, "--relay-only", "--relay-only"),
        |bench| assert_no_path(bench, "--no-relay", "--relay-only"),
        |bench| assert_no_path(bench, "--relay-only", "--no-relay"),
    ]);
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(part) = { parts.lock().unwrap().pop() } {
                    part(&bench);
                }
            });
        }
    });
    let (found, listed) = (bench.found.into_inner().unwrap(), rows_of_the_code());
    let unknown: Vec<_> = found.difference(&listed).collect();
    assert!(unknown.is_empty(), "not in the table: {unknown:#?}");
    let is_exception = |row: &&Row| {
        NOT_HERE.iter().any(|(stage, code, hint, _)| {
            row.stage == *stage && (code.is_empty() || row.code == *code) && row.hint.starts_with(hint)
        })
    };
    let missing: Vec<_> = listed.difference(&found).filter(|row| !is_exception(row)).collect();
    assert!(missing.is_empty(), "neither caused nor an exception: {missing:#?}");
    crate::tools::print(&format!("{} of {} errors caused", found.len(), listed.len()));
}
