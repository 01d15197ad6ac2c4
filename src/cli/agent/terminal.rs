//! What `agent` needs from the operating system: a prompt without echo, signals, and standard output that ends early.
//!
//! Systems other than Unix have no prompt: secrets come from arguments, files and the environment. Standard output ends with the process.

#[cfg(all(feature = "qr", not(unix)))]
pub(super) use other::width;
#[cfg(not(unix))]
pub(super) use other::{close_stdout, interrupted, is_stdout_null, prompt};
#[cfg(all(feature = "qr", unix))]
pub(super) use unix::width;
#[cfg(unix)]
pub(super) use unix::{ask, can_ask, close_stdout, interrupted, is_stdout_null, prompt};

use std::time::Duration;
use tokio::time::sleep;

/// Time limit for an interrupted call to inform the other side.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(300);

/// Lets an interrupted call inform the other side and deallocate its relayed address.
pub(super) async fn close_politely() {
    tokio::select! {
        () = sleep(CLOSE_TIMEOUT) => {}
        () = interrupted() => {}
    }
}

/// Raises the descriptor limit to the hard limit: each forwarded connection needs one, and the usual soft limit is 1024.
#[cfg(all(unix, feature = "forward"))]
pub(super) fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the descriptor limit stays as it is");
    }
}

/// There is no such limit.
#[cfg(all(not(unix), feature = "forward"))]
pub(super) fn raise_descriptor_limit() {}

/// The answer to a prompt.
pub(super) enum PromptAnswer {
    /// A line without its end.
    Line(String),
    /// There is no terminal, or the line is empty or not UTF-8.
    None,
    /// A signal arrived.
    Interrupted,
}

#[cfg(unix)]
mod unix {
    use super::PromptAnswer;
    use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
    use std::fs::File;
    use std::io::{self, IsTerminal, Write};
    use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
    use std::os::unix::fs::MetadataExt;
    use std::sync::mpsc::{RecvTimeoutError, sync_channel};
    use std::task::{Context, Waker};
    use std::thread;
    use std::time::Duration;
    use tokio::signal::unix::{Signal, SignalKind, signal};

    /// Maximum length of a line.
    const MAX_LEN: usize = 4096;
    /// How often a prompt checks for signals.
    const SIGNAL_CHECK: Duration = Duration::from_millis(50);

    /// Resolves at the first Ctrl-C or SIGTERM.
    pub(in super::super) async fn interrupted() {
        let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
    }

    /// Returns whether standard output is `/dev/null`.
    pub(in super::super) fn is_stdout_null() -> bool {
        let device = |file: &File| file.metadata().ok().map(|data| data.rdev()).filter(|device| *device != 0);
        let output = io::stdout().as_fd().try_clone_to_owned().map(File::from);
        let null = File::open("/dev/null");
        matches!((output, null), (Ok(output), Ok(null)) if device(&output).is_some() && device(&output) == device(&null))
    }

    /// Returns the number of columns of the terminal.
    #[cfg(feature = "qr")]
    pub(in super::super) fn width() -> Option<usize> {
        let size = rustix::termios::tcgetwinsize(io::stderr()).ok()?;
        Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
    }

    /// Closes standard output, so that its reader sees the end while the process goes on.
    pub(in super::super) fn close_stdout() -> io::Result<()> {
        let null = File::options().write(true).open("/dev/null")?;
        Ok(rustix::stdio::dup2_stdout(null)?)
    }

    /// Prompts on the terminal without echo. Handles signals, so that the terminal gets its echo back before the program ends.
    pub(in super::super) fn prompt(what: &str) -> PromptAnswer {
        read(&format!("{what}: "), true)
    }

    /// Asks on the terminal, with echo; an empty answer is `None`.
    pub(in super::super) fn ask(question: &str) -> PromptAnswer {
        read(&format!("{question} "), false)
    }

    /// Returns whether there is a terminal to ask on.
    pub(in super::super) fn can_ask() -> bool {
        io::stdin().is_terminal() || io::stderr().is_terminal()
    }

    fn read(what: &str, is_hidden: bool) -> PromptAnswer {
        let stdin = io::stdin();
        if !can_ask() {
            return PromptAnswer::None;
        }
        // Standard input may be the data to send.
        let terminal = File::open("/dev/tty").ok();
        let terminal = match &terminal {
            Some(terminal) => terminal.as_fd(),
            None if stdin.is_terminal() => stdin.as_fd(),
            None => return PromptAnswer::None,
        };
        let answer = {
            let mut signals = Signals::subscribe();
            let _hidden = is_hidden.then(|| HiddenEcho::new(terminal));
            let _ = write!(io::stderr(), "{what}");
            let terminal = terminal.try_clone_to_owned();
            terminal.map_or(PromptAnswer::None, |terminal| read_line(terminal, || signals.has_arrived()))
        };
        // With an echo the terminal has shown the end of the line.
        if is_hidden || matches!(answer, PromptAnswer::Interrupted) {
            let _ = writeln!(io::stderr());
        }
        answer
    }

    /// Reads a line on a thread of its own, which is abandoned at a signal.
    fn read_line(terminal: OwnedFd, mut is_interrupted: impl FnMut() -> bool) -> PromptAnswer {
        let (line, lines) = sync_channel(1);
        let thread = thread::Builder::new().spawn(move || line.send(read_bytes(&terminal)));
        loop {
            match (lines.recv_timeout(SIGNAL_CHECK), is_interrupted() || thread.is_err()) {
                (_, true) => return PromptAnswer::Interrupted,
                (Ok(line), false) => return line.map_or(PromptAnswer::None, into_answer),
                (Err(RecvTimeoutError::Disconnected), false) => return PromptAnswer::None,
                (Err(RecvTimeoutError::Timeout), false) => {}
            }
        }
    }

    fn into_answer(line: Vec<u8>) -> PromptAnswer {
        let line = String::from_utf8(line).unwrap_or_default();
        match line.trim() {
            "" => PromptAnswer::None,
            line => PromptAnswer::Line(line.to_owned()),
        }
    }

    /// Reads byte by byte, so that the following bytes stay in the terminal's buffer.
    fn read_bytes(terminal: &OwnedFd) -> Option<Vec<u8>> {
        let mut line = Vec::new();
        let mut byte = [0];
        while line.len() < MAX_LEN && rustix::io::read(terminal, &mut byte).ok()? == 1 && byte != *b"\n" {
            line.push(byte[0]);
        }
        Some(line)
    }

    /// The signals that end the program.
    struct Signals(Vec<Signal>);

    impl Signals {
        fn subscribe() -> Self {
            let kinds =
                [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::quit(), SignalKind::hangup()];
            Self(kinds.into_iter().filter_map(|kind| signal(kind).ok()).collect())
        }

        fn has_arrived(&mut self) -> bool {
            let mut context = Context::from_waker(Waker::noop());
            self.0.iter_mut().any(|signal| signal.poll_recv(&mut context).is_ready())
        }
    }

    /// A terminal without echo, until this is dropped.
    struct HiddenEcho<'a> {
        terminal: BorrowedFd<'a>,
        before: Option<Termios>,
    }

    impl<'a> HiddenEcho<'a> {
        fn new(terminal: BorrowedFd<'a>) -> Self {
            let before = tcgetattr(terminal).ok();
            if let Some(mut hidden) = before.clone() {
                hidden.local_modes.remove(LocalModes::ECHO);
                // A stopped program could not restore the echo.
                hidden.special_codes[SpecialCodeIndex::VSUSP] = 0;
                let _ = tcsetattr(terminal, OptionalActions::Now, &hidden);
            }
            Self { terminal, before }
        }
    }

    impl Drop for HiddenEcho<'_> {
        fn drop(&mut self) {
            if let Some(before) = &self.before {
                let _ = tcsetattr(self.terminal, OptionalActions::Now, before);
            }
        }
    }
}

#[cfg(not(unix))]
mod other {
    use super::PromptAnswer;
    use std::io;

    pub(in super::super) async fn interrupted() {
        let _ = tokio::signal::ctrl_c().await;
    }

    pub(in super::super) fn is_stdout_null() -> bool {
        false
    }

    #[cfg(feature = "qr")]
    pub(in super::super) fn width() -> Option<usize> {
        None
    }

    pub(in super::super) fn close_stdout() -> io::Result<()> {
        Ok(())
    }

    pub(in super::super) fn prompt(_what: &str) -> PromptAnswer {
        PromptAnswer::None
    }
}
