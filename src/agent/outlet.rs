//! Where QUIC's datagrams go: straight to the peer, through a relay, into a queue, or on several paths that have not answered yet.

use super::datagram_queue::DatagramQueue;
use super::udp_port::UdpPort;
use crate::turn_wire::FrameHeader;
use bytes::Bytes;
use quinn::udp::Transmit;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The peer of a relay and the channel bound to it, 0 while there is none.
#[derive(Debug)]
pub(super) struct RelayedPeer {
    peer: SocketAddr,
    channel: AtomicU16,
}

impl RelayedPeer {
    pub(super) fn new(peer: SocketAddr, channel: Option<u16>) -> Self {
        Self { peer, channel: AtomicU16::new(channel.unwrap_or(0)) }
    }

    /// Handles that the channel is bound.
    pub(super) fn set_channel(&self, channel: u16) {
        self.channel.store(channel, Ordering::Relaxed);
    }

    pub(super) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Appends a datagram with its header to `frames`. Padded, as a stream and a Send indication require.
    fn frame(&self, datagram: &[u8], is_stream: bool, frames: &mut Vec<u8>) -> io::Result<()> {
        let length = u16::try_from(datagram.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let channel = self.channel.load(Ordering::Relaxed);
        let header = if channel == 0 {
            FrameHeader::send_indication(self.peer, length, rand::random())
                .ok_or(io::ErrorKind::InvalidInput)?
        } else {
            FrameHeader::channel_data(channel, length)
        };
        frames.extend_from_slice(header.as_bytes());
        frames.extend_from_slice(datagram);
        if channel == 0 || is_stream {
            let padding = datagram.len().next_multiple_of(4) - datagram.len();
            frames.resize(frames.len() + padding, 0);
        }
        Ok(())
    }
}

/// How a queue's datagrams are framed.
#[derive(Debug)]
pub(super) enum QueueFraming {
    /// Not at all: the task that reads the queue sends datagrams.
    Datagrams,
    /// As frames of TURN on a stream.
    Relay(Arc<RelayedPeer>),
    /// With their length ([RFC 4571](https://www.rfc-editor.org/rfc/rfc4571)), on a TCP connection with the peer.
    Length,
}

/// The active path of a connection.
#[derive(Debug)]
pub(super) enum Outlet {
    /// Straight to the peer.
    Direct {
        /// The socket.
        port: Arc<UdpPort>,
        /// The peer.
        remote: SocketAddr,
    },
    /// Through a TURN server by UDP.
    Relay {
        /// The socket.
        port: Arc<UdpPort>,
        /// The TURN server.
        server: SocketAddr,
        /// The peer.
        peer: Arc<RelayedPeer>,
        /// The frames of one send.
        frames: Mutex<Vec<u8>>,
    },
    /// Into a queue.
    Queue(Arc<DatagramQueue>, QueueFraming),
    /// On each of several paths, of which none has answered yet.
    Provisional(Vec<Arc<ProvisionalPath>>),
}

/// A path that takes a limited number of datagrams.
#[derive(Debug)]
pub(super) struct ProvisionalPath {
    outlet: Outlet,
    left: AtomicUsize,
}

impl ProvisionalPath {
    pub(super) fn new(outlet: Outlet, datagrams: usize) -> Self {
        Self { outlet, left: AtomicUsize::new(datagrams) }
    }

    /// Sends a datagram; `false` if it is one too many.
    fn send(&self, transmit: &Transmit<'_>) -> bool {
        let take = |left: usize| left.checked_sub(1);
        let is_allowed = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok();
        // What is not sent is lost: QUIC repeats it.
        is_allowed && self.outlet.send(transmit).is_ok()
    }
}

impl Outlet {
    pub(super) fn relay(port: Arc<UdpPort>, server: SocketAddr, peer: Arc<RelayedPeer>) -> Self {
        Self::Relay { port, server, peer, frames: Mutex::default() }
    }

    /// Sends one datagram or several of one size.
    pub(super) fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        match self {
            Self::Direct { port, remote } => {
                port.send(*remote, transmit.contents, (transmit.segment_size, transmit.ecn))
            }
            Self::Relay { port, server, peer, frames } => {
                let mut frames = frames.lock().unwrap_or_else(PoisonError::into_inner);
                frames.clear();
                let mut frame_len = 0;
                for datagram in transmit.contents.chunks(segment) {
                    peer.frame(datagram, false, &mut frames)?;
                    frame_len = if frame_len == 0 { frames.len() } else { frame_len };
                }
                let segment_size = (frame_len < frames.len()).then_some(frame_len);
                port.send(*server, &frames, (segment_size, None))
            }
            Self::Queue(queue, framing) => {
                for datagram in transmit.contents.chunks(segment) {
                    let bytes = match framing {
                        QueueFraming::Datagrams => Bytes::copy_from_slice(datagram),
                        QueueFraming::Relay(peer) => {
                            let mut frame = Vec::with_capacity(datagram.len() + 40);
                            peer.frame(datagram, true, &mut frame)?;
                            frame.into()
                        }
                        QueueFraming::Length => {
                            let length =
                                u16::try_from(datagram.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
                            [&length.to_be_bytes(), datagram].concat().into()
                        }
                    };
                    if !queue.push(bytes) {
                        return Err(io::ErrorKind::WouldBlock.into());
                    }
                }
                Ok(())
            }
            Self::Provisional(paths) => {
                let sent = paths.iter().filter(|path| path.send(transmit)).count();
                if sent > 0 { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
            }
        }
    }

    /// Returns how many datagrams one send may have.
    pub(super) fn max_segments(&self) -> usize {
        match self {
            Self::Direct { port, .. } | Self::Relay { port, .. } => port.max_segments(),
            Self::Queue(..) | Self::Provisional(_) => 1,
        }
    }

    /// Waits until a send may succeed.
    pub(super) async fn writable(&self) {
        match self {
            Self::Direct { port, .. } | Self::Relay { port, .. } => port.writable().await,
            Self::Queue(queue, _) => queue.writable().await,
            // The next path takes what these do not.
            Self::Provisional(paths) if paths.iter().all(|path| path.left.load(Ordering::Relaxed) == 0) => {
                std::future::pending().await
            }
            Self::Provisional(_) => {}
        }
    }

    /// Returns the socket and the address that this path's datagrams come from; `None` for a queue.
    pub(super) fn source(&self) -> Option<(SocketAddr, SocketAddr)> {
        match self {
            Self::Direct { port, remote } => Some((port.local_addr(), *remote)),
            Self::Relay { port, server, .. } => Some((port.local_addr(), *server)),
            Self::Queue(..) | Self::Provisional(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turn_wire::parse_channel_data;
    use futures_util::FutureExt;

    #[test]
    fn paths_without_an_answer_take_a_few_copies_each_and_then_wait_for_the_next_path() {
        let queues = [(); 2].map(|()| Arc::new(DatagramQueue::default()));
        let path = |queue: &Arc<DatagramQueue>, datagrams| {
            let outlet = Outlet::Queue(Arc::clone(queue), QueueFraming::Datagrams);
            Arc::new(ProvisionalPath::new(outlet, datagrams))
        };
        let outlet = Outlet::Provisional(vec![path(&queues[0], 2), path(&queues[1], 3)]);
        let destination = "192.0.2.1:7".parse().unwrap();
        let transmit =
            Transmit { destination, ecn: None, contents: b"first", segment_size: None, src_ip: None };
        let sent = (0..10).filter(|_| outlet.send(&transmit).is_ok()).count();
        assert_eq!((sent, outlet.max_segments(), outlet.source()), (3, 1, None));
        let taken = |queue: &DatagramQueue| std::iter::from_fn(|| queue.next().now_or_never()).count();
        assert_eq!(queues.each_ref().map(|queue| taken(queue)), [2, 3]);
        assert!(outlet.writable().now_or_never().is_none());
    }

    #[test]
    fn a_relayed_datagram_has_the_header_of_its_channel_or_of_an_indication() {
        let peer = RelayedPeer::new("192.0.2.1:7".parse().unwrap(), None);
        let mut frames = Vec::new();
        peer.frame(b"hello", false, &mut frames).unwrap();
        assert_eq!((frames[0], frames.len()), (0, 36 + 8));
        peer.set_channel(0x4000);
        frames.clear();
        peer.frame(b"hello", false, &mut frames).unwrap();
        assert_eq!((parse_channel_data(&frames), frames.len()), (Some((0x4000, &b"hello"[..])), 9));
        frames.clear();
        peer.frame(b"hello", true, &mut frames).unwrap();
        assert_eq!(frames.len(), 12);
    }
}
