//! Word of changed networks, for whoever keeps a connection or waits to open one again.

use super::addresses::{AddressWatch, Addresses};
use crate::limits::Backoff;
use std::net::IpAddr;
use tokio::sync::watch;
use tokio::time::sleep;

/// Follows the host's addresses; where the system does not tell of them, nothing ever changes.
#[derive(Debug)]
pub(crate) struct Roaming {
    _watch: Option<AddressWatch>,
    addresses: Option<watch::Receiver<Addresses>>,
}

impl Roaming {
    /// Begins with the addresses of this moment.
    pub(crate) fn start() -> Self {
        let watch = AddressWatch::start()
            .inspect_err(|error| tracing::debug!(%error, "changes of the network are not seen"))
            .ok();
        let addresses = watch.as_ref().map(AddressWatch::subscribe);
        Self { _watch: watch, addresses }
    }

    /// Waits until the host has other addresses than before. Nothing is missed when the wait is dropped.
    pub(crate) async fn changed(&mut self) {
        let ended = match &mut self.addresses {
            Some(addresses) => addresses.changed().await.is_err(),
            None => true,
        };
        if ended {
            std::future::pending().await
        }
    }

    /// Waits until the next attempt is due: for as long as `backoff` says, or for a part of that when the network has changed.
    pub(crate) async fn pause(&mut self, backoff: &mut Backoff) {
        tokio::select! {
            () = sleep(backoff.wait()) => {}
            () = self.changed() => self.resume(backoff).await,
        }
    }

    /// Waits a little for a network that is new. Chance keeps those who come to it at once from coming back at once.
    pub(crate) async fn resume(&mut self, backoff: &mut Backoff) {
        backoff.reset();
        sleep(backoff.wait() / 8).await;
        backoff.reset();
    }

    /// Says whether the host no longer has the address that a connection was opened from.
    pub(crate) fn has_lost(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.addresses.as_ref().is_some_and(|addresses| {
            let known = addresses.borrow();
            // No address at all says more of the system's answer than of the host. All of 127.0.0.0/8 is the host's.
            !known.is_empty() && !ip.is_loopback() && known.iter().all(|own| own.to_canonical() != ip)
        })
    }
}
