//! A load in several processes: child processes of this program, each with a share of the load.
//!
//! A child writes messages to its standard output, one JSON object per line, and reads `start` and `release` from its standard input. The end of
//! that input ends it, so that no child outlives its parent.

use crate::load::process::Process;
use crate::load::{AllocationResult, LoadProgress, LoadStage, TrafficOutcome};
use crate::net::time;
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// The interval of checks of the stop flag.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A message of a child.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ChildMessage {
    SettingUp(usize, usize),
    Ready,
    Traffic(LoadProgress),
    TrafficOutcome(TrafficOutcome),
    AllocationResult(AllocationResult),
    Released,
    Failed(String),
}

/// The flags that control a child.
#[derive(Clone, Copy)]
pub(super) struct ChildControl<'a> {
    pub(super) stop: &'a AtomicBool,
    pub(super) start: &'a AtomicBool,
    pub(super) release: &'a AtomicBool,
}

static STOP: AtomicBool = AtomicBool::new(false);
static START: AtomicBool = AtomicBool::new(false);
static RELEASE: AtomicBool = AtomicBool::new(false);

/// Runs `act` as a child and sends its result.
pub(super) fn run_as_child(
    act: impl FnOnce(ChildControl<'_>) -> anyhow::Result<ChildMessage>,
) -> anyhow::Result<()> {
    // Ctrl-C reaches the whole process group; the parent reacts to it.
    let _ignored = super::stop_on_signals()?;
    std::thread::spawn(|| {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            match line.as_str() {
                "start" => START.store(true, Ordering::Relaxed),
                "release" => RELEASE.store(true, Ordering::Relaxed),
                _ => break,
            }
        }
        STOP.store(true, Ordering::Relaxed);
        RELEASE.store(true, Ordering::Relaxed);
    });
    send(
        &act(ChildControl { stop: &STOP, start: &START, release: &RELEASE })
            .unwrap_or_else(|error| ChildMessage::Failed(format!("{error:#}"))),
    );
    Ok(())
}

fn send(message: &ChildMessage) {
    let Ok(mut line) = serde_json::to_string(message) else { return };
    line.push('\n');
    // The parent may have ended; then standard input ends as well.
    let _ = io::stdout().write_all(line.as_bytes()).and_then(|()| io::stdout().flush());
}

/// Sends the stage of a child's load.
pub(super) fn report_stage(stage: &LoadStage) {
    match stage {
        LoadStage::SettingUp { done, of } => send(&ChildMessage::SettingUp(*done, *of)),
        LoadStage::Ready => send(&ChildMessage::Ready),
        LoadStage::Traffic(progress) => send(&ChildMessage::Traffic(*progress)),
        LoadStage::AllocationResult(made) => send(&ChildMessage::AllocationResult(made.clone())),
        LoadStage::Tried(_) => {}
    }
}

/// The child processes.
struct ProcessGroup {
    children: Vec<Child>,
    messages: Receiver<(usize, ChildMessage)>,
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        self.close_inputs();
        for child in &mut self.children {
            let _ = child.wait();
        }
    }
}

impl ProcessGroup {
    fn spawn(count: usize) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("the path of this program")?;
        let (sender, messages) = channel();
        let mut group = Self { children: Vec::new(), messages };
        for index in 0..count {
            let mut command = Command::new(&program);
            command.args(std::env::args_os().skip(1)).args(["--part", &format!("{index}/{count}")]);
            let mut child =
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("a child process")?;
            let output = child.stdout.take();
            group.children.push(child);
            let sender = sender.clone();
            std::thread::spawn(move || {
                if let Some(output) = output {
                    read_messages(BufReader::new(output), index, &sender);
                }
            });
        }
        Ok(group)
    }

    /// Sends `message` to all children.
    fn send(&mut self, message: &str) {
        for child in &mut self.children {
            if let Some(input) = &mut child.stdin {
                let _ = writeln!(input, "{message}").and_then(|()| input.flush());
            }
        }
    }

    /// Ends all children.
    fn close_inputs(&mut self) {
        self.children.iter_mut().for_each(|child| drop(child.stdin.take()));
    }

    /// Waits until `takes` has accepted a message of every child; fails if a child fails.
    fn collect_until(
        &mut self,
        stop: &AtomicBool,
        on_stage: &mut dyn FnMut(LoadStage),
        mut takes: impl FnMut(ChildMessage) -> bool,
    ) -> anyhow::Result<()> {
        let mut steps = vec![(0, 0); self.children.len()];
        let mut traffic = vec![None; self.children.len()];
        let mut missing = self.children.len();
        while missing > 0 {
            if stop.load(Ordering::Relaxed) {
                self.close_inputs();
            }
            let (index, message) = match self.messages.recv_timeout(POLL_INTERVAL) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => bail!("a child process ended early"),
            };
            match message {
                ChildMessage::Failed(text) => bail!("{text}"),
                ChildMessage::SettingUp(done, of) => {
                    steps[index] = (done, of);
                    let (done, of) = steps.iter().fold((0, 0), |sum, step| (sum.0 + step.0, sum.1 + step.1));
                    on_stage(LoadStage::SettingUp { done, of });
                }
                ChildMessage::Traffic(progress) => {
                    traffic[index] = Some(progress);
                    on_stage(LoadStage::Traffic(sum(&traffic, progress)));
                }
                message => missing -= usize::from(takes(message)),
            }
        }
        Ok(())
    }

    fn begin(&mut self, stop: &AtomicBool, on_stage: &mut dyn FnMut(LoadStage)) -> anyhow::Result<()> {
        self.collect_until(stop, on_stage, |message| matches!(message, ChildMessage::Ready))
    }
}

fn sum(parts: &[Option<LoadProgress>], newest: LoadProgress) -> LoadProgress {
    let parts = || parts.iter().flatten();
    LoadProgress {
        sent: parts().map(|part| part.sent).sum(),
        received: parts().map(|part| part.received).sum(),
        ..newest
    }
}

fn read_messages(output: impl BufRead, index: usize, messages: &Sender<(usize, ChildMessage)>) {
    let mut is_done = false;
    for line in output.lines().map_while(Result::ok) {
        let message = serde_json::from_str(&line)
            .unwrap_or_else(|error| ChildMessage::Failed(format!("{error}: {line}")));
        is_done = matches!(
            message,
            ChildMessage::TrafficOutcome(_) | ChildMessage::Released | ChildMessage::Failed(_)
        );
        if messages.send((index, message)).is_err() {
            return;
        }
    }
    if !is_done {
        let _ = messages.send((index, ChildMessage::Failed("a child process ended early".to_owned())));
    }
}

/// Runs a traffic load in `processes`, and adds up the results.
pub(super) fn traffic(
    processes: usize,
    stop: &AtomicBool,
    on_stage: &mut dyn FnMut(LoadStage),
) -> anyhow::Result<TrafficOutcome> {
    let mut group = ProcessGroup::spawn(processes)?;
    group.begin(stop, on_stage)?;
    group.send("start");
    let mut whole = TrafficOutcome::default();
    group.collect_until(stop, on_stage, |message| match message {
        ChildMessage::TrafficOutcome(outcome) => {
            whole.merge(&outcome);
            true
        }
        _ => false,
    })?;
    Ok(whole)
}

/// Runs an allocation load in `processes`, watches `pid`, and keeps the allocations for `hold`.
pub(super) fn allocate(
    processes: usize,
    pid: Option<u32>,
    hold: Duration,
    stop: &AtomicBool,
    on_stage: &mut dyn FnMut(LoadStage),
) -> anyhow::Result<AllocationResult> {
    let watched =
        pid.map(|pid| Process::new(pid).with_context(|| format!("process {pid} cannot be watched")));
    let watched = watched.transpose()?;
    let used = || watched.as_ref().map(|process| Ok((process.cpu_ns()?, process.resident()?))).transpose();
    let mut group = ProcessGroup::spawn(processes)?;
    group.begin(stop, on_stage)?;
    let before: Option<(u64, u64)> = used().map_err(|error: io::Error| error)?;
    let began = time::mono();
    group.send("start");
    let mut whole = AllocationResult::default();
    group.collect_until(stop, on_stage, |message| match message {
        ChildMessage::AllocationResult(made) => {
            whole.merge(&made);
            true
        }
        _ => false,
    })?;
    whole.elapsed = time::mono() - began;
    whole.used = before.zip(used()?).map(|(before, after)| AllocationResult::used_between(before, after));
    while !stop.load(Ordering::Relaxed) && time::mono() - began < hold {
        std::thread::sleep(POLL_INTERVAL);
    }
    group.send("release");
    group.collect_until(stop, on_stage, |message| matches!(message, ChildMessage::Released))?;
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_a_child_are_read_and_an_early_end_is_a_failure() {
        let (sender, messages) = channel();
        let last = ChildMessage::TrafficOutcome(TrafficOutcome { sent: 7, ..TrafficOutcome::default() });
        let lines = [ChildMessage::SettingUp(1, 2), ChildMessage::Ready, last]
            .map(|message| serde_json::to_string(&message).unwrap() + "\n");
        read_messages(lines.concat().as_bytes(), 3, &sender);
        let received: Vec<_> = messages.try_iter().collect();
        let [
            (3, ChildMessage::SettingUp(1, 2)),
            (3, ChildMessage::Ready),
            (3, ChildMessage::TrafficOutcome(outcome)),
        ] = &received[..]
        else {
            panic!("{received:?}");
        };
        assert_eq!(outcome.sent, 7);
        read_messages(lines[1].as_bytes(), 3, &sender);
        assert!(matches!(messages.try_iter().last(), Some((3, ChildMessage::Failed(_)))));
    }
}
