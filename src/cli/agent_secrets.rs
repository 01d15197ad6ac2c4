//! Where `agent` has its secrets from: what was typed or set in the environment, a file, or a question on the terminal.

use super::agent::UsageError;
use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// The most that is read of a file or a line.
const MAX_LEN: u64 = 4096;

/// Where the access key comes from.
#[derive(Debug, Args)]
pub(super) struct KeySource {
    /// The access key of the server, or the gateway's own key; `ginnel key` and `ginnel key --gateway` print them there. Other users of this machine can
    /// see what is typed here: see --key-file and --ask-key
    #[arg(long, env = "AGENT_KEY", hide_env_values = true, conflicts_with = "key_file")]
    key: Option<String>,
    /// File that holds the key
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Ask for the key on the terminal
    #[arg(long, conflicts_with = "key_file")]
    ask_key: bool,
}

impl KeySource {
    /// Returns the key, if there is one. `is_needed`: it is asked for on a terminal where none was given.
    pub(super) fn key(&self, is_needed: bool) -> Result<Option<String>, UsageError> {
        let key = match &self.key_file {
            Some(file) => Some(first_line(&read_file("--key-file", file)?)),
            None if self.ask_key => Some(ask("Key").ok_or(UsageError::NoTerminal)?),
            None if is_needed && self.key.is_none() => ask("Key"),
            None => self.key.as_deref().map(first_line),
        };
        Ok(key.filter(|key| !key.is_empty()))
    }
}

fn first_line(text: &str) -> String {
    text.trim_start().lines().next().unwrap_or_default().trim().to_owned()
}

/// Reads a file that holds a secret.
pub(super) fn read_file(option: &'static str, path: &Path) -> Result<String, UsageError> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_LEN).read_to_string(&mut text));
    match read {
        Ok(_) => Ok(text),
        Err(problem) => Err(UsageError::File { option, file: path.display().to_string(), problem }),
    }
}

/// Asks on the terminal without showing what is typed; `None` where there is no terminal, or no answer.
pub(super) fn ask(what: &str) -> Option<String> {
    let stdin = io::stdin();
    if !stdin.is_terminal() && !io::stderr().is_terminal() {
        return None;
    }
    // Standard input may be what is to be sent.
    let terminal = File::open("/dev/tty").ok();
    let terminal = match &terminal {
        Some(terminal) => terminal.as_fd(),
        None if stdin.is_terminal() => stdin.as_fd(),
        None => return None,
    };
    let line = {
        let _hidden = Hidden::new(terminal);
        let _ = write!(io::stderr(), "{what}: ");
        read_line(terminal)
    };
    let _ = writeln!(io::stderr());
    Some(line?.trim().to_owned()).filter(|line| !line.is_empty())
}

/// Byte by byte, so that what follows is left to others.
fn read_line(terminal: BorrowedFd<'_>) -> Option<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < usize::try_from(MAX_LEN).unwrap_or(usize::MAX)
        && rustix::io::read(terminal, &mut byte).ok()? == 1
        && byte != *b"\n"
    {
        line.push(byte[0]);
    }
    String::from_utf8(line).ok()
}

/// A terminal that does not show what is typed, until this is dropped.
struct Hidden<'a> {
    terminal: BorrowedFd<'a>,
    before: Option<Termios>,
}

impl<'a> Hidden<'a> {
    fn new(terminal: BorrowedFd<'a>) -> Self {
        let before = tcgetattr(terminal).ok();
        if let Some(mut hidden) = before.clone() {
            hidden.local_modes.remove(LocalModes::ECHO);
            let _ = tcsetattr(terminal, OptionalActions::Now, &hidden);
        }
        Self { terminal, before }
    }
}

impl Drop for Hidden<'_> {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(self.terminal, OptionalActions::Now, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_first_line_of_what_was_pasted_or_of_its_file() {
        for text in ["abc", " abc\n", "\nabc\r\n", "abc\nmore"] {
            assert_eq!(first_line(text), "abc", "{text:?}");
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        std::fs::write(&file, "  from a file\n").unwrap();
        let source =
            |key: Option<&str>, key_file| KeySource { key: key.map(Into::into), key_file, ask_key: false };
        assert_eq!(source(None, Some(file)).key(false).unwrap().as_deref(), Some("from a file"));
        assert_eq!(source(Some(" typed\n"), None).key(false).unwrap().as_deref(), Some("typed"));
        assert_eq!(source(Some(" "), None).key(false).unwrap(), None);
        let missing = source(None, Some(folder.path().join("none"))).key(false);
        assert!(matches!(missing, Err(UsageError::File { option: "--key-file", .. })), "{missing:?}");
    }
}
