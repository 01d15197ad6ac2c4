//! Load on ginnel's signalling: many clients that register and call each other.
//!
//! `clients` is the protocol, without I/O; `udp_clients` and [`websocket_clients`] are the transports.

mod clients;
pub(crate) mod report;
mod transport;
mod udp_clients;
pub(crate) mod websocket_clients;

pub(crate) use report::SignalingReport;

use super::error::LoadError;
use super::pacing::Pace;
use super::process::{Process, thread_cpu_ns};
use super::run::{ProgressReporter, within};
use super::{Load, LoadMode, LoadStage, RunControl};
use crate::net::time;
use clients::SignalingClients;
use report::{CallPhase, CpuUse, RegisterPhase};
use std::time::{Duration, Instant};
use transport::{ClientSockets, SendResult};
use udp_clients::UdpClients;
use websocket_clients::WebSocketClients;

/// The largest number of UDP clients on loopback.
pub(crate) const MAX_CLIENTS: usize = 2_000_000;
/// The longest wait between checks of the stop flag.
const STOP_CHECK: Duration = Duration::from_millis(20);
/// Time without a new registration after which the load fails.
const SETUP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the end waits for answers.
const LATE_ANSWERS: Duration = Duration::from_secs(2);
/// The wait for stable memory: its limit, its interval, and the largest change in bytes.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(8);
const SETTLE_INTERVAL: Duration = Duration::from_millis(500);
const SETTLE_CHANGE: u64 = 64 * 1024;

/// The transport of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalingTransport {
    /// UDP.
    Udp,
    /// WebSocket.
    Ws,
}

/// A load on the signalling.
#[derive(Debug, Clone)]
pub struct SignalingLoad {
    /// The transport.
    pub via: SignalingTransport,
    /// The number of clients.
    pub clients: usize,
    /// How calls are paced; without it the clients only register.
    pub mode: Option<LoadMode>,
    /// The access key.
    pub key: Option<String>,
    /// The heartbeat interval of UDP clients; default 25 s.
    pub heartbeat: Duration,
    /// Registrations in flight; default 256.
    pub concurrency: usize,
}

/// A running load.
struct SignalingRun<'a, 'b> {
    load: &'a Load,
    what: &'a SignalingLoad,
    control: &'a mut RunControl<'b>,
    process: Option<Process>,
    sockets: Box<dyn ClientSockets>,
    clients: SignalingClients,
    /// When heartbeats were last sent, and the fraction that was due then.
    last_heartbeat: Instant,
    owed: f64,
    held_back: u64,
}

impl Load {
    /// Registers clients with a server's signalling, and makes calls between them.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn signaling(
        &self,
        what: &SignalingLoad,
        control: &mut RunControl<'_>,
    ) -> Result<SignalingReport, LoadError> {
        within("--clients", what.clients, MAX_CLIENTS, "1 to 2000000")?;
        within("--concurrency", what.concurrency, MAX_CLIENTS, "1 to 2000000")?;
        if what.mode.is_some() && what.clients < 2 {
            return Err(LoadError::Setting { what: "--clients", rule: "at least 2 for calls" });
        }
        if what.heartbeat.is_zero() {
            return Err(LoadError::Setting { what: "--heartbeat", rule: "at least 1 second" });
        }
        if let Some(mode) = what.mode {
            super::run::check_mode(mode)?;
        }
        let process = self.begin()?;
        let sockets: Box<dyn ClientSockets> = match what.via {
            SignalingTransport::Udp => Box::new(UdpClients::new(self.target, self.own_sockets)?),
            SignalingTransport::Ws => Box::new(WebSocketClients::new(self.target)?),
        };
        let clients = SignalingClients::new(what.clients, what.key.as_deref());
        let (last_heartbeat, owed, held_back) = (time::mono(), 0.0, 0);
        let mut run = SignalingRun {
            load: self,
            what,
            control,
            process,
            sockets,
            clients,
            last_heartbeat,
            owed,
            held_back,
        };
        let registered = run.register()?;
        let calls_phase = run.run_calls()?;
        Ok(SignalingReport::new(self, what, &registered, &calls_phase))
    }
}

impl SignalingRun<'_, '_> {
    fn used(&self) -> Result<Option<(u64, u64)>, LoadError> {
        self.load.used(self.process.as_ref())
    }

    /// Registers all clients, and waits until the server's memory is stable.
    fn register(&mut self) -> Result<RegisterPhase, LoadError> {
        let before = self.used()?;
        let began = time::mono();
        let own_before = thread_cpu_ns();
        let (mut opened, mut last, mut progress) = (0, (began, 0), ProgressReporter::new(self.what.clients));
        while self.clients.online() < self.what.clients {
            if self.control.is_stopped() {
                return Err(LoadError::Interrupted);
            }
            while opened < self.what.clients && self.clients.waiting() < self.what.concurrency {
                self.sockets.open()?;
                self.clients.register(time::mono(), opened);
                opened += 1;
                if opened.is_multiple_of(64) {
                    break;
                }
            }
            let wait = if opened < self.what.clients { Duration::from_millis(1) } else { STOP_CHECK };
            self.poll_once(wait)?;
            let now = time::mono();
            self.clients.retry_requests(now);
            let online = self.clients.online();
            (last.1..online).for_each(|_| progress.advance(self.control.on_stage));
            if online > last.1 {
                last = (now, online);
            }
            if now - last.0 > SETUP_TIMEOUT || self.sockets.closed() > 0 || self.clients.is_refused() {
                return Err(self.registration_error(online));
            }
        }
        let elapsed = time::mono() - began;
        let own_cpu = Duration::from_nanos(thread_cpu_ns().saturating_sub(own_before));
        let registered = self.used()?;
        self.await_stable_memory()?;
        let settled = self.used()?;
        let cpu = before.zip(registered).map(|(a, b)| Duration::from_nanos(b.0.saturating_sub(a.0)));
        let bytes = before.zip(settled).map(|(a, b)| b.1 as i64 - a.1 as i64);
        Ok(RegisterPhase { elapsed, own_cpu, cpu, bytes })
    }

    fn registration_error(&self, online: usize) -> LoadError {
        LoadError::NotRegistered {
            online,
            of: self.what.clients,
            closed: self.sockets.closed(),
            code: self.clients.refused.keys().next_back().copied(),
        }
    }

    /// Waits until the memory of the watched process is stable.
    fn await_stable_memory(&mut self) -> Result<(), LoadError> {
        let Some(process) = self.process.clone() else { return Ok(()) };
        let end = time::mono() + SETTLE_TIMEOUT;
        let mut last = 0_u64;
        loop {
            let until = time::mono() + SETTLE_INTERVAL;
            while time::mono() < until {
                self.poll_once(STOP_CHECK)?;
            }
            let now = process.resident()?;
            if now.abs_diff(last) <= SETTLE_CHANGE || time::mono() >= end || self.control.is_stopped() {
                return Ok(());
            }
            last = now;
        }
    }

    /// Makes calls for the duration of the load, or only keeps the clients registered.
    fn run_calls(&mut self) -> Result<CallPhase, LoadError> {
        (self.control.on_stage)(LoadStage::Ready);
        let times = self.load.times;
        let mut pace = self.what.mode.map(|mode| Pace::new(mode, 1));
        let began = time::mono();
        let (from, to) = (began + times.warm_up, began + times.warm_up + times.seconds);
        let mut start = None;
        let mut second = 0;
        let mut now = began;
        let (closed, lost_tags) = (self.sockets.closed(), self.clients.lost_tags);
        while now < to && !self.control.is_stopped() {
            if start.is_none() && now >= from {
                self.clients.measure(true);
                self.clients.refused.clear();
                self.held_back = 0;
                start = Some((now, thread_cpu_ns(), self.used()?, pace.as_ref().map_or(0, Pace::left_out)));
            }
            let ns = |at: Instant| u64::try_from((at - began).as_nanos()).unwrap_or(u64::MAX);
            let mut wait = STOP_CHECK.min(to - now);
            if let Some(pace) = &mut pace {
                let due = pace.due(ns(now));
                (0..due).for_each(|_| self.clients.call(time::mono()));
                pace.sent(ns(now), due);
                wait = wait.min(pace.wait(ns(now)));
            }
            self.poll_once(wait)?;
            while let Some(ended) = self.clients.poll_ended() {
                if let Some(pace) = &mut pace {
                    pace.arrived(ns(ended));
                }
            }
            now = time::mono();
            if (now - began).as_secs() > second {
                second = (now - began).as_secs();
                let progress = (self.clients.measured.begun, self.clients.measured.answered);
                self.control.report_progress(times, now - began, start.is_none(), progress);
            }
        }
        self.clients.measure(false);
        let end = time::mono();
        while time::mono() < end + LATE_ANSWERS
            && self.clients.measured.answered < self.clients.measured.begun
        {
            self.poll_once(STOP_CHECK)?;
        }
        let Some((at, own_before, before, left_out)) = start else { return Err(LoadError::Interrupted) };
        let cpu = before.zip(self.used()?).map(|(a, b)| Duration::from_nanos(b.0.saturating_sub(a.0)));
        let own_cpu = Duration::from_nanos(thread_cpu_ns().saturating_sub(own_before));
        Ok(CallPhase {
            elapsed: end - at,
            used: CpuUse { cpu, own_cpu, elapsed: time::mono() - at },
            calls: std::mem::take(&mut self.clients.measured),
            refused: std::mem::take(&mut self.clients.refused),
            held_back: self.held_back,
            left_out: pace.map_or(0, |pace| pace.left_out()) - left_out,
            closed: self.sockets.closed() - closed,
            lost_tags: self.clients.lost_tags - lost_tags,
        })
    }

    /// Sends the clients' messages, and waits at most `wait` for received ones.
    fn poll_once(&mut self, wait: Duration) -> Result<(), LoadError> {
        self.send_heartbeats();
        self.send()?;
        let clients = &mut self.clients;
        let received = self.sockets.receive(wait, &mut |now, client, text| clients.handle(now, client, text));
        received.map_err(|source| LoadError::connecting(self.load.target, 0, source))?;
        self.send()
    }

    fn send(&mut self) -> Result<(), LoadError> {
        while let Some((client, text)) = self.clients.poll_output() {
            self.held_back += u64::from(self.sockets.send(client, &text)? == SendResult::HeldBack);
        }
        Ok(())
    }

    /// Sends the heartbeats that are due.
    fn send_heartbeats(&mut self) {
        let now = time::mono();
        if self.what.via == SignalingTransport::Udp {
            let share = (now - self.last_heartbeat).as_secs_f64() / self.what.heartbeat.as_secs_f64();
            self.owed += share * self.clients.online() as f64;
            self.clients.heartbeats(self.owed as usize);
            self.owed = self.owed.fract();
        }
        self.last_heartbeat = now;
    }
}
