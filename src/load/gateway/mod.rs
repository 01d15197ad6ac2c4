//! Load on a gateway: many clients and servers in one thread. They open virtual connections and send messages, which the receiver counts, times
//! and compares.
//!
//! [`message`] (the messages), `flows` (their state) and `virtual_connections` (the commands) are pure; `connection`, `connect` and `exchange` do the
//! I/O.

mod connect;
mod connection;
mod exchange;
mod flows;
pub(crate) mod message;
pub(crate) mod report;
#[cfg(test)]
mod tests;
mod virtual_connections;

pub use connect::HandshakeKind;
pub use report::GatewayReport;

use super::error::LoadError;
use super::process::{Process, thread_cpu_ns};
use super::run::{ProgressReporter, within};
use super::{Load, LoadStage, RunControl};
use crate::gateway::handshake::Key;
use crate::gateway::token::GatewayToken;
use crate::net::time;
use exchange::Exchange;
use report::{ConnectPhase, ExchangePhase, MemoryUse};
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};
use virtual_connections::LoadSize;

/// The largest number of virtual connections.
pub(crate) const MAX_VIRTUAL_CONNECTIONS: usize = 1_000_000;
/// The longest wait between checks of the stop flag.
const STOP_CHECK: Duration = Duration::from_millis(20);
/// Time without a new virtual connection after which the load fails.
const SETUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Clients that connect at a time.
const SETUP_CONCURRENCY: usize = 256;
/// The interval of memory samples of the watched process.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(250);

/// What is between clients and servers.
#[derive(Debug)]
pub enum Middlebox {
    /// A gateway.
    Gateway {
        /// The address for servers.
        servers_at: SocketAddr,
        /// The servers' handshake.
        handshake: HandshakeKind,
        /// The servers' key.
        key: Key,
        /// The id of the first server; the others follow. Default 1.
        first_id: u32,
        /// The clients' token, if the gateway requires one.
        token: Option<GatewayToken>,
    },
    /// A proxy that opens a connection to this listener for each connection that it accepts, and copies bytes. Frames are the same, without
    /// commands; each client has one virtual connection and its own server. For comparison with proxies.
    Proxy(TcpListener),
}

/// The direction of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageDirection {
    /// From clients.
    Up,
    /// From servers.
    Down,
    /// Both.
    Both,
}

/// A load on a gateway.
#[derive(Debug)]
pub struct GatewayLoad {
    /// What is between clients and servers.
    pub middlebox: Middlebox,
    /// Clients.
    pub clients: usize,
    /// Virtual connections per client, to one server after the other.
    pub each: usize,
    /// Servers.
    pub servers: usize,
    /// Lengths of messages, in turn, from `message::STAMP_LEN` to `message::MAX_MESSAGE`.
    pub sizes: Vec<u32>,
    /// The direction of messages.
    pub direction: MessageDirection,
    /// One client in this many does not read; 0 for none.
    pub non_reading: usize,
    /// Bytes in flight on one virtual connection in one direction; one message may always be. Default 128 KiB.
    pub window: u32,
    /// Bytes in flight in total, except to clients that do not read. Default 64 MiB.
    pub in_flight: u64,
    /// Messages after which the load ends early.
    pub messages: Option<u64>,
    /// Time without an arrival after which the remaining messages count as lost. Default 5 s.
    pub quiet: Duration,
}

impl GatewayLoad {
    fn size(&self) -> LoadSize {
        LoadSize { clients: self.clients, each: self.each, servers: self.servers }
    }

    fn check(&self) -> Result<(), LoadError> {
        within("--clients", self.clients, super::MAX_CLIENTS, "1 to 250000")?;
        within("--each", self.each, 64, "1 to 64")?;
        within("--servers", self.servers, 1000, "1 to 1000")?;
        within("--window", self.window as usize, 1 << 30, "1 byte to 1 GiB")?;
        within(
            "--clients times --each",
            self.size().virtual_connections(),
            MAX_VIRTUAL_CONNECTIONS,
            "at most 1000000",
        )?;
        for size in &self.sizes {
            let size = *size as usize;
            within(
                "--size",
                size.saturating_sub(message::STAMP_LEN - 1),
                message::MAX_MESSAGE,
                "at least 20 bytes",
            )?;
            within("--size", size, message::MAX_MESSAGE, "at most 524284 bytes")?;
        }
        let is_bad = |what, rule| Err(LoadError::Setting { what, rule });
        match &self.middlebox {
            _ if self.sizes.is_empty() => is_bad("--size", "at least 20 bytes"),
            Middlebox::Proxy(_) if self.each > 1 || self.servers != self.clients => {
                is_bad("--each", "1 through a proxy, with a server for each client")
            }
            _ => Ok(()),
        }
    }
}

/// A running load.
struct GatewayRun<'a, 'b> {
    load: &'a Load,
    what: &'a GatewayLoad,
    control: &'a mut RunControl<'b>,
    process: Option<Process>,
    exchange: Exchange,
    memory: MemoryUse,
    sampled: Instant,
}

impl Load {
    /// Connects clients and servers to a gateway and sends messages between them.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn gateway(
        &self,
        what: &GatewayLoad,
        control: &mut RunControl<'_>,
    ) -> Result<GatewayReport, LoadError> {
        what.check()?;
        let process = self.begin()?;
        let memory = MemoryUse::new(process.as_ref().map(Process::resident).transpose()?);
        let exchange = Exchange::new(what)?;
        let mut run =
            GatewayRun { load: self, what, control, process, exchange, memory, sampled: time::mono() };
        let connected = run.connect()?;
        let exchanged = run.exchange()?;
        let GatewayRun { mut exchange, memory, .. } = run;
        Ok(GatewayReport::new(self, what, &connected, &exchanged, exchange.finish(), memory))
    }
}

impl GatewayRun<'_, '_> {
    fn used(&self) -> Result<Option<(u64, u64)>, LoadError> {
        self.load.used(self.process.as_ref())
    }

    /// Connects servers and clients, and opens all virtual connections.
    fn connect(&mut self) -> Result<ConnectPhase, LoadError> {
        let (began, before) = (time::mono(), self.used()?);
        let (clients, all) = (self.what.clients, self.what.size().virtual_connections());
        let (mut connected, mut last, mut progress) = (0, (began, 0), ProgressReporter::new(all));
        if let Middlebox::Gateway { servers_at, handshake, key, first_id, .. } = &self.what.middlebox {
            for server in 0..self.what.servers {
                let id = first_id.wrapping_add(server as u32);
                let socket = handshake.connect_server(*servers_at, key, id);
                self.exchange.add_server(socket.map_err(|source| LoadError::ServerRefused {
                    address: *servers_at,
                    id,
                    source,
                })?)?;
            }
        }
        while self.exchange.virtual_connections.up() < all || connected < clients {
            if self.control.is_stopped() {
                return Err(LoadError::Interrupted);
            }
            let allowed = SETUP_CONCURRENCY + self.exchange.virtual_connections.up() / self.what.each;
            for _ in 0..64 {
                if connected < clients.min(allowed) {
                    self.connect_client(connected)?;
                    connected += 1;
                }
            }
            self.exchange.poll_once(STOP_CHECK)?;
            let (now, up) = (time::mono(), self.exchange.virtual_connections.up());
            (last.1..up).for_each(|_| progress.advance(self.control.on_stage));
            if up > last.1 {
                last = (now, up);
            }
            let is_refused = self.exchange.virtual_connections.refused + self.exchange.gone() > 0;
            if is_refused || (up < all && now - last.0 > SETUP_TIMEOUT) {
                let (refused, gone) = (self.exchange.virtual_connections.refused, self.exchange.gone());
                return Err(LoadError::NotDialled { up, of: all, refused, gone });
            }
        }
        let elapsed = time::mono() - began;
        let cpu = before.zip(self.used()?).map(|(a, b)| Duration::from_nanos(b.0.saturating_sub(a.0)));
        self.memory.connected = self.process.as_ref().map(Process::resident).transpose()?;
        Ok(ConnectPhase { elapsed, cpu })
    }

    fn connect_client(&mut self, number: usize) -> Result<(), LoadError> {
        let target = self.load.target;
        let failed = |source| LoadError::connecting(target, number, source);
        let socket =
            connect::connect_client(target.address(), number, self.exchange.flows.is_non_reading(number))
                .map_err(failed)?;
        let token = match &self.what.middlebox {
            Middlebox::Gateway { token, .. } => token.as_ref(),
            Middlebox::Proxy(listener) => {
                // Clients connect one by one, so that it is known whose connection this is.
                self.exchange.pair(socket, connect::accept(listener).map_err(failed)?)?;
                return Ok(());
            }
        };
        Ok(self.exchange.add_client(number, socket, token)?)
    }

    /// Sends until the time is over or enough messages were sent, and waits for those in flight.
    fn exchange(&mut self) -> Result<ExchangePhase, LoadError> {
        (self.control.on_stage)(LoadStage::Ready);
        let times = self.load.times;
        self.exchange.start(self.what);
        let began = time::mono();
        let (from, to) = (began + times.warm_up, began + times.warm_up + times.seconds);
        let (mut start, mut second, mut now) = (None, 0, began);
        while now < to && !self.control.is_stopped() {
            if start.is_none() && now >= from {
                self.exchange.flows.measure();
                start = Some((now, thread_cpu_ns(), self.used()?));
            }
            if self.exchange.flows.is_over() {
                now = self.drain()?;
                break;
            }
            self.exchange.poll_once(STOP_CHECK.min(to - now))?;
            now = time::mono();
            self.sample(now)?;
            if (now - began).as_secs() > second {
                second = (now - began).as_secs();
                let counts = self.exchange.flows.counts;
                let progress = (counts.sent, counts.received);
                self.control.report_progress(times, now - began, start.is_none(), progress);
            }
        }
        let Some((at, own_before, before)) = start else { return Err(LoadError::Interrupted) };
        let cpu = before.zip(self.used()?).map(|(a, b)| Duration::from_nanos(b.0.saturating_sub(a.0)));
        let own_cpu = Duration::from_nanos(thread_cpu_ns().saturating_sub(own_before));
        let measured = self.exchange.flows.measured.take().unwrap_or_default();
        self.drain()?;
        self.memory.end = self.process.as_ref().map(Process::resident).transpose()?;
        Ok(ExchangePhase { elapsed: now - at, cpu, own_cpu, measured })
    }

    /// Waits for messages in flight; returns the time of the last arrival.
    fn drain(&mut self) -> Result<Instant, LoadError> {
        self.exchange.flows.end();
        let mut last = (time::mono(), self.exchange.flows.unanswered());
        while last.1 > 0 && time::mono() - last.0 < self.what.quiet && !self.control.is_stopped() {
            self.exchange.poll_once(STOP_CHECK)?;
            let (now, left) = (time::mono(), self.exchange.flows.unanswered());
            self.sample(now)?;
            if left < last.1 {
                last = (now, left);
            }
        }
        Ok(last.0)
    }

    fn sample(&mut self, now: Instant) -> Result<(), LoadError> {
        if now - self.sampled >= SAMPLE_INTERVAL {
            self.sampled = now;
            self.memory.peak = self.memory.peak.max(self.used()?.map(|used| used.1));
        }
        Ok(())
    }
}
