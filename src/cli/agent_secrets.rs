//! Secrets of `agent`: from arguments, the environment, a file, or a prompt on the terminal.

use super::agent_error::UsageError;
use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::task::{Context, Waker};
use std::thread;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The most that is read of a file or a line.
const MAX_LEN: u64 = 4096;
/// How soon a question ends after a signal.
const LOOK: Duration = Duration::from_millis(50);

/// Where the access key comes from.
#[derive(Debug, Args)]
pub(super) struct KeySource {
    /// The access key of the server, or the key of the gateway; `ginnel key` and `ginnel key --gateway` print them there. Other users of this
    /// machine can see arguments: prefer --key-file or --ask-key [env: AGENT_KEY]
    #[arg(long, conflicts_with_all = ["key_file", "ask_key"])]
    key: Option<String>,
    /// The key in the environment
    #[arg(long, env = "AGENT_KEY", hide = true, hide_env_values = true)]
    environment_key: Option<String>,
    /// File that contains the key
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Prompt for the key on the terminal
    #[arg(long, conflicts_with = "key_file")]
    ask_key: bool,
}

impl KeySource {
    /// Returns the key, if there is one. If it is required and was not given, prompts for it.
    pub(super) fn key(&self, is_required: bool) -> Result<Option<String>, UsageError> {
        let key = match (&self.key_file, self.key.as_ref().or(self.environment_key.as_ref())) {
            (Some(file), _) => Some(first_line(&read_file("--key-file", file)?)),
            (None, _) if self.ask_key => Some(ask("Key")?.ok_or(UsageError::NoTerminal)?),
            (None, Some(key)) => Some(first_line(key)),
            (None, None) if is_required => ask("Key")?,
            (None, None) => None,
        };
        Ok(key.filter(|key| !key.is_empty()))
    }
}

fn first_line(text: &str) -> String {
    text.trim_start().lines().next().unwrap_or_default().trim().to_owned()
}

/// Reads a file that contains a secret.
pub(super) fn read_file(option: &'static str, path: &Path) -> Result<String, UsageError> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_LEN).read_to_string(&mut text));
    match read {
        Ok(_) => Ok(text),
        Err(source) => Err(UsageError::File { option, file: path.display().to_string(), source }),
    }
}

/// Asks on the terminal without showing what is typed; `None` where there is no terminal, or no answer. A signal that ends this program is waited
/// for here, since the terminal is to show what is typed again.
pub(super) fn ask(what: &str) -> Result<Option<String>, UsageError> {
    let stdin = io::stdin();
    if !stdin.is_terminal() && !io::stderr().is_terminal() {
        return Ok(None);
    }
    // Standard input may be what is to be sent.
    let terminal = File::open("/dev/tty").ok();
    let terminal = match &terminal {
        Some(terminal) => terminal.as_fd(),
        None if stdin.is_terminal() => stdin.as_fd(),
        None => return Ok(None),
    };
    let line = {
        let mut ends = Ends::watch();
        let _hidden = Hidden::new(terminal);
        let _ = write!(io::stderr(), "{what}: ");
        terminal.try_clone_to_owned().map_or(Ok(None), |terminal| read_line(terminal, || ends.have_come()))
    };
    let _ = writeln!(io::stderr());
    let line = line?.and_then(|line| String::from_utf8(line).ok());
    Ok(line.map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()))
}

/// Reads a line on a thread of its own, which a signal leaves behind.
fn read_line(
    terminal: OwnedFd,
    mut is_interrupted: impl FnMut() -> bool,
) -> Result<Option<Vec<u8>>, UsageError> {
    let (line, lines) = sync_channel(1);
    let reading = thread::Builder::new().spawn(move || line.send(read_bytes(&terminal)));
    loop {
        match (lines.recv_timeout(LOOK), is_interrupted() || reading.is_err()) {
            (_, true) => return Err(UsageError::Interrupted),
            (Ok(line), false) => return Ok(line),
            (Err(RecvTimeoutError::Disconnected), false) => return Ok(None),
            (Err(RecvTimeoutError::Timeout), false) => {}
        }
    }
}

/// Byte by byte, so that what follows is left to others.
fn read_bytes(terminal: &OwnedFd) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < usize::try_from(MAX_LEN).unwrap_or(usize::MAX)
        && rustix::io::read(terminal, &mut byte).ok()? == 1
        && byte != *b"\n"
    {
        line.push(byte[0]);
    }
    Some(line)
}

/// The signals that end this program.
struct Ends(Vec<Signal>);

impl Ends {
    fn watch() -> Self {
        let kinds =
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::quit(), SignalKind::hangup()];
        Self(kinds.into_iter().filter_map(|kind| signal(kind).ok()).collect())
    }

    fn have_come(&mut self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        self.0.iter_mut().any(|signal| signal.poll_recv(&mut context).is_ready())
    }
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
            // A program that is stopped gives nothing back.
            hidden.special_codes[SpecialCodeIndex::VSUSP] = 0;
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
        let source = |key: Option<&str>, key_file| KeySource {
            key: key.map(Into::into),
            environment_key: Some("of the environment".into()),
            key_file,
            ask_key: false,
        };
        assert_eq!(source(None, Some(file)).key(false).unwrap().as_deref(), Some("from a file"));
        assert_eq!(source(None, None).key(true).unwrap().as_deref(), Some("of the environment"));
        assert_eq!(source(Some(" typed\n"), None).key(false).unwrap().as_deref(), Some("typed"));
        assert_eq!(source(Some(" "), None).key(false).unwrap(), None);
        let missing = source(None, Some(folder.path().join("none"))).key(false);
        assert!(matches!(missing, Err(UsageError::File { option: "--key-file", .. })), "{missing:?}");
    }
}
