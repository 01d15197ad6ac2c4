//! Clients of our own signalling, in large numbers: registered, held, and calling each other.
//!
//! `conversation` is what they say, without sockets; `datagrams` and [`connections`] carry it.

mod carrier;
pub mod connections;
mod conversation;
mod datagrams;
pub mod report;

pub use report::SignalingReport;

use super::error::LoadError;
use super::pace::Pace;
use super::process::{Process, thread_cpu_ns};
use super::run::{Telling, within};
use super::{Drive, Load, Progress, Reins, Stage};
use crate::net::time;
use carrier::{Carrier, Sent};
use connections::Connections;
use conversation::Conversation;
use datagrams::Datagrams;
use report::{Held, Spoken, Used};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The most clients by UDP on loopback, an address each.
pub const MOST_CLIENTS: usize = 2_000_000;
/// The longest wait between looks at whether to stop.
const LOOK: Duration = Duration::from_millis(20);
/// How long no client may come in before the load is given up.
const STUCK: Duration = Duration::from_secs(10);
/// How long answers are waited for in the end.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// How long memory is watched for coming to rest, how often, and what counts as rest.
const SETTLING: Duration = Duration::from_secs(8);
const SETTLE_STEP: Duration = Duration::from_millis(500);
const REST: u64 = 64 * 1024;

/// What carries the messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// Datagrams.
    Udp,
    /// WebSockets.
    Ws,
}

/// What clients of the signalling do.
#[derive(Debug, Clone)]
pub struct SignalingLoad {
    /// How they reach the server.
    pub via: Via,
    /// How many there are.
    pub clients: usize,
    /// What drives their calls; without it they are held only.
    pub drive: Option<Drive>,
    /// The access key that they show.
    pub key: Option<String>,
    /// Between two heartbeats of a client by UDP; default 25 s.
    pub heartbeat: Duration,
    /// How many register at a time; default 256.
    pub concurrency: usize,
}

/// A load under way.
struct Run<'a, 'b> {
    load: &'a Load,
    what: &'a SignalingLoad,
    reins: &'a mut Reins<'b>,
    process: Option<Process>,
    carrier: Box<dyn Carrier>,
    talk: Conversation,
    /// When heartbeats were last counted, and how many clients were owed one then.
    beaten: Instant,
    owed: f64,
    held_back: u64,
}

impl Load {
    /// Registers clients with a server's signalling, holds them, and lets them call each other.
    ///
    /// # Errors
    /// What failed, and what to do about it.
    pub fn signaling(
        &self,
        what: &SignalingLoad,
        reins: &mut Reins<'_>,
    ) -> Result<SignalingReport, LoadError> {
        within("--clients", what.clients, MOST_CLIENTS, "1 to 2000000")?;
        within("--concurrency", what.concurrency, MOST_CLIENTS, "1 to 2000000")?;
        if what.drive.is_some() && what.clients < 2 {
            return Err(LoadError::Setting {
                what: "--clients",
                rule: "at least 2 where they call each other",
            });
        }
        if what.heartbeat.is_zero() {
            return Err(LoadError::Setting { what: "--heartbeat", rule: "at least 1 second" });
        }
        if let Some(drive) = what.drive {
            super::run::check_drive(drive)?;
        }
        let process = self.begin()?;
        let carrier: Box<dyn Carrier> = match what.via {
            Via::Udp => Box::new(Datagrams::new(self.target, self.own_sockets)?),
            Via::Ws => Box::new(Connections::new(self.target)?),
        };
        let talk = Conversation::new(what.clients, what.key.as_deref());
        let (beaten, owed, held_back) = (time::mono(), 0.0, 0);
        let mut run = Run { load: self, what, reins, process, carrier, talk, beaten, owed, held_back };
        let held = run.register()?;
        let spoken = run.speak()?;
        Ok(SignalingReport::new(self, what, &held, &spoken))
    }
}

impl Run<'_, '_> {
    fn stopped(&self) -> bool {
        self.reins.stop.load(Ordering::Relaxed)
    }

    fn used(&self) -> Result<Option<(u64, u64)>, LoadError> {
        self.load.used(self.process.as_ref())
    }

    /// Brings all clients in, and waits until the server's memory has come to rest.
    fn register(&mut self) -> Result<Held, LoadError> {
        let before = self.used()?;
        let began = time::mono();
        let own_before = thread_cpu_ns();
        let (mut opened, mut last, mut told) = (0, (began, 0), Telling::new(self.what.clients));
        while self.talk.online() < self.what.clients {
            if self.stopped() {
                return Err(LoadError::Interrupted);
            }
            while opened < self.what.clients && self.talk.waiting() < self.what.concurrency {
                self.carrier.open()?;
                self.talk.register(time::mono(), opened);
                opened += 1;
                if opened.is_multiple_of(64) {
                    break;
                }
            }
            let wait = if opened < self.what.clients { Duration::from_millis(1) } else { LOOK };
            self.pump(wait)?;
            let now = time::mono();
            self.talk.ask_again(now);
            let online = self.talk.online();
            (last.1..online).for_each(|_| told.one_more(self.reins.tell));
            if online > last.1 {
                last = (now, online);
            }
            if now - last.0 > STUCK || self.carrier.closed() > 0 || self.talk.is_turned_away() {
                return Err(self.stuck(online));
            }
        }
        let elapsed = time::mono() - began;
        let own_cpu = Duration::from_nanos(thread_cpu_ns().saturating_sub(own_before));
        let registered = self.used()?;
        self.settle()?;
        let settled = self.used()?;
        let cpu = before.zip(registered).map(|(a, b)| Duration::from_nanos(b.0.saturating_sub(a.0)));
        let bytes = before.zip(settled).map(|(a, b)| b.1 as i64 - a.1 as i64);
        Ok(Held { elapsed, own_cpu, cpu, bytes })
    }

    fn stuck(&self, online: usize) -> LoadError {
        LoadError::NotRegistered {
            online,
            of: self.what.clients,
            closed: self.carrier.closed(),
            code: self.talk.refused.keys().next_back().copied(),
        }
    }

    /// Holds the clients until the watched process neither takes nor gives memory any more.
    fn settle(&mut self) -> Result<(), LoadError> {
        let Some(process) = self.process.clone() else { return Ok(()) };
        let end = time::mono() + SETTLING;
        let mut last = 0_u64;
        loop {
            let until = time::mono() + SETTLE_STEP;
            while time::mono() < until {
                self.pump(LOOK)?;
            }
            let now = process.resident()?;
            if now.abs_diff(last) <= REST || time::mono() >= end || self.stopped() {
                return Ok(());
            }
            last = now;
        }
    }

    /// Lets clients call each other, or just be there, for the time that was asked for.
    fn speak(&mut self) -> Result<Spoken, LoadError> {
        (self.reins.tell)(Stage::Ready);
        let times = self.load.times;
        let mut pace = self.what.drive.map(|drive| Pace::new(drive, 1));
        let began = time::mono();
        let (from, to) = (began + times.warm_up, began + times.warm_up + times.seconds);
        let mut start = None;
        let mut second = 0;
        let mut now = began;
        let (closed, lost_tags) = (self.carrier.closed(), self.talk.lost_tags);
        while now < to && !self.stopped() {
            if start.is_none() && now >= from {
                self.talk.measure(true);
                self.talk.refused.clear();
                self.held_back = 0;
                start = Some((now, thread_cpu_ns(), self.used()?, pace.as_ref().map_or(0, Pace::left_out)));
            }
            let ns = |at: Instant| u64::try_from((at - began).as_nanos()).unwrap_or(u64::MAX);
            let mut wait = LOOK.min(to - now);
            if let Some(pace) = &mut pace {
                let due = pace.due(ns(now));
                (0..due).for_each(|_| self.talk.call(time::mono()));
                pace.left(ns(now), due);
                wait = wait.min(pace.wait(ns(now)));
            }
            self.pump(wait)?;
            while let Some(ended) = self.talk.poll_ended() {
                if let Some(pace) = &mut pace {
                    pace.arrived(ns(ended));
                }
            }
            now = time::mono();
            if (now - began).as_secs() > second {
                second = (now - began).as_secs();
                self.tell(now - began, start.is_none());
            }
        }
        self.talk.measure(false);
        let end = time::mono();
        while time::mono() < end + LAST_ANSWERS && self.talk.measured.answered < self.talk.measured.begun {
            self.pump(LOOK)?;
        }
        let Some((at, own_before, before, left_out)) = start else { return Err(LoadError::Interrupted) };
        let cpu = before.zip(self.used()?).map(|(a, b)| Duration::from_nanos(b.0.saturating_sub(a.0)));
        let own_cpu = Duration::from_nanos(thread_cpu_ns().saturating_sub(own_before));
        Ok(Spoken {
            elapsed: end - at,
            used: Used { cpu, own_cpu, elapsed: time::mono() - at },
            calls: std::mem::take(&mut self.talk.measured),
            refused: std::mem::take(&mut self.talk.refused),
            held_back: self.held_back,
            left_out: pace.map_or(0, |pace| pace.left_out()) - left_out,
            closed: self.carrier.closed() - closed,
            lost_tags: self.talk.lost_tags - lost_tags,
        })
    }

    fn tell(&mut self, elapsed: Duration, warming_up: bool) {
        let whole = self.load.times.warm_up + self.load.times.seconds;
        let (sent, received) = (self.talk.measured.begun, self.talk.measured.answered);
        (self.reins.tell)(Stage::Traffic(Progress { elapsed, whole, warming_up, sent, received }));
    }

    /// Sends what clients have to say and hears what they are told, waiting for it as long as this at most.
    fn pump(&mut self, wait: Duration) -> Result<(), LoadError> {
        self.beat();
        self.send()?;
        let talk = &mut self.talk;
        let heard = self.carrier.receive(wait, &mut |now, client, text| talk.hear(now, client, text));
        heard.map_err(|source| LoadError::connecting(self.load.target, 0, source))?;
        self.send()
    }

    fn send(&mut self) -> Result<(), LoadError> {
        while let Some((client, text)) = self.talk.poll_output() {
            self.held_back += u64::from(self.carrier.send(client, &text)? == Sent::HeldBack);
        }
        Ok(())
    }

    /// Lets those send a heartbeat whose turn it is.
    fn beat(&mut self) {
        let now = time::mono();
        if self.what.via == Via::Udp {
            let share = (now - self.beaten).as_secs_f64() / self.what.heartbeat.as_secs_f64();
            self.owed += share * self.talk.online() as f64;
            self.talk.heartbeats(self.owed as usize);
            self.owed = self.owed.fract();
        }
        self.beaten = now;
    }
}
