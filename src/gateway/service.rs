//! The gateway's hands on tokio's side: handshakes with servers, and the way to the worker thread.

use super::config::{Config, Duplicates};
use super::counters::Counters;
use super::handshake::{ANSWER, CHALLENGE, Key, MD5_ANSWER, MD5_CHALLENGE};
use super::socket::Socket;
use super::worker::{Arrival, ToWorker, Who, Worker};
use crate::limits::sampled;
use crate::net::time;
use bytes::BytesMut;
use mio::Waker;
use rand::rngs::OsRng;
use rand::{SeedableRng, TryRngCore};
use rand_chacha::ChaCha20Rng;
use std::any::Any;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// The lowest server id that an access key admits to.
pub const OPEN_IDS: u32 = 0x8000_0000;

/// A running gateway.
#[derive(Debug)]
pub struct Service {
    handle: Handle,
    thread: JoinHandle<()>,
    failed: oneshot::Receiver<String>,
}

/// The way to a running gateway.
#[derive(Debug, Clone)]
pub struct Handle {
    queue: mpsc::Sender<ToWorker>,
    bell: Arc<Waker>,
    config: Arc<Config>,
}

/// Who a stream that is no plain socket belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A client, by its address.
    Client(IpAddr),
    /// A server that has shaken hands.
    Server(Proven),
}

impl Peer {
    fn who(self) -> Who {
        match self {
            Self::Client(ip) => Who::Client { ip },
            Self::Server(proven) => proven.0,
        }
    }
}

/// A server that has shown that it may have its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proven(Who);

impl Proven {
    /// Returns the server's id.
    #[must_use]
    pub fn id(&self) -> u32 {
        match self.0 {
            Who::Server { id, .. } => id,
            Who::Client { .. } => 0,
        }
    }
}

impl Service {
    /// Starts the gateway's thread.
    ///
    /// # Errors
    /// The system's, where it refuses a thread or a poll.
    pub fn start(config: Config, seed: u64) -> io::Result<Self> {
        let (queue, told) = mpsc::channel();
        let (worker, bell) = Worker::new(&config, ChaCha20Rng::seed_from_u64(seed), told)?;
        let (say, failed) = oneshot::channel();
        let run = move || {
            if let Err(error) = worker.run() {
                // Nobody may be left to hear it.
                let _ = say.send(error.to_string());
            }
        };
        let thread = std::thread::Builder::new().name("gateway".into()).spawn(run)?;
        let handle = Handle { queue, bell: Arc::new(bell), config: Arc::new(config) };
        Ok(Self { handle, thread, failed })
    }

    /// Returns a way to it.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits for the thread's failure; never returns while all is well.
    pub async fn failed(&mut self) -> String {
        match (&mut self.failed).await {
            Ok(error) => error,
            Err(_) => "its thread panicked".to_owned(),
        }
    }

    /// Ends it, with all its connections, and waits for it.
    pub async fn shutdown(self) {
        self.handle.send(ToWorker::Stop);
        let thread = self.thread;
        let joined = tokio::task::spawn_blocking(|| thread.join()).await;
        if !matches!(joined, Ok(Ok(()))) {
            tracing::warn!("the gateway did not endpoint well");
        }
    }
}

impl Handle {
    /// Returns what is configured.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Gives the worker a client's TCP connection, with what was read of it already.
    ///
    /// # Errors
    /// The system's, where the socket cannot be taken out of the runtime.
    pub fn client(
        &self,
        stream: TcpStream,
        early: BytesMut,
        ip: IpAddr,
        permit: impl Any + Send,
    ) -> io::Result<()> {
        let socket = Socket::Tcp(mio::net::TcpStream::from_std(stream.into_std()?));
        self.arrive(Who::Client { ip }, socket, early, permit);
        Ok(())
    }

    /// Gives the worker a server's TCP connection after its handshake.
    ///
    /// # Errors
    /// As [`Handle::client`].
    pub fn server(&self, stream: TcpStream, proven: Proven, permit: impl Any + Send) -> io::Result<()> {
        let socket = Socket::Tcp(mio::net::TcpStream::from_std(stream.into_std()?));
        self.arrive(proven.0, socket, BytesMut::new(), permit);
        Ok(())
    }

    /// Gives the worker one endpoint of a socket pair that stands for `peer`; returns the other endpoint.
    ///
    /// # Errors
    /// The system's, where there are no more descriptors.
    pub fn pair(&self, peer: Peer, permit: impl Any + Send) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let socket = Socket::Pair(mio::net::UnixStream::from_std(theirs.into_std()?));
        self.arrive(peer.who(), socket, BytesMut::new(), permit);
        Ok(ours)
    }

    /// Carries a stream that is not a plain socket, until either side endpoints it. Its writes have no deadline of their own.
    ///
    /// # Errors
    /// The stream's.
    pub async fn carry(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        peer: Peer,
        permit: impl Any + Send,
    ) -> io::Result<()> {
        let (mut from, mut to) = self.pair(peer, permit)?.into_split();
        let (mut reader, mut writer) = tokio::io::split(stream);
        // Either endpoint is the endpoint of both: an endpoint that the gateway has dropped may never say another word.
        let copied = tokio::select! {
            copied = copy(&mut reader, &mut to) => copied,
            copied = copy(&mut from, &mut writer) => copied,
        };
        copied.map(drop)
    }

    /// Shakes hands as the document has it: MD5 (S2-15 … S2-18). A server that does not hold the key is told nothing.
    ///
    /// # Errors
    /// The stream's; `TimedOut`; `PermissionDenied`.
    pub async fn md5_handshake(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    ) -> io::Result<Proven> {
        let Some(key) = &self.config.key else { return Err(io::ErrorKind::PermissionDenied.into()) };
        let challenge: [u8; MD5_CHALLENGE] = random()?;
        let mut answer = [0; MD5_ANSWER];
        timeout(self.handshake_time(), async {
            stream.write_all(&challenge).await?;
            stream.flush().await?;
            stream.read_exact(&mut answer).await
        })
        .await??;
        let id = key.check_md5(&challenge, &answer).ok_or(io::ErrorKind::PermissionDenied)?;
        Ok(Proven(Who::Server { id, credit: false, duplicates: self.config.duplicates }))
    }

    /// Begins an HMAC handshake: returns what to send to the server.
    ///
    /// # Errors
    /// The system's, where it has no randomness.
    pub fn challenge(&self) -> io::Result<[u8; CHALLENGE]> {
        random()
    }

    /// Checks a server's answer; returns it and the proof to send back. `None` where it holds neither key, or an access key and wants an
    /// id that takes more.
    #[must_use]
    pub fn check(&self, challenge: &[u8; CHALLENGE], answer: &[u8; ANSWER]) -> Option<(Proven, [u8; 32])> {
        let found = |key: &Key| key.check(challenge, answer);
        if let Some((id, proof)) = self.config.key.as_ref().and_then(found) {
            let duplicates = self.config.duplicates;
            return Some((Proven(Who::Server { id, credit: true, duplicates }), proof));
        }
        let (id, proof) = self.config.access_keys.iter().find_map(found)?;
        let proven = Proven(Who::Server { id, credit: true, duplicates: Duplicates::Refuse });
        (id >= OPEN_IDS).then_some((proven, proof))
    }

    /// Shakes hands on a stream of the HMAC door.
    ///
    /// # Errors
    /// As [`Handle::md5_handshake`].
    pub async fn hmac_handshake(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    ) -> io::Result<Proven> {
        let challenge = self.challenge()?;
        let mut answer = [0; ANSWER];
        timeout(self.handshake_time(), async {
            stream.write_all(&challenge).await?;
            stream.flush().await?;
            stream.read_exact(&mut answer).await?;
            let (proven, proof) = self.check(&challenge, &answer).ok_or(io::ErrorKind::PermissionDenied)?;
            stream.write_all(&proof).await?;
            stream.flush().await?;
            Ok(proven)
        })
        .await?
    }

    /// Returns how long a handshake may take.
    #[must_use]
    pub fn handshake_time(&self) -> Duration {
        self.config.rules.times.handshake
    }

    /// Returns what there is and has been; `None` when the gateway has ended.
    pub async fn counters(&self) -> Option<Counters> {
        let (reply, counters) = oneshot::channel();
        self.send(ToWorker::Count(reply));
        counters.await.ok()
    }

    fn arrive(&self, who: Who, socket: Socket, early: BytesMut, permit: impl Any + Send) {
        self.send(ToWorker::Arrived(Arrival { who, socket, early, permit: Box::new(permit) }));
    }

    fn send(&self, told: ToWorker) {
        // A worker that has ended closes what it is not told of any more.
        if self.queue.send(told).is_ok()
            && let Err(error) = self.bell.wake()
        {
            sampled!(warn, time::mono(), %error, "the gateway cannot be woken");
        }
    }
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    OsRng.try_fill_bytes(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::{RouterConfig, Times};

    #[tokio::test]
    async fn a_stream_that_the_gateway_has_dropped_is_carried_no_longer_though_its_other_end_stays() {
        let ping = Duration::from_millis(20);
        let rules = RouterConfig { times: Times { ping, ..Times::default() }, ..RouterConfig::default() };
        let service = Service::start(Config { rules, ..Config::default() }, 1).unwrap();
        let (mut silent, mut stream) = tokio::io::duplex(4096);
        let handle = service.handle();
        let carried = timeout(
            Duration::from_secs(30),
            handle.carry(&mut stream, Peer::Client([192, 0, 2, 1].into()), ()),
        )
        .await;
        assert!(carried.is_ok(), "it has answered no Ping");
        drop(stream);
        let mut last_received = Vec::new();
        silent.read_to_end(&mut last_received).await.unwrap();
        assert_eq!(last_received, b"\x05\0\0\0\0\0\0\0\x06");
        service.shutdown().await;
    }
}
