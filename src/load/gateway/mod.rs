//! Clients and servers of a gateway in large numbers, both in this process and on one thread: virtual connections that are opened
//! and held, and messages through them that are counted, timed and compared at the receiver.
//!
//! [`message`] is what is sent, `flows` what has come of it, `virtual_connections` what is said to the gateway, all of them without sockets;
//! `connection`, `connect` and `exchange` have the sockets.

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
use super::{Load, LoadProgress, LoadStage, RunControl};
use crate::gateway::handshake::Key;
use crate::gateway::token::GatewayToken;
use crate::net::time;
use exchange::Exchange;
use report::{ConnectPhase, ExchangePhase, MemoryUse};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use virtual_connections::LoadSize;

/// The most virtual connections of a load.
pub(crate) const MOST: usize = 1_000_000;
/// The longest wait middlebox looks at whether to stop.
const LOOK: Duration = Duration::from_millis(20);
/// How long nothing may come up before the load is given up.
const STUCK: Duration = Duration::from_secs(10);
/// How many clients come in at a time.
const AT_A_TIME: usize = 256;
/// How often the watched process's memory is looked at.
const SAMPLE: Duration = Duration::from_millis(250);

/// What stands middlebox clients and servers.
#[derive(Debug)]
pub enum Middlebox {
    /// A gateway.
    Gateway {
        /// Where servers come in.
        servers_at: SocketAddr,
        /// How they do.
        handshake: HandshakeKind,
        /// What they must know.
        key: Key,
        /// The id of the first one; the others follow. Default 1.
        first_id: u32,
        /// What clients show, where the gateway wants tokens.
        token: Option<GatewayToken>,
    },
    /// Something that connects to this listener for each connection it accepts, and copies bytes: the same frames, without
    /// commands, one virtual connection a client, a server each. For comparison with bare proxies.
    Proxy(TcpListener),
}

/// Which direction messages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageDirection {
    /// From clients.
    Up,
    /// From servers.
    Down,
    /// Both.
    Both,
}

/// What clients and servers of a gateway do.
#[derive(Debug)]
pub struct GatewayLoad {
    /// What is middlebox them.
    pub middlebox: Middlebox,
    /// How many clients there are.
    pub clients: usize,
    /// How many virtual connections each dials, to one server after the other.
    pub each: usize,
    /// How many servers there are.
    pub servers: usize,
    /// Bytes of messages, in turn; from `message::STAMP_LEN` to `message::LONGEST`.
    pub sizes: Vec<u32>,
    /// Which direction they go.
    pub direction: MessageDirection,
    /// One client in so many reads nothing; 0 for none.
    pub non_reading: usize,
    /// Bytes under direction through a virtual connection in one direction; one message may always be. Default 128 KiB.
    pub window: u32,
    /// Bytes under direction in all but to those who do not read. Default 64 MiB.
    pub in_flight: u64,
    /// Messages after which it virtual_connections before its time.
    pub messages: Option<u64>,
    /// How long nothing may arrive in the end before the rest is taken for lost. Default 5 s.
    pub quiet: Duration,
}

impl GatewayLoad {
    fn size(&self) -> LoadSize {
        LoadSize { clients: self.clients, each: self.each, servers: self.servers }
    }

    fn check(&self) -> Result<(), LoadError> {
        within("--clients", self.clients, super::MOST_CLIENTS, "1 to 250000")?;
        within("--each", self.each, 64, "1 to 64")?;
        within("--servers", self.servers, 1000, "1 to 1000")?;
        within("--window", self.window as usize, 1 << 30, "1 byte to 1 GiB")?;
        within("--clients times --each", self.size().virtual_connections(), MOST, "at most 1000000")?;
        for size in &self.sizes {
            let size = *size as usize;
            within(
                "--size",
                size.saturating_sub(message::STAMP_LEN - 1),
                message::LONGEST,
                "at least 20 bytes",
            )?;
            within("--size", size, message::LONGEST, "at most 524284 bytes")?;
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

/// A load under direction.
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
    /// Connects clients and servers to a gateway, lets them send each other messages, and says what has become of these.
    ///
    /// # Errors
    /// What failed, and what to do about it.
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
    fn stopped(&self) -> bool {
        self.control.stop.load(Ordering::Relaxed)
    }

    fn used(&self) -> Result<Option<(u64, u64)>, LoadError> {
        self.load.used(self.process.as_ref())
    }

    /// Brings servers and clients in, and all virtual connections up.
    fn connect(&mut self) -> Result<ConnectPhase, LoadError> {
        let (began, before) = (time::mono(), self.used()?);
        let (clients, all) = (self.what.clients, self.what.size().virtual_connections());
        let (mut entered, mut last, mut told) = (0, (began, 0), ProgressReporter::new(all));
        if let Middlebox::Gateway { servers_at, handshake, key, first_id, .. } = &self.what.middlebox {
            for server in 0..self.what.servers {
                let id = first_id.wrapping_add(server as u32);
                let socket = handshake.connect_server(*servers_at, key, id);
                self.exchange.add_server(socket.map_err(|source| LoadError::ServerDoor {
                    address: *servers_at,
                    id,
                    source,
                })?)?;
            }
        }
        while self.exchange.virtual_connections.up() < all || entered < clients {
            if self.stopped() {
                return Err(LoadError::Interrupted);
            }
            let may = AT_A_TIME + self.exchange.virtual_connections.up() / self.what.each;
            for _ in 0..64 {
                if entered < clients.min(may) {
                    self.connect_client(entered)?;
                    entered += 1;
                }
            }
            self.exchange.pump(LOOK)?;
            let (now, up) = (time::mono(), self.exchange.virtual_connections.up());
            (last.1..up).for_each(|_| told.one_more(self.control.on_stage));
            if up > last.1 {
                last = (now, up);
            }
            let is_turned_away = self.exchange.virtual_connections.refused + self.exchange.gone() > 0;
            if is_turned_away || (up < all && now - last.0 > STUCK) {
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
                // Clients come one by one, so that it is clear whose connection this is.
                self.exchange.pair(socket, connect::accept(listener).map_err(failed)?)?;
                return Ok(());
            }
        };
        Ok(self.exchange.add_client(number, socket, token)?)
    }

    /// Lets all send until the time is over or enough is sent, and waits for what is under direction.
    fn exchange(&mut self) -> Result<ExchangePhase, LoadError> {
        (self.control.on_stage)(LoadStage::Ready);
        let times = self.load.times;
        self.exchange.start(self.what);
        let began = time::mono();
        let (from, to) = (began + times.warm_up, began + times.warm_up + times.seconds);
        let (mut start, mut second, mut now) = (None, 0, began);
        while now < to && !self.stopped() {
            if start.is_none() && now >= from {
                self.exchange.flows.measure();
                start = Some((now, thread_cpu_ns(), self.used()?));
            }
            if self.exchange.flows.is_over() {
                now = self.drain()?;
                break;
            }
            self.exchange.pump(LOOK.min(to - now))?;
            now = time::mono();
            self.sample(now)?;
            if (now - began).as_secs() > second {
                second = (now - began).as_secs();
                self.tell(now - began, start.is_none());
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

    /// Waits for what is under direction; returns when the last of it came.
    fn drain(&mut self) -> Result<Instant, LoadError> {
        self.exchange.flows.end();
        let mut last = (time::mono(), self.exchange.flows.unanswered());
        while last.1 > 0 && time::mono() - last.0 < self.what.quiet && !self.stopped() {
            self.exchange.pump(LOOK)?;
            let (now, left) = (time::mono(), self.exchange.flows.unanswered());
            self.sample(now)?;
            if left < last.1 {
                last = (now, left);
            }
        }
        Ok(last.0)
    }

    fn sample(&mut self, now: Instant) -> Result<(), LoadError> {
        if now - self.sampled >= SAMPLE {
            self.sampled = now;
            self.memory.peak = self.memory.peak.max(self.used()?.map(|used| used.1));
        }
        Ok(())
    }

    fn tell(&mut self, elapsed: Duration, warming_up: bool) {
        let whole = self.load.times.warm_up + self.load.times.seconds;
        let counts = self.exchange.flows.counts;
        let (sent, received) = (counts.sent, counts.received);
        (self.control.on_stage)(LoadStage::Traffic(LoadProgress {
            elapsed,
            whole,
            warming_up,
            sent,
            received,
        }));
    }
}
