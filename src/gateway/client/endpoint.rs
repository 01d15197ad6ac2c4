//! An endpoint as its user holds it, and the task that keeps it connected.

use super::carrier::{Carrier, Patience};
use super::codec::Codec;
use super::connection::VirtualConnection;
use super::door::{Address, Pass, refused};
use super::error::{AcceptError, ConnectError, DialError, Loss};
use super::line::Line;
use super::machine::Mux;
use super::settings::Settings;
use super::tls::Tls;
use crate::limits::Backoff;
use crate::net::network_changes::NetworkChanges;
use crate::net::time;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// How long what was sent last may take to leave.
const FLUSH: Duration = Duration::from_secs(2);

/// How long the gateway may take to answer after the host's addresses have changed.
const PROBE: Duration = Duration::from_secs(1);

/// How an endpoint stands with its gateway.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Status {
    /// Connected.
    Connected,
    /// The connection was lost, and another is being tried for.
    Reconnecting(Loss),
    /// It is over.
    Closed(Loss),
}

#[derive(Debug, Clone)]
enum Standing {
    Up(Arc<Line>),
    Down(Loss),
    Over(Loss),
}

/// Ends the endpoint with the last of its users.
#[derive(Debug)]
pub(super) struct Guard {
    stop: watch::Sender<bool>,
}

/// The last way to accept.
#[derive(Debug)]
struct Ear {
    standing: watch::Receiver<Standing>,
}

impl Drop for Ear {
    /// Whoever dials then is told at once; the line ends with its virtual connections.
    fn drop(&mut self) {
        if let Standing::Up(line) = &*self.standing.borrow() {
            line.deafen();
        }
    }
}

/// How to get to the gateway.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) address: Address,
    pub(super) tls: Tls,
    pub(super) pass: Pass,
    pub(super) settings: Settings,
}

/// One endpoint of a gateway: a client or a server. Cheap to clone; the last clone and the last virtual connection end it.
///
/// Whatever comes from outside waits in a backlog, whether somebody is in [`Endpoint::accept`] or not. When the gateway is lost, all virtual
/// connections end with [`Loss`], and `dial` and `accept` go on with the next connection to it.
#[derive(Debug, Clone)]
pub struct Endpoint<C> {
    standing: watch::Receiver<Standing>,
    guard: Arc<Guard>,
    _ear: Arc<Ear>,
    dial_timeout: Duration,
    codec: C,
}

type Running = Pin<Box<dyn Future<Output = Loss> + Send>>;

impl<C: Codec> Endpoint<C> {
    /// Connects, and goes on reconnecting if that is set.
    pub(super) async fn connect(route: Route, codec: C) -> Result<Self, ConnectError> {
        let (stop, stopped) = watch::channel(false);
        let first = route.establish(stopped.clone()).await?;
        Ok(Self::start(first, Some(route.clone()), (stop, stopped), &route.settings, codec))
    }

    /// Speaks on a stream that is there; there is no other.
    pub(super) async fn over(
        carrier: Carrier,
        pass: &Pass,
        settings: &Settings,
        codec: C,
    ) -> Result<Self, ConnectError> {
        let (stop, stopped) = watch::channel(false);
        let first = establish((carrier, None), pass, settings, stopped.clone()).await?;
        Ok(Self::start(first, None, (stop, stopped), settings, codec))
    }

    fn start(
        (line, running): (Arc<Line>, Running),
        route: Option<Route>,
        (stop, stopped): (watch::Sender<bool>, watch::Receiver<bool>),
        settings: &Settings,
        codec: C,
    ) -> Self {
        let (told, standing) = watch::channel(Standing::Up(Arc::clone(&line)));
        let dial_timeout = settings.dial_timeout;
        tokio::spawn(keep(line, running, route, told, stopped));
        let ear = Arc::new(Ear { standing: standing.clone() });
        Self { standing, guard: Arc::new(Guard { stop }), _ear: ear, dial_timeout, codec }
    }

    /// Connects to the server with this id, or to the client where this endpoint is a server (S2-23, S2-13). Many may be under way at a time.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn dial(&self, remote: u32) -> Result<VirtualConnection<C>, DialError> {
        let dialling = async {
            let line = self.up().await?;
            let conn = line.dial(remote).await?.ok_or(DialError::Refused(remote))?;
            Ok(VirtualConnection::new(line, conn, remote, Arc::clone(&self.guard), self.codec.clone()))
        };
        timeout(self.dial_timeout, dialling).await.unwrap_or(Err(DialError::TimedOut(self.dial_timeout)))
    }

    async fn up(&self) -> Result<Arc<Line>, Loss> {
        let mut standing = self.standing.clone();
        loop {
            match &*standing.borrow_and_update() {
                Standing::Up(line) if line.loss().is_none() => return Ok(Arc::clone(line)),
                Standing::Over(loss) => return Err(loss.clone()),
                Standing::Up(_) | Standing::Down(_) => {}
            }
            standing.changed().await.map_err(|_| Loss::Here)?;
        }
    }

    /// Waits for the next virtual connection from outside (S2-24). Several may wait, and the wait may be dropped.
    ///
    /// # Errors
    /// [`AcceptError`]: there will be none.
    pub async fn accept(&self) -> Result<VirtualConnection<C>, AcceptError> {
        let mut standing = self.standing.clone();
        loop {
            let line = match &*standing.borrow_and_update() {
                Standing::Up(line) => Some(Arc::clone(line)),
                Standing::Down(_) => None,
                Standing::Over(loss) => return Err(loss.clone().into()),
            };
            let accepted = async {
                match &line {
                    Some(line) => line.accept().await,
                    None => std::future::pending().await,
                }
            };
            let (conn, remote) = tokio::select! {
                accepted = accepted => accepted,
                changed = standing.changed() => {
                    changed.map_err(|_| Loss::Here)?;
                    continue;
                }
            };
            if let Some(line) = line {
                let guard = Arc::clone(&self.guard);
                return Ok(VirtualConnection::new(line, conn, remote, guard, self.codec.clone()));
            }
        }
    }

    /// Returns this side's address, while it is connected over TCP.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &*self.standing.borrow() {
            Standing::Up(line) => line.local,
            Standing::Down(_) | Standing::Over(_) => None,
        }
    }

    /// Returns how things stand with the gateway.
    #[must_use]
    pub fn status(&self) -> Status {
        status(&self.standing.borrow())
    }

    /// Returns what tells of every change of [`Endpoint::status`] from now on.
    #[must_use]
    pub fn changes(&self) -> Changes {
        let mut standing = self.standing.clone();
        standing.borrow_and_update();
        Changes(standing)
    }

    /// Closes all virtual connections, tells the gateway, and ends the endpoint; all that was sent before leaves first, for which two
    /// seconds are given.
    pub async fn close(self) {
        self.guard.stop.send_replace(true);
        let mut standing = self.standing;
        let _ = standing.wait_for(|standing| matches!(standing, Standing::Over(_))).await;
    }
}

/// Tells of changes of an endpoint's [`Status`].
#[derive(Debug)]
pub struct Changes(watch::Receiver<Standing>);

impl Changes {
    /// Waits for the next change; the last of several that came at once. `None` after the end.
    pub async fn next(&mut self) -> Option<Status> {
        self.0.changed().await.ok()?;
        Some(status(&self.0.borrow_and_update()))
    }
}

fn status(standing: &Standing) -> Status {
    match standing {
        Standing::Up(_) => Status::Connected,
        Standing::Down(loss) => Status::Reconnecting(loss.clone()),
        Standing::Over(loss) => Status::Closed(loss.clone()),
    }
}

impl Route {
    async fn establish(&self, stopped: watch::Receiver<bool>) -> Result<(Arc<Line>, Running), ConnectError> {
        let settings = &self.settings;
        let opened = self.address.open(&self.tls, settings.max_packet, settings.connect_timeout).await?;
        establish(opened, &self.pass, settings, stopped).await
    }
}

/// Shakes hands and waits for the gateway's first answer.
async fn establish(
    (mut carrier, local): (Carrier, Option<SocketAddr>),
    pass: &Pass,
    settings: &Settings,
    stopped: watch::Receiver<bool>,
) -> Result<(Arc<Line>, Running), ConnectError> {
    let limit = settings.auth_timeout;
    let entering = async {
        pass.shake(&mut carrier).await?;
        let mux = Mux::new(settings.limits(), pass.credit(), pass.token());
        let line = Arc::new(Line::new(mux, local));
        let mut running: Running = Box::pin(run(Arc::clone(&line), carrier, settings.clone(), stopped));
        tokio::select! {
            biased;
            () = line.ready() => Ok((line, running)),
            loss = &mut running => Err(match loss {
                Loss::Fault(_) => ConnectError::Impostor,
                // The gateway has proven that it knows the key, and so has this side.
                Loss::Closed | Loss::Broken(_) if pass.credit() => ConnectError::Taken,
                Loss::Broken(error) => refused(io::Error::new(error.kind(), error)),
                _ => ConnectError::Refused,
            }),
        }
    };
    timeout(limit, entering).await.unwrap_or(Err(ConnectError::TimedOut(limit)))
}

/// Resolves when the endpoint is to end, or when nobody is left who could say so.
async fn stop(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Reads and writes until the line is lost, or until somebody wants its end.
async fn run(
    line: Arc<Line>,
    carrier: Carrier,
    settings: Settings,
    mut stopped: watch::Receiver<bool>,
) -> Loss {
    let patience = Patience { receiver: settings.receive_patience, silence: settings.silence };
    let (reader, writer) = carrier.split(settings.read_buffer.max(1));
    let (reading, writing) = (reader.run(&line, patience), writer.run(&line));
    tokio::pin!(reading, writing);
    let loss = tokio::select! {
        loss = &mut reading => loss,
        loss = &mut writing => loss,
        () = stop(&mut stopped) => {
            line.finish();
            let _ = timeout(FLUSH, &mut writing).await;
            Loss::Here
        }
    };
    line.lose(loss.clone());
    loss
}

/// Keeps an endpoint connected.
async fn keep(
    mut line: Arc<Line>,
    mut running: Running,
    route: Option<Route>,
    told: watch::Sender<Standing>,
    mut stopped: watch::Receiver<bool>,
) {
    let plan = route.as_ref().and_then(|route| Some((route, route.settings.reconnect?)));
    let mut backoff = plan.map(|(_, range)| Backoff::new(range, ChaCha20Rng::from_os_rng()));
    // Clients come back when somebody uses them; a server is of use only where it is connected.
    let mut network = plan.filter(|(route, _)| route.pass.is_server()).map(|_| NetworkChanges::start());
    loop {
        let born = time::mono();
        let (loss, soon) = tokio::select! {
            loss = &mut running => (loss, false),
            () = left_behind(&line, network.as_mut()) => {
                line.lose(Loss::Silent);
                (Loss::Silent, true)
            }
        };
        // Its socket is closed before another one is opened.
        drop(running);
        let again = plan.zip(backoff.as_mut()).filter(|_| !matches!(loss, Loss::Here));
        let Some(((route, _), backoff)) = again else {
            told.send_replace(Standing::Over(loss));
            return;
        };
        tracing::debug!(%loss, "the gateway is lost");
        if soon {
            backoff.reset();
        }
        backoff.reset_after(time::mono().saturating_duration_since(born));
        told.send_replace(Standing::Down(loss));
        let known = stopped.clone();
        let reconnecting = reconnect(route, (backoff, soon), network.as_mut(), &known);
        (line, running) = tokio::select! {
            there = reconnecting => there,
            () = stop(&mut stopped) => {
                told.send_replace(Standing::Over(Loss::Here));
                return;
            }
        };
        told.send_replace(Standing::Up(Arc::clone(&line)));
    }
}

/// Tries until the gateway lets this endpoint in; soon when the network has changed.
async fn reconnect(
    route: &Route,
    (backoff, mut soon): (&mut Backoff, bool),
    mut network: Option<&mut NetworkChanges>,
    stopped: &watch::Receiver<bool>,
) -> (Arc<Line>, Running) {
    loop {
        match &mut network {
            Some(network) if soon => network.wait_after_change(backoff).await,
            Some(network) => network.wait_to_retry(backoff).await,
            None => sleep(backoff.wait()).await,
        }
        tokio::select! {
            there = route.establish(stopped.clone()) => match there {
                Ok(there) => return there,
                Err(error) => {
                    soon = false;
                    tracing::debug!(%error, "the gateway is still away");
                }
            },
            () = changed(network.as_deref_mut()) => soon = true,
        }
    }
}

async fn changed(network: Option<&mut NetworkChanges>) {
    match network {
        Some(network) => network.changed().await,
        None => std::future::pending().await,
    }
}

/// Resolves when the network has changed and the line was lost with it, without a word of the system's.
async fn left_behind(line: &Line, mut network: Option<&mut NetworkChanges>) {
    loop {
        changed(network.as_deref_mut()).await;
        if line.local.zip(network.as_deref()).is_some_and(|(at, network)| network.has_lost(at.ip())) {
            return;
        }
        let heard = line.heard();
        line.probe();
        sleep(PROBE).await;
        if line.heard() == heard {
            return;
        }
    }
}
