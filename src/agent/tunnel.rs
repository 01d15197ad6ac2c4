//! QUIC over lanes: one virtual peer address in front of whichever lane carries data.
//!
//! QUIC never sees a lane change, so none of its migration rules are triggered: it sends to [`PEER`], the datagram goes into the
//! queue of the lane in use, and what arrives over any lane comes from [`PEER`]. A full queue holds QUIC back instead of
//! losing datagrams. Pings of our own share the lanes; their first byte tells them from QUIC, whose fixed bit is always set
//! because its greasing is off ([RFC 9000 section 17](https://www.rfc-editor.org/rfc/rfc9000#section-17)).

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

/// The peer's address as QUIC sees it: from the discard-only block of RFC 6666, so that it is nobody's.
pub(super) const PEER: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1)), 1);
/// This side's address as QUIC sees it.
const SELF: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 2)), 1);

/// Datagrams that wait for a lane to send them.
const OUTGOING: usize = 64;
/// Datagrams that wait for QUIC to take them; more are lost, as in a socket's buffer.
const INCOMING: usize = 4096;
/// Pings and pongs that wait to be looked at.
const PROBES: usize = 32;

const PING: u8 = 0x20;
const PONG: u8 = 0x21;
const PROBE_LEN: usize = 9;

/// A datagram of our own among QUIC's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Probe {
    /// Are you there?
    Ping(u64),
    /// I am.
    Pong(u64),
}

impl Probe {
    fn write(self) -> [u8; PROBE_LEN] {
        let (kind, number) = match self {
            Self::Ping(number) => (PING, number),
            Self::Pong(number) => (PONG, number),
        };
        let mut bytes = [kind; PROBE_LEN];
        bytes[1..].copy_from_slice(&number.to_be_bytes());
        bytes
    }

    fn read(datagram: &[u8]) -> Option<Self> {
        let (&kind, number) = datagram.split_first()?;
        let number = u64::from_be_bytes(number.try_into().ok()?);
        match kind {
            PING => Some(Self::Ping(number)),
            PONG => Some(Self::Pong(number)),
            _ => None,
        }
    }
}

/// Says whether a datagram is a Version Negotiation packet ([RFC 8999 section 6](https://www.rfc-editor.org/rfc/rfc8999#section-6)), which anybody
/// can make and which ends a handshake; both sides speak the same version.
fn is_version_negotiation(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & 0x80 != 0) && datagram.get(1..5) == Some(&[0; 4])
}

/// Everything that QUIC, the lanes and the session share: queues and nothing else.
pub(super) struct Tunnel {
    started: Instant,
    outgoing: Mutex<Outgoing>,
    /// Something can be taken out of a lane's queue.
    filled: [Notify; 2],
    /// Something can be put into the queue of the lane in use.
    writable: Notify,
    incoming: Mutex<Incoming>,
    probes: mpsc::Sender<(CandidatePath, Probe)>,
    /// Milliseconds after `started` at which each lane was last heard.
    heard: [AtomicU64; 2],
}

#[derive(Default)]
struct Outgoing {
    active: Option<CandidatePath>,
    lanes: [VecDeque<Bytes>; 2],
}

#[derive(Default)]
struct Incoming {
    datagrams: VecDeque<Bytes>,
    waker: Option<Waker>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The queues are whole after every statement, so a panic elsewhere leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tunnel {
    /// Makes the queues, and the receiver of the pings and pongs that arrive.
    pub(super) fn new() -> (Arc<Self>, mpsc::Receiver<(CandidatePath, Probe)>) {
        let (probes, signs_rx) = mpsc::channel(PROBES);
        let tunnel = Self {
            started: time::now().mono,
            outgoing: Mutex::default(),
            filled: [Notify::new(), Notify::new()],
            writable: Notify::new(),
            incoming: Mutex::default(),
            probes,
            heard: [AtomicU64::new(0), AtomicU64::new(0)],
        };
        (Arc::new(tunnel), signs_rx)
    }

    /// Takes a datagram that came over a lane.
    pub(super) fn deliver(&self, lane: CandidatePath, datagram: &[u8]) {
        let since = time::now().mono.saturating_duration_since(self.started).as_millis();
        self.heard[lane as usize].store(u64::try_from(since).unwrap_or(u64::MAX), Ordering::Relaxed);
        if is_version_negotiation(datagram) {
            return;
        }
        if let Some(probe) = Probe::read(datagram) {
            // A lane that is pinged faster than anybody looks loses pings, never data.
            let _ = self.probes.try_send((lane, probe));
            return;
        }
        let waker = {
            let mut incoming = lock(&self.incoming);
            if incoming.datagrams.len() >= INCOMING {
                return;
            }
            incoming.datagrams.push_back(Bytes::copy_from_slice(datagram));
            incoming.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Returns when a lane was last heard, if ever.
    pub(super) fn last_heard(&self, lane: CandidatePath) -> Option<Instant> {
        let millis = self.heard[lane as usize].load(Ordering::Relaxed);
        (millis > 0).then(|| self.started + Duration::from_millis(millis))
    }

    /// Waits for the next datagram that a lane is to send.
    pub(super) async fn next_outgoing(&self, lane: CandidatePath) -> Bytes {
        loop {
            let filled = self.filled[lane as usize].notified();
            let next = lock(&self.outgoing).lanes[lane as usize].pop_front();
            if let Some(datagram) = next {
                self.writable.notify_waiters();
                return datagram;
            }
            filled.await;
        }
    }

    /// Sends a ping or pong over a lane, in use or not; it is lost if the lane is congested.
    pub(super) fn send_probe(&self, lane: CandidatePath, probe: Probe) {
        self.push(&mut lock(&self.outgoing), lane, Bytes::copy_from_slice(&probe.write()));
    }

    /// Carries data over this lane from now on. What still waits for another lane goes over this one.
    pub(super) fn set_active(&self, active: Option<CandidatePath>) {
        {
            let mut outgoing = lock(&self.outgoing);
            outgoing.active = active;
            for other in CandidatePath::ALL.into_iter().filter(|other| Some(*other) != active) {
                let waiting = std::mem::take(&mut outgoing.lanes[other as usize]);
                for datagram in waiting {
                    let to = active.filter(|_| Probe::read(&datagram).is_none()).unwrap_or(other);
                    self.push(&mut outgoing, to, datagram);
                }
            }
        }
        self.writable.notify_waiters();
    }

    /// Returns whether there was room.
    fn push(&self, outgoing: &mut Outgoing, lane: CandidatePath, datagram: Bytes) -> bool {
        let queue = &mut outgoing.lanes[lane as usize];
        let room = queue.len() < OUTGOING;
        if room {
            queue.push_back(datagram);
            self.filled[lane as usize].notify_one();
        }
        room
    }

    fn try_send(&self, datagram: &[u8]) -> io::Result<()> {
        let mut outgoing = lock(&self.outgoing);
        let Some(active) = outgoing.active.filter(|active| outgoing.lanes[*active as usize].len() < OUTGOING)
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
            let room = {
                let outgoing = lock(&self.outgoing);
                outgoing.active.is_some_and(|active| outgoing.lanes[active as usize].len() < OUTGOING)
            };
            if room {
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
        Box::pin(Room { tunnel: Arc::clone(&self.0), waiting: None })
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
        Ok(SELF)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// Waits for room in the queue of the lane in use.
struct Room {
    tunnel: Arc<Tunnel>,
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Room")
    }
}

impl UdpPoller for Room {
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
    fn signs_are_told_from_quic() {
        for probe in [Probe::Ping(7), Probe::Pong(u64::MAX)] {
            assert_eq!(Probe::read(&probe.write()), Some(probe));
        }
        assert_eq!(Probe::read(&[0x40; 9]), None);
        assert_eq!(Probe::read(&[PING; 8]), None);
        assert_eq!(Probe::read(&[]), None);
    }

    #[tokio::test]
    async fn a_full_queue_holds_back_and_room_wakes() {
        let (tunnel, _signs) = Tunnel::new();
        assert!(!send(&tunnel, 0), "no lane yet");
        tunnel.set_active(Some(CandidatePath::Relay));
        assert_eq!((0..=255).filter(|byte| send(&tunnel, *byte)).count(), OUTGOING);
        let socket = Arc::new(TunnelSocket(Arc::clone(&tunnel)));
        let mut room = socket.create_io_poller();
        let mut context = Context::from_waker(Waker::noop());
        assert!(room.as_mut().poll_writable(&mut context).is_pending());
        assert_eq!(tunnel.next_outgoing(CandidatePath::Relay).await[..], [0x40, 0]);
        assert!(room.as_mut().poll_writable(&mut context).is_ready());
    }

    #[tokio::test]
    async fn what_waits_moves_with_the_lane_and_signs_stay() {
        let (tunnel, _signs) = Tunnel::new();
        tunnel.set_active(Some(CandidatePath::Relay));
        assert!(send(&tunnel, 1));
        tunnel.send_probe(CandidatePath::Relay, Probe::Ping(5));
        assert!(send(&tunnel, 2));
        tunnel.set_active(Some(CandidatePath::Direct));
        assert_eq!(tunnel.next_outgoing(CandidatePath::Direct).await[..], [0x40, 1]);
        assert_eq!(tunnel.next_outgoing(CandidatePath::Direct).await[..], [0x40, 2]);
        assert_eq!(tunnel.next_outgoing(CandidatePath::Relay).await[..], Probe::Ping(5).write());
    }

    #[tokio::test]
    async fn what_arrives_comes_from_one_address_and_is_capped() {
        let (tunnel, mut probes) = Tunnel::new();
        for _ in 0..2 * INCOMING {
            tunnel.deliver(CandidatePath::Direct, &[0x41; 30]);
        }
        tunnel.deliver(CandidatePath::Relay, &Probe::Ping(3).write());
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
        assert_eq!(total, INCOMING);
    }
}
