//! Secrets of agents from the environment, a file or a terminal.

use std::io::{Read, Write};
use std::process::Command;
use std::time::Duration;

use ginnel::agent::Ticket;

use crate::proc::{Proc, Stdout};
use crate::test_server::TestServer;
use crate::tools;

const UP: Duration = Duration::from_secs(30);
/// The exit code for a valid ticket whose listener is offline.
const OFFLINE: i32 = 3;

fn agent(arguments: &[&str], environment: &[(&str, &str)]) -> Proc {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
    for name in ["AGENT_KEY", "AGENT_TICKET", "AGENT_CODE", "AGENT_GATEWAY_TOKEN"] {
        command.env_remove(name);
    }
    command.args(arguments).envs(environment.iter().copied());
    Proc::start(arguments[0], command, Stdout::Lines)
}

fn ends_with(mut process: Proc, code: i32) {
    let status = process.wait(UP);
    assert_eq!(status.code(), Some(code), "{}", process.printed());
}

fn ticket(test_server: &TestServer) -> String {
    Ticket::new(test_server.address.to_string().parse().unwrap(), "nobody2345", [7; 16]).to_string()
}

#[test]
fn a_ticket_comes_from_the_environment_or_a_file() {
    let test_server = TestServer::on_loopback("");
    let ticket = ticket(&test_server);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ticket");
    std::fs::write(&file, format!("agent connect {ticket}\n")).unwrap();
    ends_with(agent(&["connect"], &[("AGENT_TICKET", &ticket)]), OFFLINE);
    ends_with(agent(&["connect", "--ticket-file", file.to_str().unwrap()], &[]), OFFLINE);
    ends_with(agent(&["connect"], &[]), 2);
    ends_with(agent(&["connect", "--ticket-file", "/nonexistent"], &[]), 2);
}

#[test]
fn a_gateway_token_comes_from_its_option_file_or_variable() {
    let test_server = TestServer::on_loopback("[gateway]\nrequire_token = true\n");
    let gateway = test_server.address.to_string();
    let token = test_server.output_of(&["gateway", "token"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, format!("{token}\n")).unwrap();
    let connect = ["connect", "--gateway", &gateway, "--id", "7"];
    for options in [["--gateway-token", &token], ["--gateway-token-file", file.to_str().unwrap()]] {
        ends_with(agent(&[&connect[..], &options[..]].concat(), &[]), OFFLINE);
    }
    ends_with(agent(&connect, &[("AGENT_GATEWAY_TOKEN", &token)]), OFFLINE);
    ends_with(agent(&connect, &[]), 4);
}

#[test]
fn a_former_variable_or_the_wrong_secret_is_reported() {
    let test_server = TestServer::on_loopback("");
    let (ticket, gateway) = (ticket(&test_server), test_server.address.to_string());
    let connect = ["connect", "--gateway", &gateway, "--id", "7"];
    type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], i32, &'a str);
    let table: [Case<'_>; 7] = [
        (&["connect"], &[("AGENT_CODE", &ticket)], OFFLINE, "not online"),
        (&["connect"], &[("AGENT_CODE", "7-crater-violin")], 2, "agent connect --server HOST"),
        (
            &["connect"],
            &[("AGENT_CODE", &ticket), ("AGENT_TICKET", &ticket)],
            OFFLINE,
            "AGENT_CODE is ignored",
        ),
        (&["connect"], &[("AGENT_TICKET", "gt_x")], 2, "AGENT_GATEWAY_TOKEN"),
        (&["connect", "gt_x"], &[], 2, "a gateway token, not a ticket"),
        (&connect, &[("AGENT_TICKET", "gt_x")], 2, "AGENT_GATEWAY_TOKEN=gt_"),
        (
            &connect,
            &[("AGENT_TICKET", "gt_x"), ("AGENT_GATEWAY_TOKEN", "agent:x")],
            2,
            "AGENT_TICKET is ignored",
        ),
    ];
    for (arguments, environment, code, line) in table {
        let mut run = agent(arguments, environment);
        assert_eq!(run.wait(UP).code(), Some(code), "{environment:?}\n{}", run.printed());
        assert!(run.printed().contains(line), "{environment:?}\n{}", run.printed());
    }
}

/// What a program on a terminal of its own prints, when this is typed there.
fn on_a_terminal(arguments: &[&str], typed: &str) -> String {
    const TERMINAL: &str = "import pty, sys; pty.spawn(sys.argv[1:])";
    let mut python = Command::new("python3");
    python.args(["-c", TERMINAL, env!("CARGO_BIN_EXE_agent")]).args(arguments);
    python.env_remove("AGENT_KEY").env_remove("AGENT_TICKET").env_remove("AGENT_CODE");
    let mut run = Proc::start("agent on a terminal", python, Stdout::Pipe);
    let (mut stdin, mut stdout) = run.take_pipes();
    let mut printed = Vec::new();
    let mut some = [0; 1024];
    // What is typed before the question would be shown by the terminal itself.
    while !printed.windows(2).any(|two| two == b": ") {
        let len = stdout.read(&mut some).unwrap();
        assert!(len > 0, "{}", String::from_utf8_lossy(&printed));
        printed.extend_from_slice(&some[..len]);
    }
    stdin.write_all(typed.as_bytes()).unwrap();
    stdout.read_to_end(&mut printed).unwrap();
    run.wait(UP);
    String::from_utf8_lossy(&printed).into_owned()
}

#[test]
fn a_terminal_asks_for_ticket_and_key_without_echo() {
    let test_server = TestServer::on_loopback("");
    let ticket = ticket(&test_server);
    let printed = on_a_terminal(&["connect"], &format!("{ticket}\n"));
    assert!(printed.contains("Code or ticket: ") && printed.contains("not online"), "{printed}");
    assert!(!printed.contains(&ticket), "{printed}");
    let server = test_server.address.to_string();
    let key = "not the key of this server";
    let printed = on_a_terminal(&["listen", "--server", &server, "--ask-key"], &format!("{key}\n"));
    assert!(printed.contains("Key: ") && printed.contains("access key"), "{printed}");
    assert!(!printed.contains(key), "{printed}");
}

/// Starts a program on a terminal, types Ctrl-C at its first question, and prints its exit code and whether the terminal shows again what is typed.
const INTERRUPTED: &str = r"
import fcntl, os, sys, termios
def shows(): return bool(termios.tcgetattr(slave)[3] & termios.ECHO)
master, slave = os.openpty()
child = os.fork()
if child == 0:
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for descriptor in (0, 1, 2): os.dup2(slave, descriptor)
    os.execv(sys.argv[1], sys.argv[1:])
printed = b''
while b': ' not in printed: printed += os.read(master, 1024)
hidden = not shows()
os.write(master, b'typed in part\x03')
_, status = os.waitpid(child, 0)
print(hidden, shows(), os.waitstatus_to_exitcode(status))
";

#[test]
fn ctrl_c_at_a_question_restores_the_terminals_echo() {
    if !tools::have(&["python3"]) {
        return;
    }
    for arguments in [
        &["connect"][..],
        &["listen", "--server", "127.0.0.1:1", "--ask-key"],
        &["share", "--gateway", "127.0.0.1:1", "--id", "1", "--to", "1"],
    ] {
        let mut python = Command::new("timeout");
        python.args(["30", "python3", "-c", INTERRUPTED, env!("CARGO_BIN_EXE_agent")]).args(arguments);
        for name in ["AGENT_KEY", "AGENT_TICKET", "AGENT_CODE"] {
            python.env_remove(name);
        }
        let output = python.output().unwrap();
        let outcome = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(outcome, "True True 130\n", "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_named_file_overrides_the_environment() {
    let test_server = TestServer::on_loopback("");
    let (server, ticket) = (test_server.address.to_string(), ticket(&test_server));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    let named = file.to_str().unwrap();
    std::fs::write(&file, test_server.key()).unwrap();
    let listening =
        agent(&["listen", "--ticket", "--server", &server, "--key-file", named], &[("AGENT_KEY", "another")]);
    listening.expect("ticket", UP, |line| line.contains("agent connect agent:").then_some(()));
    std::fs::write(&file, ticket).unwrap();
    ends_with(agent(&["connect", "--ticket-file", named], &[("AGENT_TICKET", "agent:another")]), OFFLINE);
    let tickets = TestServer::on_loopback("[gateway]\nrequire_token = true\n");
    std::fs::write(&file, tickets.output_of(&["gateway", "token"])).unwrap();
    let gateway = tickets.address.to_string();
    let connect = ["connect", "--gateway", &gateway, "--id", "7", "--gateway-token-file", named];
    ends_with(agent(&connect, &[("AGENT_GATEWAY_TOKEN", "gt_another")]), OFFLINE);
}
