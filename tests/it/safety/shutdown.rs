//! The end of a server that is in use.

use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use crate::house::{House, PASSWORD, USER};
use crate::proc::{Proc, Stdout};
use crate::tools;

const SHORT: Duration = Duration::from_secs(10);

#[test]
fn sigterm_ends_a_server_in_use_with_success() {
    let mut house = House::on_loopback("");
    let _idle = TcpStream::connect(house.address).unwrap();
    let _holder = tools::have(&["python3"]).then(|| {
        let mut hold = Command::new("python3");
        hold.arg(tools::client("turn.py")).args(["hold", &house.address.to_string(), USER, PASSWORD]);
        let hold = Proc::start("turn.py hold", hold, Stdout::Lines);
        hold.expect("allocation", SHORT, |line| (line == "held").then_some(()));
        hold
    });
    house.server.terminate();
    house.server.succeed(SHORT);
}

#[test]
fn a_hangup_is_told_and_ends_nothing() {
    let mut house = House::on_loopback("");
    for times in 1..=2 {
        house.server.signal("HUP");
        let mut told = 0;
        house.server.expect("line about each hangup", SHORT, |line| {
            told += usize::from(line.contains("SIGHUP is ignored"));
            (told == times).then_some(())
        });
    }
    drop(TcpStream::connect(house.address).unwrap());
    house.server.terminate();
    house.server.succeed(SHORT);
}

#[test]
fn a_port_that_is_taken_is_named_and_ends_the_start() {
    let house = House::on_loopback("");
    let folder = tempfile::tempdir().unwrap();
    let mut serve = Command::new(env!("CARGO_BIN_EXE_ginnel"));
    serve.args(["serve", "--listen", "127.0.0.1", "--port", &house.address.port().to_string(), "--state"]);
    serve.arg(folder.path().join("state"));
    let mut second = Proc::start("second ginnel serve", serve, Stdout::Lines);
    assert!(!second.wait(SHORT).success(), "{}", second.printed());
    assert!(second.printed().contains(&house.address.port().to_string()), "{}", second.printed());
}
