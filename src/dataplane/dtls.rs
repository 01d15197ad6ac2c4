//! DTLS 1.2 on the UDP listeners of one worker: the sessions of clients that returned a cookie. Only this file names the `dimpl` crate, which
//! implements each session's handshake, records and retransmissions.
//!
//! Input: datagrams and the time; output: datagrams and frames. It sends nothing itself. No state is kept for a client before it has returned a
//! cookie ([`crate::net::dtls_cookie`]). The crate requires that it runs the cookie exchange itself, so that each new session replays it with the
//! same cookie.

use crate::clock::{Deadlines, Now};
use crate::limits::{Exceeded, Limit, NetworkPrefix, Permit, Quota};
use crate::net::certificate::{Certificate, CertificateError};
use crate::net::dtls_cookie::{self, ClientHello, Cookie, CookieExchange, HelloVerdict};
use crate::turn_server::{FiveTuple, Transport};
use dimpl::crypto::{CryptoProvider, HashAlgorithm, HmacProvider, rust_crypto};
use dimpl::{CryptoError, CryptoOperation, DtlsCertificate};
use rand_chacha::ChaCha20Rng;
use ring::hmac;
use std::cell::Cell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Sessions of one worker.
const MAX_SESSIONS: usize = 8192;
/// Sessions of one worker from one IPv4 address or IPv6 /64.
const MAX_PER_NETWORK: usize = 1024;
/// Shortest time between two handshakes of one client address and port.
const RESTART_TIME: Duration = Duration::from_secs(1);
/// Time for a handshake.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Longest silence of a session without authentication.
const IDLE_UNAUTHENTICATED: Duration = Duration::from_secs(60);
/// Longest silence of an authenticated session: longer than an allocation lives without a Refresh.
const IDLE_AUTHENTICATED: Duration = Duration::from_secs(3660);
/// Bytes of one handshake datagram; fits the smallest IPv6 path through a tunnel.
const MTU: usize = 1150;
/// Size of the largest datagram.
const MAX_DATAGRAM: usize = 65_535;
/// Interval of log lines about engines that panicked.
const WARN_EVERY: Duration = Duration::from_secs(60);
/// Sent when no handshake is possible: alert, fatal, handshake_failure.
const HANDSHAKE_FAILURE: [u8; 15] = [21, 0xFE, 0xFD, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 40];

/// What the worker must do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Send a datagram.
    Datagram { client: FiveTuple, bytes: Vec<u8> },
    /// Send a datagram to a client whose address may be forged.
    Challenge { client: FiveTuple, bytes: Vec<u8> },
    /// Handle a frame that the client sent.
    Frame { client: FiveTuple, bytes: Vec<u8> },
    /// The session has ended.
    Closed { client: FiveTuple },
}

/// A session's key: the client's and the server's address.
type Ends = (SocketAddr, SocketAddr);

/// What new sessions need.
#[derive(Debug, Clone)]
pub(crate) struct DtlsIdentity {
    config: Arc<dimpl::Config>,
    certificate: DtlsCertificate,
}

/// One worker's sessions.
#[derive(Debug)]
pub(crate) struct Dtls {
    identity: DtlsIdentity,
    cookies: CookieExchange,
    sessions: HashMap<Ends, Session>,
    quota: Arc<Quota<NetworkPrefix>>,
    /// Clients that began a handshake within [`RESTART_TIME`], as a list with the oldest first and as a set.
    begun: VecDeque<(Instant, Ends)>,
    recent: HashSet<Ends>,
    deadlines: Deadlines<Ends>,
    outputs: VecDeque<Output>,
    buffer: Vec<u8>,
    failed_engines: FailedEngines,
}

/// One session's engine. The crate asserts its own invariants, and a datagram that
/// violates them must end only its own session.
struct Engine(Option<dimpl::Dtls>);

impl Engine {
    /// Calls the engine; `None` when it panicked, now or before. It is dropped then.
    fn run<T>(&mut self, call: impl FnOnce(&mut dimpl::Dtls) -> T) -> Option<T> {
        let engine = self.0.as_mut()?;
        let done = catch_unwind(AssertUnwindSafe(|| call(engine)));
        if done.is_err() {
            let engine = self.0.take();
            let _ = catch_unwind(AssertUnwindSafe(|| drop(engine)));
        }
        done.ok()
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Engine").field(&self.0.is_some()).finish()
    }
}

/// The number of engines that panicked, for the log.
#[derive(Debug, Default)]
struct FailedEngines {
    engines: u64,
    /// The number in the last warning, and its time.
    last_warning: Option<(u64, Instant)>,
}

impl FailedEngines {
    fn report(&mut self, now: Instant) {
        let (known, recently) = match self.last_warning {
            None => (0, false),
            Some((known, at)) => (known, now.saturating_duration_since(at) < WARN_EVERY),
        };
        if self.engines > known && !recently {
            self.last_warning = Some((self.engines, now));
            tracing::warn!(
                sessions = self.engines,
                "DTLS sessions ended by a fault in the DTLS library so far"
            );
        }
    }
}

#[derive(Debug)]
struct Session {
    engine: Engine,
    /// From its ClientHello.
    random: Vec<u8>,
    /// Added to the numbers of plaintext records, so that they continue the client's.
    offset: u64,
    created_at: Instant,
    last_received: Instant,
    wake: Instant,
    connected: bool,
    authenticated: bool,
    ended: bool,
    _permit: Permit<NetworkPrefix>,
}

impl Session {
    fn expiry(&self) -> Instant {
        match (self.connected, self.authenticated) {
            (false, _) => self.created_at + HANDSHAKE_TIME,
            (true, false) => self.last_received + IDLE_UNAUTHENTICATED,
            (true, true) => self.last_received + IDLE_AUTHENTICATED,
        }
    }
}

impl DtlsIdentity {
    /// Uses the certificate of TLS, or the self-signed one in `folder` where that is not ECDSA on P-256 or P-384.
    ///
    /// # Errors
    /// [`CertificateError`] when the self-signed one cannot be read or created.
    pub(crate) fn new(certificate: &Certificate, folder: &Path) -> Result<Self, CertificateError> {
        let unusable = |error: dimpl::Error| certificate.unusable(error);
        let provider = CryptoProvider { hmac_provider: &COOKIE_HMAC, ..rust_crypto::default_provider() };
        let keys = provider.key_provider;
        let usable = |certificate: &Certificate| {
            let leaf = certificate.chain.first()?.to_vec();
            keys.load_private_key(certificate.key.secret_der()).ok()?;
            let key = certificate.key.secret_der().to_vec();
            Some(DtlsCertificate { certificate: leaf, private_key: key })
        };
        let config = dimpl::Config::builder()
            .with_crypto_provider(provider)
            .require_client_certificate(false)
            .handshake_timeout(HANDSHAKE_TIME)
            .mtu(MTU)
            .build()
            .map_err(unusable)?;
        let certificate = match usable(certificate) {
            Some(usable) => usable,
            None => {
                tracing::warn!(
                    "DTLS needs an ECDSA key on P-256 or P-384; it uses a self-signed certificate instead"
                );
                let own = Certificate::own(folder)?;
                usable(&own).ok_or_else(|| own.unusable("no certificate for DTLS"))?
            }
        };
        Ok(Self { config: Arc::new(config), certificate })
    }
}

impl Dtls {
    pub(crate) fn new(now: Now, identity: DtlsIdentity, rng: ChaCha20Rng) -> Self {
        Self {
            identity,
            cookies: CookieExchange::new(now, rng),
            sessions: HashMap::new(),
            quota: Quota::new(MAX_SESSIONS, MAX_PER_NETWORK),
            begun: VecDeque::new(),
            recent: HashSet::new(),
            deadlines: Deadlines::default(),
            outputs: VecDeque::new(),
            buffer: vec![0; MAX_DATAGRAM],
            failed_engines: FailedEngines::default(),
        }
    }

    /// Handles a DTLS datagram; returns `false` when it is dropped. `admits` decides whether another handshake, which costs a signature
    /// and a key agreement, may begin.
    pub(crate) fn handle_datagram(
        &mut self,
        now: Now,
        ends: Ends,
        datagram: &[u8],
        admits: impl FnOnce() -> bool,
    ) -> bool {
        if dtls_cookie::is_client_hello(datagram) {
            return self.handle_hello(now, ends, datagram, admits);
        }
        if let Some(session) = self.sessions.get_mut(&ends) {
            session.last_received = now.mono;
        }
        self.step(now, ends, |engine| engine.handle_packet(datagram))
    }

    /// Encrypts a frame; returns `false` when the client has no session.
    pub(crate) fn send(&mut self, client: FiveTuple, frame: &[u8]) -> bool {
        let ends = (client.client, client.server);
        let Some(session) = self.sessions.get_mut(&ends).filter(|session| session.connected) else {
            return false;
        };
        let taken = session.engine.run(|engine| engine.send_application_data(frame).is_ok());
        self.drain(ends);
        taken == Some(true)
    }

    /// Marks a client as authenticated: it may stay silent for longer.
    pub(crate) fn mark_authenticated(&mut self, client: FiveTuple) {
        if let Some(session) = self.sessions.get_mut(&(client.client, client.server)) {
            session.authenticated = true;
        }
    }

    /// Handles what is due: retransmissions, and the end of handshakes and silent sessions.
    pub(crate) fn handle_timeout(&mut self, now: Now) {
        self.failed_engines.report(now.mono);
        // Each session at most once, so that none delays the worker.
        let due: Vec<Ends> = std::iter::from_fn(|| self.deadlines.pop_due(now.mono)).collect();
        for ends in due {
            let Some(session) = self.sessions.get_mut(&ends) else { continue };
            session.wake = session.expiry();
            if session.wake <= now.mono {
                // The client learns that the session has ended.
                let _ = session.engine.run(dimpl::Dtls::close);
                session.ended = true;
            } else {
                self.deadlines.set(ends, session.wake);
            }
            self.step(now, ends, |_| Ok(()));
        }
    }

    /// Returns when [`Self::handle_timeout`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.next()
    }

    /// Returns the next output.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn handle_hello(&mut self, now: Now, ends: Ends, datagram: &[u8], admits: impl FnOnce() -> bool) -> bool {
        let Some(hello) = ClientHello::parse(datagram) else { return false };
        match self.cookies.check(now, ends.0, &hello) {
            HelloVerdict::Verify(bytes) | HelloVerdict::Refuse(bytes) => {
                self.outputs.push_back(Output::Challenge { client: tuple(ends), bytes });
                true
            }
            HelloVerdict::Accept(_)
                if self.sessions.get(&ends).is_some_and(|known| known.random == hello.random()) =>
            {
                self.step(now, ends, |engine| engine.handle_packet(datagram))
            }
            HelloVerdict::Accept(_) if self.has_just_begun(now, ends) || !admits() => false,
            HelloVerdict::Accept(cookie) => {
                self.begun.push_back((now.mono, ends));
                self.recent.insert(ends);
                // The same address with another handshake: the client restarted (RFC 6347 section 4.2.8).
                self.remove(ends);
                self.admit(now, ends, &hello, (cookie, datagram))
            }
        }
    }

    /// Returns whether a client began a handshake within [`RESTART_TIME`]: one cookie is valid for many.
    fn has_just_begun(&mut self, now: Now, ends: Ends) -> bool {
        while let Some((at, older)) = self.begun.front()
            && now.mono.saturating_duration_since(*at) >= RESTART_TIME
        {
            self.recent.remove(older);
            self.begun.pop_front();
        }
        // The list is bounded like the sessions, also without a limit on handshakes.
        self.recent.contains(&ends) || self.begun.len() >= MAX_SESSIONS
    }

    /// Creates a session and replays the cookie exchange.
    fn admit(
        &mut self,
        now: Now,
        ends: Ends,
        hello: &ClientHello<'_>,
        (cookie, datagram): (Cookie, &[u8]),
    ) -> bool {
        let permit = match self.quota.acquire(NetworkPrefix::subscriber(ends.0.ip()), 1) {
            Ok(permit) => permit,
            Err(exceeded) => {
                let limit = match exceeded {
                    Exceeded::Key => Limit::DtlsSessionsPerNetwork,
                    Exceeded::Total => Limit::DtlsSessions,
                };
                limit.reached(self.quota.max(exceeded));
                return false;
            }
        };
        let DtlsIdentity { config, certificate } = &self.identity;
        let mut engine = Engine(Some(dimpl::Dtls::new_12(Arc::clone(config), certificate.clone(), now.mono)));
        EXPECTED_COOKIE.set(Some(cookie));
        let begun = engine.run(|engine| {
            engine.handle_timeout(now.mono)?;
            let repeated = engine.handle_packet(&hello.first());
            // The HelloVerifyRequest that the client has received.
            while let dimpl::Output::Packet(_) = engine.poll_output(&mut self.buffer) {}
            repeated.and_then(|()| engine.handle_packet(datagram))
        });
        EXPECTED_COOKIE.set(None);
        if !matches!(begun, Some(Ok(()))) {
            match begun {
                Some(Err(error)) => tracing::debug!(%error, "DTLS handshake"),
                _ => self.failed_engines.engines += 1,
            }
            let bytes = HANDSHAKE_FAILURE.to_vec();
            self.outputs.push_back(Output::Datagram { client: tuple(ends), bytes });
            return true;
        }
        let session = Session {
            engine,
            random: hello.random().to_vec(),
            // The crate has used number 0 for its HelloVerifyRequest.
            offset: hello.record_number().saturating_sub(1),
            created_at: now.mono,
            last_received: now.mono,
            wake: now.mono + HANDSHAKE_TIME,
            connected: false,
            authenticated: false,
            ended: false,
            _permit: permit,
        };
        self.deadlines.set(ends, session.wake);
        self.sessions.insert(ends, session);
        self.drain(ends);
        true
    }

    /// Calls a session and handles its output; returns `false` when there is none, or it refuses.
    fn step(
        &mut self,
        now: Now,
        ends: Ends,
        call: impl FnOnce(&mut dimpl::Dtls) -> Result<(), dimpl::Error>,
    ) -> bool {
        let Some(session) = self.sessions.get_mut(&ends) else { return false };
        let done = session.engine.run(|engine| engine.handle_timeout(now.mono).and_then(|()| call(engine)));
        if let Some(Err(error)) = &done {
            tracing::debug!(%error, "DTLS session");
            session.ended = true;
        }
        self.drain(ends);
        matches!(done, Some(Ok(())))
    }

    /// Handles all output of a session, and its end.
    fn drain(&mut self, ends: Ends) {
        let Some(session) = self.sessions.get_mut(&ends) else { return };
        let (client, buffer, outputs) = (tuple(ends), &mut self.buffer, &mut self.outputs);
        let wake = session.engine.run(|engine| {
            loop {
                match engine.poll_output(buffer) {
                    dimpl::Output::Packet(bytes) => {
                        let mut bytes = bytes.to_vec();
                        renumber(&mut bytes, session.offset);
                        outputs.push_back(Output::Datagram { client, bytes });
                    }
                    dimpl::Output::ApplicationData(bytes) => {
                        outputs.push_back(Output::Frame { client, bytes: bytes.to_vec() });
                    }
                    dimpl::Output::Connected => session.connected = true,
                    dimpl::Output::CloseNotify => session.ended = true,
                    // No datagram is longer than the buffer.
                    dimpl::Output::BufferTooSmall { .. } => {
                        session.ended = true;
                        break session.wake;
                    }
                    dimpl::Output::Timeout(at) => break at,
                    _ => {}
                }
            }
        });
        let Some(wake) = wake.map(|at| at.min(session.expiry())) else {
            self.failed_engines.engines += 1;
            return self.remove(ends);
        };
        if session.ended {
            self.remove(ends);
        } else if wake < session.wake {
            session.wake = wake;
            self.deadlines.set(ends, wake);
        }
    }

    fn remove(&mut self, ends: Ends) {
        if self.sessions.remove(&ends).is_none() {
            return;
        }
        self.deadlines.clear(ends);
        self.outputs.push_back(Output::Closed { client: tuple(ends) });
    }
}

fn tuple((client, server): Ends) -> FiveTuple {
    FiveTuple { client, server, transport: Transport::Dtls }
}

/// Adds `offset` to the number of every plaintext record: a ServerHello has the number of its ClientHello
/// ([RFC 6347 section 4.2.1](https://www.rfc-editor.org/rfc/rfc6347#section-4.2.1)), and later ones follow.
fn renumber(mut datagram: &mut [u8], offset: u64) {
    while offset > 0
        && let Some(header) = datagram.first_chunk_mut::<13>()
    {
        if header[3..5] == [0, 0] {
            let number = header[5..11].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
            header[5..11].copy_from_slice(&(number + offset).to_be_bytes()[2..]);
        }
        let record = 13 + usize::from(u16::from_be_bytes([header[11], header[12]]));
        let Some((_, rest)) = datagram.split_at_mut_checked(record) else { return };
        datagram = rest;
    }
}

thread_local! {
    /// The cookie that the new session must accept.
    static EXPECTED_COOKIE: Cell<Option<Cookie>> = const { Cell::new(None) };
}

/// HMAC for the crate. Only the cookie exchange calls [`HmacProvider::hmac_sha256`]; it gets the cookie that
/// [`CookieExchange`] has verified.
#[derive(Debug)]
struct CookieHmac;

static COOKIE_HMAC: CookieHmac = CookieHmac;

impl HmacProvider for CookieHmac {
    fn hmac_sha256(&self, key: &[u8], data: &[u8]) -> Result<[u8; 32], CryptoError> {
        if let Some(cookie) = EXPECTED_COOKIE.get() {
            return Ok(cookie);
        }
        let mut mac = [0; 32];
        self.hmac(HashAlgorithm::SHA256, key, data, &mut mac)?;
        Ok(mac)
    }

    fn hmac(
        &self,
        hash: HashAlgorithm,
        key: &[u8],
        data: &[u8],
        out: &mut [u8],
    ) -> Result<usize, CryptoError> {
        let algorithm = match hash {
            HashAlgorithm::SHA256 => hmac::HMAC_SHA256,
            HashAlgorithm::SHA384 => hmac::HMAC_SHA384,
            _ => return Err(CryptoError::UnsupportedHmacHash(hash)),
        };
        let mac = hmac::sign(&hmac::Key::new(algorithm, key), data);
        let length = mac.as_ref().len();
        let tag = out.get_mut(..length).ok_or(CryptoError::OperationFailed(CryptoOperation::ComputeHmac))?;
        tag.copy_from_slice(mac.as_ref());
        Ok(length)
    }
}

#[cfg(test)]
#[path = "dtls_tests.rs"]
mod tests;
