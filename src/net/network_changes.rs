//! Changes of the host's network, for those who keep a connection or wait to open one again.

use super::addresses::{AddressWatch, Addresses};
use crate::limits::Backoff;
use std::net::IpAddr;
use tokio::sync::watch;
use tokio::time::sleep;

/// Follows the host's addresses; where the system does not report them, nothing ever changes.
#[derive(Debug)]
pub(crate) struct NetworkChanges {
    _watch: Option<AddressWatch>,
    addresses: Option<watch::Receiver<Addresses>>,
}

impl NetworkChanges {
    /// Starts with the current addresses.
    pub(crate) fn start() -> Self {
        let watch = AddressWatch::start()
            .inspect_err(|error| tracing::debug!(%error, "cannot follow changes of the network"))
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

    /// Waits for the next wait of `backoff`, or for a part of it when the network changes.
    pub(crate) async fn wait_to_retry(&mut self, backoff: &mut Backoff) {
        tokio::select! {
            () = sleep(backoff.wait()) => {}
            () = self.changed() => self.wait_after_change(backoff).await,
        }
    }

    /// Waits for a part of the first wait of `backoff`. Jitter spreads the hosts that come to a new network together.
    pub(crate) async fn wait_after_change(&mut self, backoff: &mut Backoff) {
        backoff.reset();
        sleep(backoff.wait() / 8).await;
        backoff.reset();
    }

    /// Returns whether the host no longer has the address that a connection was opened from.
    pub(crate) fn has_lost(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.addresses.as_ref().is_some_and(|addresses| {
            let known = addresses.borrow();
            // An empty list is a failure to read it. All of 127.0.0.0/8 belongs to the host.
            !known.is_empty() && !ip.is_loopback() && known.iter().all(|own| own.to_canonical() != ip)
        })
    }
}
