//! The host's own addresses as they are now, and word of every change: the system tells of each (netlink), and then all are read anew, so
//! that nothing is lost when there are more than it keeps for a slow reader.

use super::interfaces;
use nix::errno::Errno;
#[cfg(target_os = "linux")]
use nix::sys::socket::{self, AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType};
use std::io;
use std::net::IpAddr;
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixDatagram;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The multicast groups that tell of addresses: `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR`
/// ([rtnetlink(7)](https://man7.org/linux/man-pages/man7/rtnetlink.7.html)).
#[cfg(target_os = "linux")]
const GROUPS: u32 = 0x10 | 0x100;
/// How soon the addresses are read again at the earliest, however many changes there are.
const PAUSE: Duration = Duration::from_millis(50);
/// How often they are read where the system does not tell of changes.
const POLL: Duration = Duration::from_millis(500);

/// Addresses of one moment: sorted, each once.
pub(crate) type Addresses = Arc<[IpAddr]>;

/// Follows the host's addresses until it is dropped.
#[derive(Debug)]
pub(crate) struct AddressWatch {
    addresses: watch::Receiver<Addresses>,
    _task: JoinSet<()>,
}

impl AddressWatch {
    /// Reads the addresses and follows them on a task of the current tokio runtime.
    ///
    /// # Errors
    /// Whatever the system says to the question which there are. Where it only refuses to tell of changes, it is asked again and again.
    pub(crate) fn start() -> io::Result<Self> {
        let notices = open();
        let (sender, addresses) = watch::channel(read()?);
        let mut task = JoinSet::new();
        task.spawn(follow(notices, sender));
        Ok(Self { addresses, _task: task })
    }

    /// Returns the addresses as they are now.
    #[must_use]
    pub(crate) fn current(&self) -> Addresses {
        self.addresses.borrow().clone()
    }

    /// Returns what holds the current addresses and wakes when they have changed. It ends with this watch.
    #[must_use]
    pub(crate) fn subscribe(&self) -> watch::Receiver<Addresses> {
        self.addresses.clone()
    }
}

fn read() -> io::Result<Addresses> {
    let mut addresses = interfaces::addresses()?;
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses.into())
}

async fn follow(notices: io::Result<UnixDatagram>, addresses: watch::Sender<Addresses>) {
    let mut notices = notices
        .inspect_err(|error| tracing::warn!(%error, "the system does not tell of new addresses; it is asked twice a second"))
        .ok();
    loop {
        let heard = match &notices {
            Some(socket) => notified(socket).await,
            None => {
                tokio::time::sleep(POLL).await;
                Ok(())
            }
        };
        if let Err(error) = heard {
            tracing::warn!(%error, "the system no longer tells of new addresses; it is asked twice a second");
            notices = None;
        }
        match read() {
            Ok(now) => {
                _ = addresses.send_if_modified(|known| {
                    let changed = **known != *now;
                    *known = now;
                    changed
                })
            }
            // What is known stays, and is read again with the next notice.
            Err(error) => tracing::debug!(%error, "own addresses"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Opens the socket that the system tells of changes by. Only its descriptor counts: tokio has no type of its own for netlink, and
/// receives from one datagram socket as from another.
#[cfg(target_os = "linux")]
fn open() -> io::Result<UnixDatagram> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let protocol = SockProtocol::NetlinkRoute;
    let socket = socket::socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
    UnixDatagram::from_std(socket.into())
}

/// Other systems have no netlink: the addresses are polled.
#[cfg(not(target_os = "linux"))]
fn open() -> io::Result<UnixDatagram> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Waits until something has changed, and takes every notice that is there.
async fn notified(socket: &UnixDatagram) -> io::Result<()> {
    let mut heard = socket.recv(&mut [0; 64]).await;
    loop {
        match heard {
            Ok(_) => {}
            // More notices than the system kept: that something has changed is all that counts.
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
        heard = socket.try_recv(&mut [0; 64]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_watch_begins_with_what_is_there_and_ends_when_it_is_dropped() {
        let watch = AddressWatch::start().unwrap();
        let mut subscriber = watch.subscribe();
        let current = watch.current();
        assert!(current.is_sorted() && current.iter().any(|ip| ip.is_loopback()), "{current:?}");
        drop(watch);
        // Whatever this host does meanwhile, the watch's end is the last that is heard.
        while subscriber.changed().await.is_ok() {}
    }
}
