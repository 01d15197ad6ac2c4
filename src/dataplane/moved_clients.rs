//! Forwarding between workers: a client that moved (RFC 8016) may arrive at another worker than the one with its allocation.

use super::forward_table::{ForwardEntry, ForwardTable};
use super::inbox::{Inbox, WorkerMessage};
use crate::turn_server::{FiveTuple, Transport};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// All workers' inboxes, set once all exist.
pub(crate) type Inboxes = Arc<OnceLock<Arc<[Inbox]>>>;

/// One worker's state of forwarding.
#[derive(Debug)]
pub(crate) struct MovedClients {
    inboxes: Inboxes,
    own: u16,
    /// Clients that arrive here and whose allocation another worker has.
    forwarded: ForwardTable,
    /// Clients whose allocation this worker has and which only another worker reaches: streams and DTLS.
    remote_clients: HashMap<FiveTuple, u16>,
    /// The client of the current frame, and the worker at which it arrived: replies go there, after the message that the client has moved.
    current: Option<(FiveTuple, u16)>,
}

impl MovedClients {
    pub(crate) fn new(own: u16, inboxes: Inboxes) -> Self {
        Self {
            inboxes,
            own,
            forwarded: ForwardTable::default(),
            remote_clients: HashMap::new(),
            current: None,
        }
    }

    /// Forwards a frame to the worker with the allocation; `None` when the client is not forwarded.
    pub(crate) fn forward(&mut self, now: Instant, client: FiveTuple, bytes: &[u8]) -> Option<bool> {
        let worker = self.forwarded.worker(now, client)?;
        Some(self.send_frame(client, worker, bytes))
    }

    /// Sends a request to the worker that its mobility ticket names. More frames follow only after that worker has confirmed the move
    /// ([`WorkerMessage::ClientMoved`]).
    pub(crate) fn send_frame(&self, client: FiveTuple, worker: u16, bytes: &[u8]) -> bool {
        let bytes = Bytes::copy_from_slice(bytes);
        self.send(worker, WorkerMessage::ForwardedFrame { client, arrived_at: self.own, bytes })
    }

    /// Forwards a client to `entry.worker` until the allocation's lifetime ends.
    pub(crate) fn insert(&mut self, now: Instant, client: FiveTuple, entry: ForwardEntry) {
        self.forwarded.insert(now, client, entry);
    }

    /// Begins the handling of a frame that arrived at another worker.
    pub(crate) fn begin_forwarded(&mut self, client: FiveTuple, arrived_at: u16) {
        self.current = Some((client, arrived_at));
    }

    /// Asks the worker where the current client arrives to forward its frames until then.
    pub(crate) fn send_moved(&self, client: FiveTuple, user: Arc<str>, until: Instant) {
        if let Some((_, arrived_at)) = self.current {
            let entry = ForwardEntry { worker: self.own, user, until };
            self.send(arrived_at, WorkerMessage::ClientMoved { client, entry });
        }
    }

    /// Ends the handling of the frame; remembers the worker that reaches a stream or DTLS client that is served here.
    pub(crate) fn end_forwarded(&mut self, client: FiveTuple, is_served: bool) {
        let Some((_, arrived_at)) = self.current.take() else { return };
        if !is_served {
            self.remote_clients.remove(&client);
        } else if client.transport != Transport::Udp {
            self.remote_clients.insert(client, arrived_at);
        }
    }

    /// Returns whether the current frame is from this client.
    pub(crate) fn is_current(&self, client: FiveTuple) -> bool {
        self.current.is_some_and(|(current, _)| current == client)
    }

    /// Sends a frame through the worker at which the client arrives; `None` when it arrives here.
    pub(crate) fn answer(&self, client: FiveTuple, bytes: &[u8]) -> Option<bool> {
        let current =
            self.current.filter(|(current, _)| *current == client).map(|(_, arrived_at)| arrived_at);
        let arrived_at = current.or_else(|| self.remote_clients.get(&client).copied())?;
        Some(
            self.send(
                arrived_at,
                WorkerMessage::ForwardedReply { client, bytes: Bytes::copy_from_slice(bytes) },
            ),
        )
    }

    /// Informs all other workers that a client has left its allocation.
    pub(crate) fn send_left(&mut self, client: FiveTuple) {
        self.remote_clients.remove(&client);
        let all = self.inboxes.get().map_or(0, |inboxes| inboxes.len());
        for worker in (0..all as u16).filter(|worker| *worker != self.own) {
            self.send(worker, WorkerMessage::ClientLeft { client });
        }
    }

    /// Stops forwarding a client that has left its allocation.
    pub(crate) fn remove(&mut self, client: FiveTuple) {
        self.forwarded.remove(client);
    }

    /// Stops forwarding a client whose connection has closed, and informs the worker with its allocation.
    pub(crate) fn remove_closed(&mut self, client: FiveTuple) {
        if let Some(worker) = self.forwarded.remove(client) {
            self.send(worker, WorkerMessage::ForwardedClientClosed { client });
        }
    }

    fn send(&self, worker: u16, message: WorkerMessage) -> bool {
        let inbox = self.inboxes.get().and_then(|inboxes| inboxes.get(usize::from(worker)));
        inbox.is_some_and(|inbox| inbox.try_send(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::time;
    use std::net::{Ipv4Addr, SocketAddr};
    use std::time::Duration;

    fn client(number: u32) -> FiveTuple {
        let address = SocketAddr::from((Ipv4Addr::from(number), 1000));
        FiveTuple { client: address, server: address, transport: Transport::Udp }
    }

    #[test]
    fn requests_that_no_worker_accepts_take_no_table_entry() {
        let polls = [0, 1].map(|_| mio::Poll::new().unwrap());
        let inbox = |poll: &mio::Poll| Inbox::new(mio::Waker::new(poll.registry(), mio::Token(0)).unwrap());
        let ((own, _own), (other, mut arrived)) = (inbox(&polls[0]), inbox(&polls[1]));
        let inboxes: Inboxes = Arc::new(OnceLock::from(Arc::<[Inbox]>::from([own, other])));
        let mut here = MovedClients::new(0, inboxes);
        let now = time::now().mono;
        // More than there are places, each with a ticket that is worth nothing any more.
        for number in 0..20_000 {
            assert!(here.send_frame(client(number), 1, b"stale"));
            assert!(matches!(arrived.try_recv(), Ok(WorkerMessage::ForwardedFrame { arrived_at: 0, .. })));
            assert_eq!(here.forward(now, client(number), b"more"), None);
        }
        let entry = ForwardEntry { worker: 1, user: "alice".into(), until: now + Duration::from_secs(600) };
        here.insert(now, client(30_000), entry);
        assert_eq!(here.forward(now, client(30_000), b"data"), Some(true));
        assert!(matches!(arrived.try_recv(), Ok(WorkerMessage::ForwardedFrame { .. })));
        here.remove(client(30_000));
        assert_eq!(here.forward(now, client(30_000), b"data"), None);
    }

    #[test]
    fn a_reply_follows_the_message_that_its_client_has_moved() {
        let polls = [0, 1].map(|_| mio::Poll::new().unwrap());
        let inbox = |poll: &mio::Poll| Inbox::new(mio::Waker::new(poll.registry(), mio::Token(0)).unwrap());
        let ((own, _own), (other, mut arrived)) = (inbox(&polls[0]), inbox(&polls[1]));
        let inboxes: Inboxes = Arc::new(OnceLock::from(Arc::<[Inbox]>::from([own, other])));
        let mut owner = MovedClients::new(0, inboxes);
        owner.begin_forwarded(client(1), 1);
        owner.send_moved(client(1), "alice".into(), time::now().mono);
        assert!(owner.is_current(client(1)) && !owner.is_current(client(2)));
        assert_eq!(owner.answer(client(1), b"success"), Some(true));
        owner.end_forwarded(client(1), true);
        assert!(matches!(arrived.try_recv(), Ok(WorkerMessage::ClientMoved { .. })));
        assert!(matches!(arrived.try_recv(), Ok(WorkerMessage::ForwardedReply { .. })));
        assert_eq!(owner.answer(client(1), b"later"), None, "it leaves by a socket of this worker");
        let stream = FiveTuple { transport: Transport::Tls, ..client(2) };
        owner.begin_forwarded(stream, 1);
        owner.end_forwarded(stream, true);
        assert_eq!(owner.answer(stream, b"later"), Some(true));
        owner.begin_forwarded(stream, 1);
        owner.end_forwarded(stream, false);
        assert_eq!(owner.answer(stream, b"later"), None);
    }
}
