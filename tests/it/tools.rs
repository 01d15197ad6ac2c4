//! The foreign programs and privileges that this machine has; tests that need a missing one are skipped.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Returns whether every program in `programs` is installed; if not, the calling test is a visible skip.
///
/// # Panics
///
/// In CI, where everything has to be installed.
pub(crate) fn have(programs: &[&str]) -> bool {
    let missing: Vec<_> = programs.iter().filter(|name| find(name).is_none()).copied().collect();
    missing.is_empty() || skip(&format!("{} not installed", missing.join(", ")))
}

/// Returns whether every program in `programs`, which CI need not install, is installed; if not, the calling test is a visible skip.
pub(crate) fn happens_to_have(programs: &[&str]) -> bool {
    let missing: Vec<_> = programs.iter().filter(|name| find(name).is_none()).copied().collect();
    if !missing.is_empty() {
        note(&format!("{} not installed", missing.join(", ")));
    }
    missing.is_empty()
}

/// Returns whether network namespaces can be created here; if not, the calling test is a visible skip.
///
/// # Panics
///
/// In CI as root, where everything has to be installed.
pub(crate) fn have_laboratory() -> bool {
    if !is_root() {
        note("laboratory needs root");
        return false;
    }
    have(&["ip", "nft", "python3"])
}

/// Returns whether this is root, which `what` needs; if not, the calling test is a visible skip.
pub(crate) fn is_root_for(what: &str) -> bool {
    let root = is_root();
    if !root {
        note(&format!("{what} needs root"));
    }
    root
}

/// The value of a switch of the test run, such as `GINNEL_LAB_RUNS`.
pub(crate) fn switch(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// The path of `ginnel` or `agent`: that of this build, or the one in the folder `GINNEL_LAB_BINARIES`.
pub(crate) fn binary(name: &str) -> String {
    if let Some(folder) = std::env::var_os("GINNEL_LAB_BINARIES") {
        return Path::new(&folder).join(name).to_string_lossy().into_owned();
    }
    match name {
        "agent" => env!("CARGO_BIN_EXE_agent"),
        _ => env!("CARGO_BIN_EXE_ginnel"),
    }
    .to_owned()
}

/// Prints a figure of a long test.
pub(crate) fn print(line: &str) {
    writeln!(std::io::stdout(), "{line}").ok();
}

/// The path of a program in `tests/clients/`.
pub(crate) fn client(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").stderr(Stdio::null()).output();
    id.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let standard = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(standard)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Reports visibly that the calling test does not run here; returns `false`.
///
/// # Panics
///
/// In CI as root, where everything has to be installed.
fn skip(reason: &str) -> bool {
    let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
    assert!(!(in_ci && is_root()), "CI has to run this test, but {reason}");
    note(reason);
    false
}

/// Prints the skip, past the capture of the test harness, and adds it to the list that `scripts/test` shows at the end.
pub(crate) fn note(reason: &str) {
    let test = std::thread::current().name().unwrap_or("test").to_owned();
    let line = format!("skipped: {reason} ({test})\n");
    std::io::stderr().write_all(line.as_bytes()).ok();
    let Some(list) = std::env::var_os("GINNEL_SKIP_LIST") else { return };
    if let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(list) {
        file.write_all(line.as_bytes()).ok();
    }
}
