//! A child process whose output lines can be waited for. It never outlives its test.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::waiting::try_until;

/// How long the output of a process that has ended may take to be read.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

/// The lines a process has printed so far.
#[derive(Default)]
struct Printed {
    lines: Vec<String>,
    /// When each was read.
    times: Vec<Instant>,
    open: usize,
}

#[derive(Default)]
struct Log {
    printed: Mutex<Printed>,
    news: Condvar,
}

impl Log {
    fn follow(self: &Arc<Self>, source: impl Read + Send + 'static) {
        self.printed.lock().unwrap().open += 1;
        let log = Arc::clone(self);
        std::thread::spawn(move || {
            let mut source = BufReader::new(source);
            let mut line = Vec::new();
            while source.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                let mut printed = log.printed.lock().unwrap();
                printed.lines.push(text);
                printed.times.push(Instant::now());
                drop(printed);
                log.news.notify_all();
                line.clear();
            }
            log.printed.lock().unwrap().open -= 1;
            log.news.notify_all();
        });
    }
}

/// Where a child's stdout goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stdout {
    /// Into the lines that [`Proc::wait_for`] sees, beside stderr.
    Lines,
    /// To [`Proc::take_pipes`].
    Pipe,
}

/// A running child. Dropped, it is killed by its own id and waited for.
pub(crate) struct Proc {
    name: String,
    child: Child,
    log: Arc<Log>,
}

impl Proc {
    /// Starts `command`; `name` is what failure messages call it.
    pub(crate) fn start(name: &str, mut command: Command, stdout: Stdout) -> Self {
        let stdin = if stdout == Stdout::Pipe { Stdio::piped() } else { Stdio::null() };
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        let log = Arc::new(Log::default());
        log.follow(child.stderr.take().unwrap());
        if stdout == Stdout::Lines {
            log.follow(child.stdout.take().unwrap());
        }
        Self { name: name.to_owned(), child, log }
    }

    /// Starts `command` without a reader of its output.
    pub(crate) fn start_without_reader(name: &str, mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        drop((child.stdout.take(), child.stderr.take()));
        Self { name: name.to_owned(), child, log: Arc::default() }
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything it printed, for failure messages.
    pub(crate) fn printed(&self) -> String {
        let printed = self.log.printed.lock().unwrap();
        format!("--- {} printed:\n{}\n---", self.name, printed.lines.join("\n"))
    }

    /// Every printed line so far that `pick` takes.
    pub(crate) fn lines<T>(&self, pick: impl FnMut(&String) -> Option<T>) -> Vec<T> {
        self.log.printed.lock().unwrap().lines.iter().filter_map(pick).collect()
    }

    /// When the first line that `pick` takes was printed.
    pub(crate) fn time_of(&self, pick: impl FnMut(&String) -> bool) -> Option<Instant> {
        let printed = self.log.printed.lock().unwrap();
        printed.lines.iter().position(pick).map(|index| printed.times[index])
    }

    /// The first line, printed or yet to come, that `pick` takes; `None` after `within` or at the end of output.
    pub(crate) fn wait_for<T>(&self, within: Duration, mut pick: impl FnMut(&str) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + within;
        let mut printed = self.log.printed.lock().unwrap();
        let mut seen = 0;
        loop {
            while seen < printed.lines.len() {
                if let Some(found) = pick(&printed.lines[seen]) {
                    return Some(found);
                }
                seen += 1;
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            if printed.open == 0 {
                return None;
            }
            printed = self.log.news.wait_timeout(printed, left).unwrap().0;
        }
    }

    /// [`wait_for`](Self::wait_for), panicking with all that was printed.
    pub(crate) fn expect<T>(&self, what: &str, within: Duration, pick: impl FnMut(&str) -> Option<T>) -> T {
        self.wait_for(within, pick)
            .unwrap_or_else(|| panic!("{}: no {what} within {within:?}\n{}", self.name, self.printed()))
    }

    /// Its stdin and stdout, once, if it was started with [`Stdout::Pipe`].
    pub(crate) fn take_pipes(&mut self) -> (ChildStdin, ChildStdout) {
        (self.child.stdin.take().unwrap(), self.child.stdout.take().unwrap())
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends it the signal of this name.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let status = Command::new("sh").args(["-c", "kill -\"$1\" \"$0\"", &id, name]).status();
        assert!(status.unwrap().success(), "{} is already gone\n{}", self.name, self.printed());
    }

    /// Its exit status, once it has ended; `None` if it still runs at `deadline`.
    pub(crate) fn ended_by(&mut self, deadline: Instant) -> Option<ExitStatus> {
        let status = try_until(deadline, || self.child.try_wait().unwrap().ok_or(())).ok()?;
        self.read_to_the_end();
        Some(status)
    }

    /// Lets the readers take what it printed last; something it started may hold its output open longer than that.
    fn read_to_the_end(&self) {
        let printed = self.log.printed.lock().unwrap();
        drop(self.log.news.wait_timeout_while(printed, LAST_OUTPUT, |printed| printed.open > 0).unwrap());
    }

    /// Waits for its end.
    ///
    /// # Panics
    ///
    /// If it is still running after `within`.
    pub(crate) fn wait(&mut self, within: Duration) -> ExitStatus {
        let status = self.ended_by(Instant::now() + within);
        status.unwrap_or_else(|| panic!("{} still runs after {within:?}\n{}", self.name, self.printed()))
    }

    /// Waits for its end and asserts that it is a success.
    pub(crate) fn succeed(&mut self, within: Duration) {
        let status = self.wait(within);
        assert!(status.success(), "{}: {status}\n{}", self.name, self.printed());
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
