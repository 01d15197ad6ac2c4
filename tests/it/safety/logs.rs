//! What the log gives away: nothing that names a person or a place, unless it was asked for.

use std::process::Command;
use std::time::Duration;

use crate::house::{House, PASSWORD, USER};
use crate::proc::{Proc, Stdout};
use crate::tools;

const SHORT: Duration = Duration::from_secs(10);

#[test]
fn no_address_and_no_name_shows_in_the_log() {
    if !tools::have(&["python3"]) {
        return;
    }
    let house = House::on_loopback("");
    let mut hold = Command::new("python3");
    hold.arg(tools::client("turn.py")).args(["hold", &house.address.to_string(), USER, PASSWORD]);
    let hold = Proc::start("turn.py hold", hold, Stdout::Lines);
    hold.expect("allocation", SHORT, |line| (line == "held").then_some(()));
    let is_log = |line: &str| [" INFO ", " WARN ", " ERROR "].iter().any(|level| line.contains(level));
    let opened = |line: &str| (is_log(line) && line.contains("allocation opened")).then_some(());
    house.server.expect("log line of an allocation", SHORT, opened);
    let lines: Vec<String> = house.server.lines(|line| is_log(line).then(|| line.clone()));
    for line in lines {
        assert!(!line.contains("127.0.0.1") && !line.contains(USER), "{line}");
    }
}
