//! The socket of QUIC: one virtual peer address for all paths.
//!
//! QUIC does not see a change of the path, so that its migration rules do not apply. It sends to [`PEER`]; the tunnel puts the datagram into the
//! queue of the active path. Datagrams of every path appear to come from [`PEER`]. A full queue applies back-pressure to QUIC instead of
//! dropping datagrams. Probes share the paths; their first byte differs from that of QUIC packets, whose fixed bit is always set
//! because greasing is disabled ([RFC 9000 section 17](https://www.rfc-editor.org/rfc/rfc9000#section-17)).

use super::candidate::CandidatePath;
use crate::net::time;
use bytes::Bytes;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};

/// The peer's address as QUIC sees it, from the discard-only block of RFC 6666.
pub(super) const PEER: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1)), 1);
/// The local address as QUIC sees it.
const LOCAL: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 2)), 1);

/// Capacity of each path's send queue in datagrams.
const SEND_QUEUE: usize = 64;
/// Capacity of QUIC's receive queue in datagrams; more are dropped, as in a socket buffer.
const RECEIVE_QUEUE: usize = 4096;
/// Capacity of the queue of received probes.
const PROBE_QUEUE: usize = 32;

const PING: u8 = 0x20;
const PONG: u8 = 0x21;
const PROBE_LEN: usize = 9;

/// A datagram that measures a path, beside those of QUIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Probe {
    /// A request, with its number.
    Ping(u64),
    /// The response, with the number of the request.
    Pong(u64),
}

impl Probe {
    fn encode(self) -> [u8; PROBE_LEN] {
        let (kind, number) = match self {
            Self::Ping(number) => (PING, number),
            Self::Pong(number) => (PONG, number),
        };
        let mut bytes = [kind; PROBE_LEN];
        bytes[1..].copy_from_slice(&number.to_be_bytes());
        bytes
    }

    fn parse(datagram: &[u8]) -> Option<Self> {
        let (&kind, number) = datagram.split_first()?;
        let number = u64::from_be_bytes(number.try_into().ok()?);
        match kind {
            PING => Some(Self::Ping(number)),
            PONG => Some(Self::Pong(number)),
            _ => None,
        }
    }
}

/// Returns whether a datagram is a Version Negotiation packet ([RFC 8999 section 6](https://www.rfc-editor.org/rfc/rfc8999#section-6)). Anybody
/// can forge one, and it ends a handshake; both sides use the same version, so that none is ever needed.
fn is_version_negotiation(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & 0x80 != 0) && datagram.get(1..5) == Some(&[0; 4])
}

/// The queues between QUIC, the ICE agents and the call.
pub(super) struct Tunnel {
    started: Instant,
    outgoing: Mutex<SendQueues>,
    /// A path's send queue is not empty.
    readable: [Notify; 2],
    /// The send queue of the active path is not full, or the active path has changed.
    writable: Notify,
    incoming: Mutex<ReceiveQueue>,
    probes: mpsc::Sender<(CandidatePath, Probe)>,
    /// Time of the last datagram of each path, in milliseconds since `started`.
    received_at: [AtomicU64; 2],
}

#[derive(Default)]
struct SendQueues {
    active: Option<CandidatePath>,
    queues: [VecDeque<Bytes>; 2],
}

#[derive(Default)]
struct ReceiveQueue {
    datagrams: VecDeque<Bytes>,
    waker: Option<Waker>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The queues are consistent after every statement, so that a panic in another thread does no harm.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tunnel {
    /// Returns a tunnel and the receiver of incoming probes.
    pub(super) fn new() -> (Arc<Self>, mpsc::Receiver<(CandidatePath, Probe)>) {
        let (probes, signs_rx) = mpsc::channel(PROBE_QUEUE);
        let tunnel = Self {
            started: time::now().mono,
            outgoing: Mutex::default(),
            readable: [Notify::new(), Notify::new()],
            writable: Notify::new(),
            incoming: Mutex::default(),
            probes,
            received_at: [AtomicU64::new(0), AtomicU64::new(0)],
        };
        (Arc::new(tunnel), signs_rx)
    }

    /// Handles a datagram that arrived over a path.
    pub(super) fn deliver(&self, path: CandidatePath, datagram: &[u8]) {
        let since = time::now().mono.saturating_duration_since(self.started).as_millis();
        self.received_at[path as usize].store(u64::try_from(since).unwrap_or(u64::MAX), Ordering::Relaxed);
        if is_version_negotiation(datagram) {
            return;
        }
        if let Some(probe) = Probe::parse(datagram) {
            // A flood of probes loses probes, never data.
            let _ = self.probes.try_send((path, probe));
            return;
        }
        let waker = {
            let mut incoming = lock(&self.incoming);
            if incoming.datagrams.len() >= RECEIVE_QUEUE {
                return;
            }
            incoming.datagrams.push_back(Bytes::copy_from_slice(datagram));
            incoming.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Returns when the last datagram arrived over a path.
    pub(super) fn last_received(&self, path: CandidatePath) -> Option<Instant> {
        let millis = self.received_at[path as usize].load(Ordering::Relaxed);
        (millis > 0).then(|| self.started + Duration::from_millis(millis))
    }

    /// Waits for the next datagram to send over a path.
    pub(super) async fn next_outgoing(&self, path: CandidatePath) -> Bytes {
        loop {
            let readable = self.readable[path as usize].notified();
            let next = lock(&self.outgoing).queues[path as usize].pop_front();
            if let Some(datagram) = next {
                self.writable.notify_waiters();
                return datagram;
            }
            readable.await;
        }
    }

    /// Sends a probe over a path, active or not; it is dropped if the path's queue is full.
    pub(super) fn send_probe(&self, path: CandidatePath, probe: Probe) {
        self.push(&mut lock(&self.outgoing), path, Bytes::copy_from_slice(&probe.encode()));
    }

    /// Sets the path that carries data. Datagrams in the queue of another path move to this one.
    pub(super) fn set_active(&self, active: Option<CandidatePath>) {
        {
            let mut outgoing = lock(&self.outgoing);
            outgoing.active = active;
            for other in CandidatePath::ALL.into_iter().filter(|other| Some(*other) != active) {
                let waiting = std::mem::take(&mut outgoing.queues[other as usize]);
                for datagram in waiting {
                    let to = active.filter(|_| Probe::parse(&datagram).is_none()).unwrap_or(other);
                    self.push(&mut outgoing, to, datagram);
                }
            }
        }
        self.writable.notify_waiters();
    }

    /// Returns whether the queue had capacity.
    fn push(&self, outgoing: &mut SendQueues, path: CandidatePath, datagram: Bytes) -> bool {
        let queue = &mut outgoing.queues[path as usize];
        let has_capacity = queue.len() < SEND_QUEUE;
        if has_capacity {
            queue.push_back(datagram);
            self.readable[path as usize].notify_one();
        }
        has_capacity
    }

    fn try_send(&self, datagram: &[u8]) -> io::Result<()> {
        let mut outgoing = lock(&self.outgoing);
        let Some(active) =
            outgoing.active.filter(|active| outgoing.queues[*active as usize].len() < SEND_QUEUE)
        else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        self.push(&mut outgoing, active, Bytes::copy_from_slice(datagram));
        Ok(())
    }

    async fn writable(&self) {
        loop {
            let mut writable = std::pin::pin!(self.writable.notified());
            writable.as_mut().enable();
            let has_capacity = {
                let outgoing = lock(&self.outgoing);
                outgoing.active.is_some_and(|active| outgoing.queues[active as usize].len() < SEND_QUEUE)
            };
            if has_capacity {
                return;
            }
            writable.await;
        }
    }
}

/// QUIC's view of a [`Tunnel`].
pub(super) struct TunnelSocket(pub(super) Arc<Tunnel>);

impl fmt::Debug for TunnelSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TunnelSocket")
    }
}

impl AsyncUdpSocket for TunnelSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(WritablePoller { tunnel: Arc::clone(&self.0), waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.0.try_send(transmit.contents)
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut incoming = lock(&self.0.incoming);
        let mut filled = 0;
        for (buffer, meta) in buffers.iter_mut().zip(meta.iter_mut()) {
            let Some(datagram) = incoming.datagrams.pop_front() else { break };
            let len = datagram.len().min(buffer.len());
            buffer[..len].copy_from_slice(&datagram[..len]);
            *meta = RecvMeta { addr: PEER, len, stride: len, ecn: None, dst_ip: None };
            filled += 1;
        }
        if filled > 0 {
            return Poll::Ready(Ok(filled));
        }
        incoming.waker = Some(context.waker().clone());
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(LOCAL)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// Waits for capacity in the send queue of the active path.
struct WritablePoller {
    tunnel: Arc<Tunnel>,
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl fmt::Debug for WritablePoller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WritablePoller")
    }
}

impl UdpPoller for WritablePoller {
    fn poll_writable(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let waiting = this.waiting.get_or_insert_with(|| {
            let tunnel = Arc::clone(&this.tunnel);
            Box::pin(async move { tunnel.writable().await })
        });
        match waiting.as_mut().poll(context) {
            Poll::Ready(()) => {
                this.waiting = None;
                Poll::Ready(Ok(()))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(tunnel: &Tunnel, byte: u8) -> bool {
        tunnel.try_send(&[0x40, byte]).is_ok()
    }

    #[test]
    fn probes_are_distinguished_from_quic() {
        for probe in [Probe::Ping(7), Probe::Pong(u64::MAX)] {
            assert_eq!(Probe::parse(&probe.encode()), Some(probe));
        }
        assert_eq!(Probe::parse(&[0x40; 9]), None);
        assert_eq!(Probe::parse(&[PING; 8]), None);
        assert_eq!(Probe::parse(&[]), None);
    }

    #[tokio::test]
    async fn a_full_queue_applies_back_pressure_and_capacity_wakes() {
        let (tunnel, _probes) = Tunnel::new();
        assert!(!send(&tunnel, 0), "no path yet");
        tunnel.set_active(Some(CandidatePath::Relay));
        assert_eq!((0..=255).filter(|byte| send(&tunnel, *byte)).count(), SEND_QUEUE);
        let socket = Arc::new(TunnelSocket(Arc::clone(&tunnel)));
        let mut poller = socket.create_io_poller();
        let mut context = Context::from_waker(Waker::noop());
        assert!(poller.as_mut().poll_writable(&mut context).is_pending());
        assert_eq!(tunnel.next_outgoing(CandidatePath::Relay).await[..], [0x40, 0]);
        assert!(poller.as_mut().poll_writable(&mut context).is_ready());
    }

    #[tokio::test]
    async fn queued_datagrams_move_with_the_path_and_probes_stay() {
        let (tunnel, _probes) = Tunnel::new();
        tunnel.set_active(Some(CandidatePath::Relay));
        assert!(send(&tunnel, 1));
        tunnel.send_probe(CandidatePath::Relay, Probe::Ping(5));
        assert!(send(&tunnel, 2));
        tunnel.set_active(Some(CandidatePath::Direct));
        assert_eq!(tunnel.next_outgoing(CandidatePath::Direct).await[..], [0x40, 1]);
        assert_eq!(tunnel.next_outgoing(CandidatePath::Direct).await[..], [0x40, 2]);
        assert_eq!(tunnel.next_outgoing(CandidatePath::Relay).await[..], Probe::Ping(5).encode());
    }

    #[tokio::test]
    async fn received_datagrams_come_from_one_address_and_are_bounded() {
        let (tunnel, mut probes) = Tunnel::new();
        for _ in 0..2 * RECEIVE_QUEUE {
            tunnel.deliver(CandidatePath::Direct, &[0x41; 30]);
        }
        tunnel.deliver(CandidatePath::Relay, &Probe::Ping(3).encode());
        assert_eq!(probes.recv().await, Some((CandidatePath::Relay, Probe::Ping(3))));
        let socket = TunnelSocket(tunnel);
        let mut total = 0;
        let mut context = Context::from_waker(Waker::noop());
        loop {
            let (mut one, mut two) = ([0; 64], [0; 64]);
            let mut buffers = [IoSliceMut::new(&mut one), IoSliceMut::new(&mut two)];
            let mut meta = [RecvMeta::default(); 2];
            let Poll::Ready(Ok(filled)) = socket.poll_recv(&mut context, &mut buffers, &mut meta) else {
                break;
            };
            assert!(meta[..filled].iter().all(|meta| meta.addr == PEER && meta.len == 30));
            total += filled;
        }
        assert_eq!(total, RECEIVE_QUEUE);
    }
}
