//! The host's own addresses, and a watch of their changes. Netlink reports that an address has changed; then all are read again, so that
//! lost notifications do no harm.

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

/// The multicast groups of address changes: `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR`
/// ([rtnetlink(7)](https://man7.org/linux/man-pages/man7/rtnetlink.7.html)).
#[cfg(target_os = "linux")]
const GROUPS: u32 = 0x10 | 0x100;
/// Shortest time between two reads of the addresses.
const PAUSE: Duration = Duration::from_millis(50);
/// Interval of reads where netlink is not available.
const POLL: Duration = Duration::from_millis(500);

/// A set of addresses: sorted, without duplicates.
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
    /// The addresses cannot be read. Without netlink they are polled, which is no error.
    pub(crate) fn start() -> io::Result<Self> {
        let notifications = open();
        let (sender, addresses) = watch::channel(read()?);
        let mut task = JoinSet::new();
        task.spawn(follow(notifications, sender));
        Ok(Self { addresses, _task: task })
    }

    /// Returns the current addresses.
    #[must_use]
    pub(crate) fn current(&self) -> Addresses {
        self.addresses.borrow().clone()
    }

    /// Returns a receiver of the current addresses and their changes. Its channel closes when this watch is dropped.
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

async fn follow(notifications: io::Result<UnixDatagram>, addresses: watch::Sender<Addresses>) {
    let mut notifications = notifications
        .inspect_err(
            |error| tracing::warn!(%error, "no notifications of address changes; polling twice a second"),
        )
        .ok();
    loop {
        let received = match &notifications {
            Some(socket) => notified(socket).await,
            None => {
                tokio::time::sleep(POLL).await;
                Ok(())
            }
        };
        if let Err(error) = received {
            tracing::warn!(%error, "notifications of address changes have ended; polling twice a second");
            notifications = None;
        }
        match read() {
            Ok(now) => {
                _ = addresses.send_if_modified(|known| {
                    let changed = **known != *now;
                    *known = now;
                    changed
                })
            }
            // The known addresses remain until the next notification.
            Err(error) => tracing::debug!(%error, "own addresses"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Opens the netlink socket. tokio has no type for it and receives from it as from any other datagram socket.
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

/// Waits for a notification, and reads all that are pending.
async fn notified(socket: &UnixDatagram) -> io::Result<()> {
    let mut received = socket.recv(&mut [0; 64]).await;
    loop {
        match received {
            Ok(_) => {}
            // The socket's buffer has overflowed, which means a change too.
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
        received = socket.try_recv(&mut [0; 64]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_watch_begins_with_the_current_addresses_and_ends_when_dropped() {
        let watch = AddressWatch::start().unwrap();
        let mut subscriber = watch.subscribe();
        let current = watch.current();
        assert!(current.is_sorted() && current.iter().any(|ip| ip.is_loopback()), "{current:?}");
        drop(watch);
        // Changes of this host's addresses may come before the end.
        while subscriber.changed().await.is_ok() {}
    }
}
