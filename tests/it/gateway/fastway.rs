//! The reference's own endpoints, built from source where Go and the sources are available.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::{Gateway, KEY};
use crate::proc::{Proc, Stdout};
use crate::tools;

/// The last commit of the seven-command wire, and what its libraries were at the time.
const SOURCES: [(&str, &str); 3] = [("fastway", "3037374"), ("link", "dd43591"), ("slab", "1c7e46d")];
const RUN: Duration = Duration::from_secs(60);

/// The program of `tests/clients/fastway.go`; `None`, with a note, if it cannot be built.
fn program() -> Option<PathBuf> {
    if !tools::happens_to_have(&["go", "git"]) {
        return None;
    }
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("fastway");
    for (name, commit) in SOURCES {
        let folder = path.join("src/github.com/funny").join(name);
        if folder.is_dir() {
            continue;
        }
        let fresh = path.join(format!("{name}.new"));
        let _ = fs::remove_dir_all(&fresh);
        let url = format!("https://github.com/funny/{name}");
        // A network that drops packets must not block the tests.
        let git = |arguments: &[&str]| {
            let mut git = Command::new("timeout");
            git.args(["30", "git"]).args(arguments).env("GIT_TERMINAL_PROMPT", "0");
            git.output().unwrap().status.success()
        };
        let at = fresh.to_str().unwrap();
        if !git(&["clone", "--quiet", &url, at]) || !git(&["-C", at, "checkout", "--quiet", commit]) {
            tools::note(&format!("{url} cannot be fetched"));
            return None;
        }
        fs::create_dir_all(folder.parent().unwrap()).unwrap();
        fs::rename(fresh, folder).unwrap();
    }
    let program = path.join("judge");
    let mut build = Command::new("go");
    build.args(["build", "-o"]).arg(&program).arg(tools::client("fastway.go"));
    build.env("GO111MODULE", "off").env("GOPATH", &path).env("GOCACHE", path.join("cache"));
    let output = build.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(program)
}

#[test]
fn the_references_own_endpoints_dial_each_other_both_ways() {
    let Some(program) = program() else { return };
    let gateway = Gateway::start("[gateway.times]\nping = 1");
    let mut command = Command::new(program);
    command.args([gateway.clients().to_string(), gateway.md5.to_string(), KEY.to_owned(), "500".to_owned()]);
    let mut judge = Proc::start("fastway", command, Stdout::Lines);
    judge.succeed(RUN);
    let lines: Vec<String> = judge.lines(|line| Some(line.clone()));
    assert_eq!(lines.last().map(String::as_str), Some("done 500"), "{lines:?}");
    assert!(lines.contains(&"accepted from 10086".to_owned()), "the server has dialled: {lines:?}");
    gateway.assert_becomes_empty();
}
