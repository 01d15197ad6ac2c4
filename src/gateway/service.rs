//! The gateway as a service: starts the worker thread, passes it connections, and authenticates servers.

use super::config::{Config, Duplicates};
use super::counters::Counters;
use super::handshake::{ANSWER, CHALLENGE, Key, MD5_ANSWER, MD5_CHALLENGE};
use super::worker::{EndpointSocket, GatewayMessage, GatewayWorker, NewConnection};
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

/// The lowest server id that an access key may use.
pub(crate) const FIRST_OPEN_ID: u32 = 0x8000_0000;

/// A running gateway.
#[derive(Debug)]
pub(crate) struct Service {
    handle: Handle,
    thread: JoinHandle<()>,
    failed: oneshot::Receiver<String>,
}

/// Passes connections to a running gateway. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    messages: mpsc::Sender<GatewayMessage>,
    waker: Arc<Waker>,
    config: Arc<Config>,
}

/// The remote end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// A client, by its address.
    Client(IpAddr),
    /// A server that has completed its handshake.
    Server(AuthenticatedServer),
}

/// A server that has proven that it may have its id; only a handshake of [`Handle`] creates one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AuthenticatedServer {
    pub(super) id: u32,
    /// Whether both sides grant credit (command 7).
    pub(super) credit: bool,
    pub(super) duplicates: Duplicates,
}

impl AuthenticatedServer {
    /// Returns the server's id.
    #[must_use]
    pub(crate) fn id(&self) -> u32 {
        self.id
    }
}

impl Service {
    /// Starts the gateway's thread.
    ///
    /// # Errors
    /// The system's, where it refuses a thread or a poll instance.
    pub(crate) fn spawn(config: Config, seed: u64) -> io::Result<Self> {
        let (messages, received) = mpsc::channel();
        let (worker, waker) = GatewayWorker::new(&config, ChaCha20Rng::seed_from_u64(seed), received)?;
        let (failure, failed) = oneshot::channel();
        let run = move || {
            if let Err(error) = worker.run() {
                // The receiver may be gone.
                let _ = failure.send(error.to_string());
            }
        };
        let thread = std::thread::Builder::new().name("gateway".into()).spawn(run)?;
        let handle = Handle { messages, waker: Arc::new(waker), config: Arc::new(config) };
        Ok(Self { handle, thread, failed })
    }

    /// Returns a handle to it.
    #[must_use]
    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits until the thread fails; returns the error.
    pub(crate) async fn failed(&mut self) -> String {
        match (&mut self.failed).await {
            Ok(error) => error,
            Err(_) => "its thread panicked".to_owned(),
        }
    }

    /// Closes all connections, stops the thread and waits for it.
    pub(crate) async fn shutdown(self) {
        self.handle.send(GatewayMessage::Stop);
        let thread = self.thread;
        let joined = tokio::task::spawn_blocking(|| thread.join()).await;
        if !matches!(joined, Ok(Ok(()))) {
            tracing::warn!("the gateway's thread panicked");
        }
    }
}

impl Handle {
    /// Returns the configuration.
    #[must_use]
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Adds a client's TCP connection, with the bytes that were read from it before.
    ///
    /// # Errors
    /// The system's, where the socket cannot be taken out of the runtime.
    pub(crate) fn add_client(
        &self,
        stream: TcpStream,
        initial: BytesMut,
        ip: IpAddr,
        permit: impl Any + Send,
    ) -> io::Result<()> {
        let socket = EndpointSocket::Tcp(mio::net::TcpStream::from_std(stream.into_std()?));
        self.add(Peer::Client(ip), socket, initial, permit);
        Ok(())
    }

    /// Adds a server's TCP connection after its handshake.
    ///
    /// # Errors
    /// As [`Handle::add_client`].
    pub(crate) fn add_server(
        &self,
        stream: TcpStream,
        server: AuthenticatedServer,
        permit: impl Any + Send,
    ) -> io::Result<()> {
        let socket = EndpointSocket::Tcp(mio::net::TcpStream::from_std(stream.into_std()?));
        self.add(Peer::Server(server), socket, BytesMut::new(), permit);
        Ok(())
    }

    /// Adds one end of a socket pair as the connection of `peer`; returns the other end.
    ///
    /// # Errors
    /// The system's, where there are no more descriptors.
    pub(crate) fn add_pair(&self, peer: Peer, permit: impl Any + Send) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let socket = EndpointSocket::Pair(mio::net::UnixStream::from_std(theirs.into_std()?));
        self.add(peer, socket, BytesMut::new(), permit);
        Ok(ours)
    }

    /// Bridges a stream that is not a plain socket until either side ends. Its writes have no deadline of their own.
    ///
    /// # Errors
    /// The stream's.
    pub(crate) async fn bridge(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        peer: Peer,
        permit: impl Any + Send,
    ) -> io::Result<()> {
        let (mut from, mut to) = self.add_pair(peer, permit)?.into_split();
        let (mut reader, mut writer) = tokio::io::split(stream);
        // The end of one direction ends both: an endpoint that the gateway has closed may never send again.
        let copied = tokio::select! {
            copied = copy(&mut reader, &mut to) => copied,
            copied = copy(&mut from, &mut writer) => copied,
        };
        copied.map(drop)
    }

    /// Performs the MD5 handshake (S2-15 to S2-18). A server without the key gets no answer.
    ///
    /// # Errors
    /// The stream's; `TimedOut`; `PermissionDenied`.
    pub(crate) async fn md5_handshake(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    ) -> io::Result<AuthenticatedServer> {
        let Some(key) = &self.config.key else { return Err(io::ErrorKind::PermissionDenied.into()) };
        let challenge: [u8; MD5_CHALLENGE] = random()?;
        let mut answer = [0; MD5_ANSWER];
        timeout(self.handshake_timeout(), async {
            stream.write_all(&challenge).await?;
            stream.flush().await?;
            stream.read_exact(&mut answer).await
        })
        .await??;
        let id = key.verify_md5(&challenge, &answer).ok_or(io::ErrorKind::PermissionDenied)?;
        Ok(AuthenticatedServer { id, credit: false, duplicates: self.config.duplicates })
    }

    /// Returns a challenge for an HMAC handshake.
    ///
    /// # Errors
    /// The system's, where it has no randomness.
    pub(crate) fn challenge(&self) -> io::Result<[u8; CHALLENGE]> {
        random()
    }

    /// Verifies a server's answer; returns the server and the proof to send back. `None` for an unknown key, and for an access key with an id below
    /// [`FIRST_OPEN_ID`].
    #[must_use]
    pub(crate) fn verify(
        &self,
        challenge: &[u8; CHALLENGE],
        answer: &[u8; ANSWER],
    ) -> Option<(AuthenticatedServer, [u8; 32])> {
        let verify = |key: &Key| key.verify(challenge, answer);
        if let Some((id, proof)) = self.config.key.as_ref().and_then(verify) {
            let duplicates = self.config.duplicates;
            return Some((AuthenticatedServer { id, credit: true, duplicates }, proof));
        }
        let (id, proof) = self.config.access_keys.iter().find_map(verify)?;
        let server = AuthenticatedServer { id, credit: true, duplicates: Duplicates::Refuse };
        (id >= FIRST_OPEN_ID).then_some((server, proof))
    }

    /// Performs the HMAC handshake on a stream.
    ///
    /// # Errors
    /// As [`Handle::md5_handshake`].
    pub(crate) async fn hmac_handshake(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    ) -> io::Result<AuthenticatedServer> {
        let challenge = self.challenge()?;
        let mut answer = [0; ANSWER];
        timeout(self.handshake_timeout(), async {
            stream.write_all(&challenge).await?;
            stream.flush().await?;
            stream.read_exact(&mut answer).await?;
            let (server, proof) = self.verify(&challenge, &answer).ok_or(io::ErrorKind::PermissionDenied)?;
            stream.write_all(&proof).await?;
            stream.flush().await?;
            Ok(server)
        })
        .await?
    }

    /// Returns how long a handshake may take.
    #[must_use]
    pub(crate) fn handshake_timeout(&self) -> Duration {
        self.config.times.handshake
    }

    /// Returns the counters; `None` after the gateway has stopped.
    pub(crate) async fn counters(&self) -> Option<Counters> {
        let (reply, counters) = oneshot::channel();
        self.send(GatewayMessage::Count(reply));
        counters.await.ok()
    }

    fn add(&self, peer: Peer, socket: EndpointSocket, initial: BytesMut, permit: impl Any + Send) {
        let connection = NewConnection { peer, socket, initial, permit: Box::new(permit) };
        self.send(GatewayMessage::Connected(connection));
    }

    fn send(&self, message: GatewayMessage) {
        // A worker that has stopped drops the connection in the message, which closes it.
        if self.messages.send(message).is_ok()
            && let Err(error) = self.waker.wake()
        {
            sampled!(warn, time::mono(), %error, "the gateway's thread cannot be woken");
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
    use crate::gateway::Times;

    #[tokio::test]
    async fn a_stream_that_the_gateway_has_closed_is_bridged_no_longer_though_its_other_end_stays() {
        let ping = Duration::from_millis(20);
        let times = Times { ping, ..Times::default() };
        let service = Service::spawn(Config { times, ..Config::default() }, 1).unwrap();
        let (mut silent, mut stream) = tokio::io::duplex(4096);
        let handle = service.handle();
        let bridged = timeout(
            Duration::from_secs(30),
            handle.bridge(&mut stream, Peer::Client([192, 0, 2, 1].into()), ()),
        )
        .await;
        assert!(bridged.is_ok(), "it has answered no Ping");
        drop(stream);
        let mut last_received = Vec::new();
        silent.read_to_end(&mut last_received).await.unwrap();
        assert_eq!(last_received, b"\x05\0\0\0\0\0\0\0\x06");
        service.shutdown().await;
    }
}
