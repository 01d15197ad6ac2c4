//! The socket of QUIC: one virtual peer address for all paths.
//!
//! QUIC does not see a change of the path, so that its migration rules do not apply. It sends to [`PEER`], and the [`Outlet`] of the active path
//! takes the datagrams. It reads the agent's UDP sockets itself; datagrams of every path appear to come from [`PEER`]. The first byte of a
//! datagram tells QUIC from STUN and ChannelData ([RFC 9443](https://www.rfc-editor.org/rfc/rfc9443)): greasing of QUIC's fixed bit is disabled,
//! and ChannelData comes only from the TURN server. What is not QUIC's goes to the ICE engine.
//!
//! After a change of the path the last datagram is sent again: QUIC's probe timer may have backed off while the old path was silent, and the
//! acknowledgement makes it go on at once. See also [`super::stall_recovery`].

use super::datagram_queue::DatagramQueue;
use super::outlet::{Outlet, QueueFraming};
use super::stall_recovery::Traffic;
use super::udp_port::UdpPort;
use crate::net::time;
use crate::turn_wire::parse_channel_data;
use bytes::Bytes;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};

/// The peer's address as QUIC sees it, from the discard-only block of RFC 6666.
pub(super) const PEER: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1)), 1);
/// The local address as QUIC sees it.
const LOCAL: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 2)), 1);

/// Capacity of the queue of datagrams that did not come from a UDP socket; more are dropped, as in a socket buffer.
const RECEIVE_QUEUE: usize = 4096;
/// Capacity of the queue of messages for the ICE engine; more are dropped.
const MESSAGE_QUEUE: usize = 256;
/// Most datagrams of a GRO batch; the buffers of the endpoint are made for it.
const MAX_RECEIVE_SEGMENTS: usize = 64;
/// Most receives without a datagram of QUIC's before other tasks may run.
const MAX_RECEIVES: usize = 16;

/// Where a message comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MessageSource {
    /// A UDP socket.
    Port {
        /// Its address.
        local: SocketAddr,
        /// The source.
        remote: SocketAddr,
    },
    /// The TCP connection to the TURN server is open.
    StreamOpened {
        /// Its local address.
        local: IpAddr,
    },
    /// The TCP connection to the TURN server.
    Stream,
}

/// A message for the ICE engine: of STUN, or from the TURN server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EngineMessage {
    /// Where it comes from.
    pub(super) source: MessageSource,
    /// The datagram or frame.
    pub(super) bytes: Bytes,
}

/// What happened on the active path since the last call of [`Tunnel::take_activity`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Activity {
    /// A datagram arrived.
    pub(super) received: bool,
    /// Since when datagrams were sent and none has arrived.
    pub(super) unanswered_since: Option<Instant>,
}

/// What QUIC, the ICE engine and the call share.
pub(super) struct Tunnel {
    started: Instant,
    outlet: Mutex<Option<Arc<Outlet>>>,
    outlet_changed: Notify,
    ports: Mutex<Arc<[Arc<UdpPort>]>>,
    /// ChannelData comes only from here.
    turn_server: Mutex<Option<SocketAddr>>,
    incoming: Mutex<VecDeque<Bytes>>,
    reader: Mutex<Option<Waker>>,
    messages: mpsc::Sender<EngineMessage>,
    /// The last datagram that was sent.
    last_sent: Mutex<Vec<u8>>,
    /// See [`Activity`]; milliseconds since `started` plus one, 0 for none.
    unanswered_since: AtomicU64,
    received: AtomicBool,
    /// Bytes of datagrams in both directions.
    transferred: AtomicU64,
    /// The engine sleeps until something is sent.
    is_idle: AtomicBool,
    sent: Notify,
    traffic: Traffic,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The values are consistent after every statement, so that a panic in another thread does no harm.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a received datagram is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// QUIC's; this many bytes of ChannelData are before it.
    Quic {
        header: usize,
    },
    Message,
    Unknown,
}

/// Returns whether a datagram is a Version Negotiation packet ([RFC 8999 section 6](https://www.rfc-editor.org/rfc/rfc8999#section-6)). Anybody
/// can forge one, and it ends a handshake; both sides use the same version, so that none is ever needed.
fn is_version_negotiation(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & 0x80 != 0) && datagram.get(1..5) == Some(&[0; 4])
}

/// Returns whether a datagram may be QUIC's: its fixed bit is set.
fn is_quic(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & 0x40 != 0) && !is_version_negotiation(datagram)
}

fn classify(datagram: &[u8], is_turn_server: bool) -> Kind {
    match datagram.first() {
        Some(0x00..=0x03) => Kind::Message,
        Some(_) if is_turn_server => match parse_channel_data(datagram) {
            Some((_, payload)) if is_quic(payload) => Kind::Quic { header: 4 },
            Some(_) => Kind::Message,
            None => Kind::Unknown,
        },
        Some(_) if is_quic(datagram) => Kind::Quic { header: 0 },
        _ => Kind::Unknown,
    }
}

impl Tunnel {
    /// Returns a tunnel without a path, and the receiver of the messages for the ICE engine.
    pub(super) fn new(turn_server: Option<SocketAddr>) -> (Arc<Self>, mpsc::Receiver<EngineMessage>) {
        let (messages, messages_rx) = mpsc::channel(MESSAGE_QUEUE);
        let tunnel = Self {
            started: time::now().mono,
            outlet: Mutex::default(),
            outlet_changed: Notify::new(),
            ports: Mutex::new(Arc::from([])),
            turn_server: Mutex::new(turn_server),
            incoming: Mutex::default(),
            reader: Mutex::default(),
            messages,
            last_sent: Mutex::default(),
            unanswered_since: AtomicU64::new(0),
            received: AtomicBool::new(false),
            transferred: AtomicU64::new(0),
            is_idle: AtomicBool::new(true),
            sent: Notify::new(),
            traffic: Traffic::default(),
        };
        (Arc::new(tunnel), messages_rx)
    }

    /// Returns a tunnel whose only path is a queue of datagrams.
    pub(super) fn with_queue(queue: Arc<DatagramQueue>) -> Arc<Self> {
        let (tunnel, _) = Self::new(None);
        tunnel.set_outlet(Some(Outlet::Queue(queue, QueueFraming::Datagrams)));
        tunnel
    }

    /// Sets the address of the TURN server.
    pub(super) fn set_turn_server(&self, address: SocketAddr) {
        *lock(&self.turn_server) = Some(address);
    }

    /// Returns what QUIC has sent and received.
    pub(super) fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Sets the sockets that QUIC's endpoint reads.
    pub(super) fn set_ports(&self, ports: Vec<Arc<UdpPort>>) {
        *lock(&self.ports) = ports.into();
        self.wake_reader();
    }

    fn wake_reader(&self) {
        let waker = lock(&self.reader).clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Handles a datagram of the peer that did not arrive at a UDP socket.
    pub(super) fn deliver(&self, datagram: Bytes) {
        if !is_quic(&datagram) {
            return;
        }
        self.count(datagram.len());
        {
            let mut incoming = lock(&self.incoming);
            if incoming.len() >= RECEIVE_QUEUE {
                return;
            }
            incoming.push_back(datagram);
        }
        self.mark_received();
        self.traffic.handle_received();
        self.wake_reader();
    }

    /// Passes a message to the ICE engine.
    pub(super) fn deliver_message(&self, message: EngineMessage) {
        let _ = self.messages.try_send(message);
    }

    /// Returns how many bytes were sent and received.
    pub(super) fn transferred(&self) -> u64 {
        self.transferred.load(Ordering::Relaxed)
    }

    fn count(&self, bytes: usize) {
        self.transferred.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn mark_received(&self) {
        self.unanswered_since.store(0, Ordering::Relaxed);
        self.received.store(true, Ordering::Relaxed);
    }

    /// Sets the path that carries data.
    pub(super) fn set_outlet(&self, outlet: Option<Outlet>) {
        let outlet = outlet.map(Arc::new);
        lock(&self.outlet).clone_from(&outlet);
        self.unanswered_since.store(0, Ordering::Relaxed);
        self.received.store(false, Ordering::Relaxed);
        if let Some(outlet) = outlet {
            self.send_last_again(&outlet);
            self.traffic.handle_new_path();
        }
        self.outlet_changed.notify_waiters();
    }

    fn send_last_again(&self, outlet: &Outlet) {
        let last = lock(&self.last_sent);
        if !last.is_empty() {
            let transmit =
                Transmit { destination: PEER, ecn: None, contents: &last, segment_size: None, src_ip: None };
            let _ = outlet.send(&transmit);
        }
    }

    /// Handles that the active path answers again: sends the last datagram again.
    pub(super) fn repeat_last(&self) {
        if let Some(outlet) = self.outlet() {
            self.send_last_again(&outlet);
            self.traffic.handle_new_path();
        }
    }

    fn outlet(&self) -> Option<Arc<Outlet>> {
        lock(&self.outlet).clone()
    }

    /// Takes what happened on the active path.
    pub(super) fn take_activity(&self) -> Activity {
        let since = self.unanswered_since.load(Ordering::Relaxed);
        let unanswered_since =
            since.checked_sub(1).map(|millis| self.started + Duration::from_millis(millis));
        Activity { received: self.received.swap(false, Ordering::Relaxed), unanswered_since }
    }

    /// Handles that unanswered datagrams have been taken care of.
    pub(super) fn reset_unanswered(&self) {
        self.unanswered_since.store(0, Ordering::Relaxed);
    }

    /// Waits until a datagram is sent after an answered one.
    pub(super) async fn activity(&self) {
        self.is_idle.store(true, Ordering::Release);
        if self.unanswered_since.load(Ordering::Acquire) == 0 {
            self.sent.notified().await;
        }
        self.is_idle.store(false, Ordering::Relaxed);
    }

    fn mark_sent(&self) {
        if self.unanswered_since.load(Ordering::Relaxed) != 0 {
            return;
        }
        let millis = time::now().mono.saturating_duration_since(self.started).as_millis();
        self.unanswered_since.store(u64::try_from(millis).unwrap_or(0) + 1, Ordering::Release);
        if self.is_idle.swap(false, Ordering::AcqRel) {
            self.sent.notify_one();
        }
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let outlet = self.outlet().ok_or(io::ErrorKind::WouldBlock)?;
        outlet.send(transmit)?;
        self.count(transmit.contents.len());
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        if let Some(last) = transmit.contents.chunks(segment).next_back() {
            let mut kept = lock(&self.last_sent);
            kept.clear();
            kept.extend_from_slice(last);
        }
        self.mark_sent();
        self.traffic.handle_sent();
        Ok(())
    }

    async fn writable(&self) {
        loop {
            let mut changed = std::pin::pin!(self.outlet_changed.notified());
            changed.as_mut().enable();
            match self.outlet() {
                None => changed.await,
                Some(outlet) => tokio::select! {
                    () = outlet.writable() => return,
                    () = changed => {}
                },
            }
        }
    }

    /// Keeps QUIC's datagrams in the first buffers, and passes the rest on. Returns the number of buffers kept.
    fn sort(
        &self,
        port: &UdpPort,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
        count: usize,
    ) -> usize {
        let active = self.outlet().and_then(|outlet| outlet.source());
        let turn_server = *lock(&self.turn_server);
        let mut kept = 0;
        for index in 0..count {
            let remote = SocketAddr::new(meta[index].addr.ip().to_canonical(), meta[index].addr.port());
            let is_turn_server = turn_server == Some(remote);
            let len = self.sort_batch(
                port.local_addr(),
                remote,
                &mut buffers[index],
                &mut meta[index],
                is_turn_server,
            );
            if len == 0 {
                continue;
            }
            self.count(len);
            if active == Some((port.local_addr(), remote)) {
                self.mark_received();
            }
            meta[index].len = len;
            meta[index].addr = PEER;
            meta[index].dst_ip = None;
            buffers.swap(kept, index);
            meta.swap(kept, index);
            kept += 1;
        }
        kept
    }

    /// Keeps QUIC's datagrams of one batch, without their ChannelData headers; returns their length.
    fn sort_batch(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
        buffer: &mut [u8],
        meta: &mut RecvMeta,
        is_turn_server: bool,
    ) -> usize {
        let (len, stride) = (meta.len.min(buffer.len()), meta.stride.max(1));
        let (mut read, mut written, mut kept_stride) = (0, 0, None);
        while read < len {
            let end = (read + stride).min(len);
            let datagram = &buffer[read..end];
            match classify(datagram, is_turn_server) {
                Kind::Quic { header } => {
                    let payload = match header {
                        0 => read..end,
                        _ => {
                            let length = usize::from(u16::from_be_bytes([datagram[2], datagram[3]]));
                            read + header..read + header + length
                        }
                    };
                    let length = payload.len();
                    // Datagrams of one buffer have one size, only the last may be shorter.
                    let fits =
                        written % kept_stride.unwrap_or(1) == 0 && length <= kept_stride.unwrap_or(length);
                    if fits {
                        kept_stride = kept_stride.or(Some(length));
                        if payload.start != written {
                            buffer.copy_within(payload, written);
                        }
                        written += length;
                    } else {
                        let datagram = Bytes::copy_from_slice(&buffer[payload]);
                        let mut incoming = lock(&self.incoming);
                        if incoming.len() < RECEIVE_QUEUE {
                            incoming.push_back(datagram);
                        }
                    }
                }
                Kind::Message => {
                    let bytes = Bytes::copy_from_slice(datagram);
                    let source = MessageSource::Port { local, remote };
                    self.deliver_message(EngineMessage { source, bytes });
                }
                Kind::Unknown => {}
            }
            read = end;
        }
        meta.stride = kept_stride.unwrap_or(stride);
        written
    }

    fn take_incoming(&self, buffers: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> usize {
        let mut incoming = lock(&self.incoming);
        let mut filled = 0;
        for (buffer, meta) in buffers.iter_mut().zip(meta.iter_mut()) {
            let Some(datagram) = incoming.pop_front() else { break };
            let len = datagram.len().min(buffer.len());
            buffer[..len].copy_from_slice(&datagram[..len]);
            *meta = RecvMeta { addr: PEER, len, stride: len, ecn: None, dst_ip: None };
            filled += 1;
        }
        filled
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
        self.0.try_send(transmit)
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        // Before anything is looked at: nothing that comes later is missed.
        lock(&self.0.reader).get_or_insert_with(|| context.waker().clone()).clone_from(context.waker());
        let filled = self.0.take_incoming(buffers, meta);
        if filled > 0 {
            return Poll::Ready(Ok(filled));
        }
        let ports = Arc::clone(&lock(&self.0.ports));
        let mut receives = 0;
        for port in ports.iter() {
            while let Poll::Ready(received) = port.poll_recv(context, buffers, meta) {
                // An error is one of ICMP, about a check that was sent before.
                let kept = received.map_or(0, |count| self.0.sort(port, buffers, meta, count));
                if kept > 0 {
                    self.0.traffic.handle_received();
                    return Poll::Ready(Ok(kept));
                }
                receives += 1;
                if receives >= MAX_RECEIVES {
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
        }
        // What did not fit a batch.
        match self.0.take_incoming(buffers, meta) {
            0 => Poll::Pending,
            filled => Poll::Ready(Ok(filled)),
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(LOCAL)
    }

    fn max_transmit_segments(&self) -> usize {
        self.0.outlet().map_or(1, |outlet| outlet.max_segments())
    }

    fn max_receive_segments(&self) -> usize {
        MAX_RECEIVE_SEGMENTS
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// Waits until the active path takes datagrams.
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
#[path = "tunnel_tests.rs"]
mod tests;
