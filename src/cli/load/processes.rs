//! A load in several processes: this program again, once for each part, spoken to by pipes.
//!
//! A part says on its standard output, a JSON object a line, what it has done; it hears on its standard input when to begin and when
//! it may stop holding. The end of that input ends it: no part outlives the process that has started it.

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

/// How often a look is taken at whether to stop.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// What a part says.
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

/// What holds a part.
#[derive(Clone, Copy)]
pub(super) struct ChildControl<'a> {
    pub(super) stop: &'a AtomicBool,
    pub(super) start: &'a AtomicBool,
    pub(super) release: &'a AtomicBool,
}

static STOP: AtomicBool = AtomicBool::new(false);
static START: AtomicBool = AtomicBool::new(false);
static RELEASE: AtomicBool = AtomicBool::new(false);

/// Runs `act` as a part, and says what came of it.
pub(super) fn run_as_child(
    act: impl FnOnce(ChildControl<'_>) -> anyhow::Result<ChildMessage>,
) -> anyhow::Result<()> {
    // Ctrl-C reaches the whole group; the process that began this one says what it means.
    let _quiet = super::stop_on_signals()?;
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
    // Nobody listens any more: the end of standard input says so too.
    let _ = io::stdout().write_all(line.as_bytes()).and_then(|()| io::stdout().flush());
}

/// Says where a part has got to.
pub(super) fn report_stage(stage: &LoadStage) {
    match stage {
        LoadStage::SettingUp { done, of } => send(&ChildMessage::SettingUp(*done, *of)),
        LoadStage::Ready => send(&ChildMessage::Ready),
        LoadStage::Traffic(progress) => send(&ChildMessage::Traffic(*progress)),
        LoadStage::AllocationResult(made) => send(&ChildMessage::AllocationResult(made.clone())),
        LoadStage::Tried(_) => {}
    }
}

/// The parts.
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
        let program = std::env::current_exe().context("this program's own file")?;
        let (sender, messages) = channel();
        let mut group = Self { children: Vec::new(), messages };
        for index in 0..count {
            let mut command = Command::new(&program);
            command.args(std::env::args_os().skip(1)).args(["--part", &format!("{index}/{count}")]);
            let mut child =
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("another process")?;
            let said = child.stdout.take();
            group.children.push(child);
            let sender = sender.clone();
            std::thread::spawn(move || {
                if let Some(said) = said {
                    read_messages(BufReader::new(said), index, &sender);
                }
            });
        }
        Ok(group)
    }

    /// Says `message` to all.
    fn send(&mut self, message: &str) {
        for child in &mut self.children {
            if let Some(input) = &mut child.stdin {
                let _ = writeln!(input, "{message}").and_then(|()| input.flush());
            }
        }
    }

    /// Lets all stop what they do.
    fn close_inputs(&mut self) {
        self.children.iter_mut().for_each(|child| drop(child.stdin.take()));
    }

    /// Waits until every part has said what `takes` takes; fails with the first that has failed.
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
                Err(RecvTimeoutError::Disconnected) => bail!("a process of the load has ended too early"),
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

fn read_messages(said: impl BufRead, index: usize, messages: &Sender<(usize, ChildMessage)>) {
    let mut is_done = false;
    for line in said.lines().map_while(Result::ok) {
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
        let _ = messages
            .send((index, ChildMessage::Failed("a process of the load has ended too early".to_owned())));
    }
}

/// Runs this program's traffic in `processes`, and adds up what came of it.
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

/// Makes this program's allocations in `processes`, watches `pid` meanwhile, and holds them for `hold` in all.
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
    fn what_a_part_says_is_understood_and_its_silence_too() {
        let (sender, messages) = channel();
        let last = ChildMessage::TrafficOutcome(TrafficOutcome { sent: 7, ..TrafficOutcome::default() });
        let said = [ChildMessage::SettingUp(1, 2), ChildMessage::Ready, last]
            .map(|message| serde_json::to_string(&message).unwrap() + "\n");
        read_messages(said.concat().as_bytes(), 3, &sender);
        let heard: Vec<_> = messages.try_iter().collect();
        let [
            (3, ChildMessage::SettingUp(1, 2)),
            (3, ChildMessage::Ready),
            (3, ChildMessage::TrafficOutcome(outcome)),
        ] = &heard[..]
        else {
            panic!("{heard:?}");
        };
        assert_eq!(outcome.sent, 7);
        read_messages(said[1].as_bytes(), 3, &sender);
        assert!(matches!(messages.try_iter().last(), Some((3, ChildMessage::Failed(_)))));
    }
}
