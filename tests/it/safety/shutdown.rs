//! The shutdown of a server in use.

use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use crate::proc::{Proc, Stdout};
use crate::test_server::{PASSWORD, TestServer, USER};
use crate::tools;

const SHORT: Duration = Duration::from_secs(10);

#[test]
fn sigterm_ends_a_server_in_use_with_success() {
    let mut test_server = TestServer::on_loopback("");
    let _idle = TcpStream::connect(test_server.address).unwrap();
    let _holder = tools::have(&["python3"]).then(|| {
        let mut hold = Command::new("python3");
        hold.arg(tools::client("turn.py")).args(["hold", &test_server.address.to_string(), USER, PASSWORD]);
        let hold = Proc::start("turn.py hold", hold, Stdout::Lines);
        hold.expect("allocation", SHORT, |line| (line == "held").then_some(()));
        hold
    });
    test_server.process.terminate();
    test_server.process.succeed(SHORT);
}

#[test]
fn sighup_logs_one_line_and_ends_nothing() {
    let mut test_server = TestServer::on_loopback("");
    for times in 1..=2 {
        test_server.process.signal("HUP");
        let mut count = 0;
        test_server.process.expect("line about each hangup", SHORT, |line| {
            count += usize::from(line.contains("SIGHUP is ignored"));
            (count == times).then_some(())
        });
    }
    drop(TcpStream::connect(test_server.address).unwrap());
    test_server.process.terminate();
    test_server.process.succeed(SHORT);
}

#[test]
fn a_port_in_use_is_named_and_stops_the_start() {
    let test_server = TestServer::on_loopback("");
    let folder = tempfile::tempdir().unwrap();
    let mut serve = Command::new(env!("CARGO_BIN_EXE_ginnel"));
    serve.args([
        "serve",
        "--listen",
        "127.0.0.1",
        "--port",
        &test_server.address.port().to_string(),
        "--state",
    ]);
    serve.arg(folder.path().join("state"));
    let mut second = Proc::start("second ginnel serve", serve, Stdout::Lines);
    assert!(!second.wait(SHORT).success(), "{}", second.printed());
    assert!(second.printed().contains(&test_server.address.port().to_string()), "{}", second.printed());
}
