//! A load in several processes: this program again, once for each part, spoken to by pipes.
//!
//! A part says on its standard output, a JSON object a line, what it has done; it hears on its standard input when to begin and when
//! it may stop holding. The end of that input ends it: no part outlives the process that has started it.

use crate::load::process::Process;
use crate::load::{Made, Outcome, Progress, Stage};
use crate::net::time;
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// How often a look is taken at whether to stop.
const LOOK: Duration = Duration::from_millis(50);

/// What a part says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Word {
    SettingUp(usize, usize),
    Ready,
    Traffic(Progress),
    Outcome(Outcome),
    Made(Made),
    Released,
    Failed(String),
}

/// What holds a part.
#[derive(Clone, Copy)]
pub(super) struct Hands<'a> {
    pub(super) stop: &'a AtomicBool,
    pub(super) go: &'a AtomicBool,
    pub(super) enough: &'a AtomicBool,
}

static STOP: AtomicBool = AtomicBool::new(false);
static GO: AtomicBool = AtomicBool::new(false);
static ENOUGH: AtomicBool = AtomicBool::new(false);

/// Runs `act` as a part, and says what came of it.
pub(super) fn as_part(act: impl FnOnce(Hands<'_>) -> anyhow::Result<Word>) -> anyhow::Result<()> {
    // Ctrl-C reaches the whole group; the process that began this one says what it means.
    let _quiet = super::stop_on_signals()?;
    std::thread::spawn(|| {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            match line.as_str() {
                "go" => GO.store(true, Ordering::Relaxed),
                "enough" => ENOUGH.store(true, Ordering::Relaxed),
                _ => break,
            }
        }
        STOP.store(true, Ordering::Relaxed);
        ENOUGH.store(true, Ordering::Relaxed);
    });
    say(&act(Hands { stop: &STOP, go: &GO, enough: &ENOUGH })
        .unwrap_or_else(|error| Word::Failed(format!("{error:#}"))));
    Ok(())
}

fn say(word: &Word) {
    let Ok(mut line) = serde_json::to_string(word) else { return };
    line.push('\n');
    // Nobody listens any more: the end of standard input says so too.
    let _ = io::stdout().write_all(line.as_bytes()).and_then(|()| io::stdout().flush());
}

/// Says where a part has got to.
pub(super) fn tell(stage: &Stage) {
    match stage {
        Stage::SettingUp { done, of } => say(&Word::SettingUp(*done, *of)),
        Stage::Ready => say(&Word::Ready),
        Stage::Traffic(progress) => say(&Word::Traffic(*progress)),
        Stage::Made(made) => say(&Word::Made(made.clone())),
        Stage::Tried(_) => {}
    }
}

/// The parts.
struct Crew {
    children: Vec<Child>,
    words: Receiver<(usize, Word)>,
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.dismiss();
        for child in &mut self.children {
            let _ = child.wait();
        }
    }
}

impl Crew {
    fn hire(count: usize) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("this program's own file")?;
        let (sender, words) = channel();
        let mut crew = Self { children: Vec::new(), words };
        for index in 0..count {
            let mut command = Command::new(&program);
            command.args(std::env::args_os().skip(1)).args(["--part", &format!("{index}/{count}")]);
            let mut child =
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("another process")?;
            let said = child.stdout.take();
            crew.children.push(child);
            let sender = sender.clone();
            std::thread::spawn(move || {
                if let Some(said) = said {
                    listen(BufReader::new(said), index, &sender);
                }
            });
        }
        Ok(crew)
    }

    /// Says `word` to all.
    fn say(&mut self, word: &str) {
        for child in &mut self.children {
            if let Some(input) = &mut child.stdin {
                let _ = writeln!(input, "{word}").and_then(|()| input.flush());
            }
        }
    }

    /// Lets all stop what they do.
    fn dismiss(&mut self) {
        self.children.iter_mut().for_each(|child| drop(child.stdin.take()));
    }

    /// Waits until every part has said what `takes` takes; fails with the first that has failed.
    fn gather(
        &mut self,
        stop: &AtomicBool,
        show: &mut dyn FnMut(Stage),
        mut takes: impl FnMut(Word) -> bool,
    ) -> anyhow::Result<()> {
        let mut steps = vec![(0, 0); self.children.len()];
        let mut traffic = vec![None; self.children.len()];
        let mut missing = self.children.len();
        while missing > 0 {
            if stop.load(Ordering::Relaxed) {
                self.dismiss();
            }
            let (index, word) = match self.words.recv_timeout(LOOK) {
                Ok(word) => word,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => bail!("a process of the load has ended too early"),
            };
            match word {
                Word::Failed(text) => bail!("{text}"),
                Word::SettingUp(done, of) => {
                    steps[index] = (done, of);
                    let (done, of) = steps.iter().fold((0, 0), |sum, step| (sum.0 + step.0, sum.1 + step.1));
                    show(Stage::SettingUp { done, of });
                }
                Word::Traffic(progress) => {
                    traffic[index] = Some(progress);
                    show(Stage::Traffic(sum(&traffic, progress)));
                }
                word => missing -= usize::from(takes(word)),
            }
        }
        Ok(())
    }

    fn begin(&mut self, stop: &AtomicBool, show: &mut dyn FnMut(Stage)) -> anyhow::Result<()> {
        self.gather(stop, show, |word| matches!(word, Word::Ready))
    }
}

fn sum(parts: &[Option<Progress>], newest: Progress) -> Progress {
    let parts = || parts.iter().flatten();
    Progress {
        sent: parts().map(|part| part.sent).sum(),
        received: parts().map(|part| part.received).sum(),
        ..newest
    }
}

fn listen(said: impl BufRead, index: usize, words: &Sender<(usize, Word)>) {
    let mut is_done = false;
    for line in said.lines().map_while(Result::ok) {
        let word =
            serde_json::from_str(&line).unwrap_or_else(|error| Word::Failed(format!("{error}: {line}")));
        is_done = matches!(word, Word::Outcome(_) | Word::Released | Word::Failed(_));
        if words.send((index, word)).is_err() {
            return;
        }
    }
    if !is_done {
        let _ = words.send((index, Word::Failed("a process of the load has ended too early".to_owned())));
    }
}

/// Runs this program's traffic in `processes`, and adds up what came of it.
pub(super) fn traffic(
    processes: usize,
    stop: &AtomicBool,
    show: &mut dyn FnMut(Stage),
) -> anyhow::Result<Outcome> {
    let mut crew = Crew::hire(processes)?;
    crew.begin(stop, show)?;
    crew.say("go");
    let mut whole = Outcome::default();
    crew.gather(stop, show, |word| match word {
        Word::Outcome(outcome) => {
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
    show: &mut dyn FnMut(Stage),
) -> anyhow::Result<Made> {
    let watched =
        pid.map(|pid| Process::new(pid).with_context(|| format!("process {pid} cannot be watched")));
    let watched = watched.transpose()?;
    let used = || watched.as_ref().map(|process| Ok((process.cpu_ns()?, process.resident()?))).transpose();
    let mut crew = Crew::hire(processes)?;
    crew.begin(stop, show)?;
    let before: Option<(u64, u64)> = used().map_err(|error: io::Error| error)?;
    let began = time::mono();
    crew.say("go");
    let mut whole = Made::default();
    crew.gather(stop, show, |word| match word {
        Word::Made(made) => {
            whole.merge(&made);
            true
        }
        _ => false,
    })?;
    whole.elapsed = time::mono() - began;
    whole.used = before.zip(used()?).map(|(before, after)| Made::used_between(before, after));
    while !stop.load(Ordering::Relaxed) && time::mono() - began < hold {
        std::thread::sleep(LOOK);
    }
    crew.say("enough");
    crew.gather(stop, show, |word| matches!(word, Word::Released))?;
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_part_says_is_understood_and_its_silence_too() {
        let (sender, words) = channel();
        let last = Word::Outcome(Outcome { sent: 7, ..Outcome::default() });
        let said = [Word::SettingUp(1, 2), Word::Ready, last]
            .map(|word| serde_json::to_string(&word).unwrap() + "\n");
        listen(said.concat().as_bytes(), 3, &sender);
        let heard: Vec<_> = words.try_iter().collect();
        let [(3, Word::SettingUp(1, 2)), (3, Word::Ready), (3, Word::Outcome(outcome))] = &heard[..] else {
            panic!("{heard:?}");
        };
        assert_eq!(outcome.sent, 7);
        listen(said[1].as_bytes(), 3, &sender);
        assert!(matches!(words.try_iter().last(), Some((3, Word::Failed(_)))));
    }
}
