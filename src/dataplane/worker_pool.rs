//! The worker threads and what they share.

use super::dtls::{Dtls, DtlsIdentity};
use super::inbox::Inbox;
use super::lookups::Lookups;
use super::moved_clients::Inboxes;
use super::peer_streams::PeerStreamTable;
use super::worker::{ListenSocket, Worker, WorkerParts};
use crate::net::time;
use crate::net::udp::BatchUdpSocket;
use crate::net::unauthenticated::{UnauthenticatedLimiter, UnauthenticatedLimits};
use crate::signaling::Handle;
use crate::stun_server::{Discovery, SecretKeys, SharedSecrets};
use crate::turn_server::{Relay, RelayConfig};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::mpsc;

/// The UDP sockets of one worker: its own, and clones of other workers' for responses that leave by another port (RFC 5780).
pub(crate) type WorkerSockets = (Vec<ListenSocket>, Vec<BatchUdpSocket>);

/// The running threads and their inboxes.
pub(crate) type SpawnedWorkers = (Vec<JoinHandle<()>>, Arc<[Inbox]>);

/// A worker thread that has ended without [`WorkerMessage::Stop`](super::inbox::WorkerMessage::Stop).
#[derive(Debug)]
pub(crate) struct WorkerFailed {
    /// Its index.
    pub(crate) index: usize,
    /// The error or the panic.
    pub(crate) reason: String,
}

/// What every worker gets a copy or a share of.
pub(crate) struct WorkerPool {
    pub(crate) relay: RelayConfig,
    pub(crate) identity: DtlsIdentity,
    pub(crate) discovery: Discovery,
    pub(crate) secret_keys: Arc<SecretKeys>,
    pub(crate) unauthenticated: UnauthenticatedLimits,
    pub(crate) signaling: Handle,
    pub(crate) lookups: Lookups,
}

impl WorkerPool {
    /// Starts one worker thread for each element of `sockets`.
    pub(crate) fn spawn(
        self,
        sockets: Vec<WorkerSockets>,
        seeds: &mut ChaCha20Rng,
        failed: &mpsc::UnboundedSender<WorkerFailed>,
    ) -> io::Result<SpawnedWorkers> {
        let (all_inboxes, peer_streams) = (Inboxes::default(), PeerStreamTable::default());
        let (mut workers, mut inboxes) = (Vec::new(), Vec::new());
        let count = sockets.len();
        let group_size = u16::try_from(count).map_err(|_| io::ErrorKind::InvalidInput)?;
        let relays = Relay::group(time::now(), self.relay, group_size, seeds.random());
        for (index, (sockets, relay)) in sockets.into_iter().zip(relays).enumerate() {
            let mut rng = || ChaCha20Rng::from_seed(seeds.random());
            let parts = WorkerParts {
                sockets,
                discovery: self.discovery.clone(),
                secrets: SharedSecrets::new(Arc::clone(&self.secret_keys), rng()),
                dtls: Dtls::new(time::now(), self.identity.clone(), rng()),
                unauthenticated: UnauthenticatedLimiter::new(
                    &self.unauthenticated,
                    count,
                    time::now(),
                    &mut rng(),
                ),
                relay,
                signaling: self.signaling.clone(),
                lookups: self.lookups.of(index, count, &mut rng()),
                index: index as u16,
                inboxes: Arc::clone(&all_inboxes),
                peer_streams: peer_streams.clone(),
            };
            let (worker, inbox) = Worker::new(parts)?;
            inboxes.push(inbox);
            workers.push(spawn(index, worker, failed.clone())?);
        }
        let inboxes: Arc<[Inbox]> = inboxes.into();
        let _ = all_inboxes.set(Arc::clone(&inboxes));
        Ok((workers, inboxes))
    }
}

fn spawn(
    index: usize,
    worker: Worker,
    failed: mpsc::UnboundedSender<WorkerFailed>,
) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(format!("ginnel-{index}")).spawn(move || {
        if let Err(reason) = run_catching_panics(|| worker.run()) {
            // The receiver is gone only when the server is.
            let _ = failed.send(WorkerFailed { index, reason });
        }
    })
}

/// Runs a worker; returns why it has ended, also after a panic: the server stops when one worker has failed.
fn run_catching_panics(run: impl FnOnce() -> io::Result<()>) -> Result<(), String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(ended) => ended.map_err(|error| error.to_string()),
        Err(panic) => {
            let message = panic.downcast_ref::<&str>().copied();
            let message = message.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
            Err(format!("panicked: {}", message.unwrap_or("no message")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_panics_is_reported_like_one_that_fails() {
        assert_eq!(run_catching_panics(|| Ok(())), Ok(()));
        assert_eq!(run_catching_panics(|| Err(io::Error::other("no poll"))), Err("no poll".to_owned()));
        assert_eq!(run_catching_panics(|| panic!("slot {}", 7)), Err("panicked: slot 7".to_owned()));
    }
}
