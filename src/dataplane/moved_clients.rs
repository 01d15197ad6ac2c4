//! How workers pass clients on to each other: one who has moved (RFC 8016) may arrive at another worker than his allocation's.

use super::forward_table::{ForwardTable, Forwarding};
use super::inbox::{Inbox, ToWorker};
use crate::turn_server::{FiveTuple, Transport};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// Every worker's inbox, once all are there.
pub(crate) type Inboxes = Arc<OnceLock<Arc<[Inbox]>>>;

/// One worker's view of the others.
#[derive(Debug)]
pub(crate) struct Neighbours {
    inboxes: Inboxes,
    own: u16,
    /// Clients that arrive here and belong there.
    passed_on: ForwardTable,
    /// Clients that belong here and can be answered there alone: streams and DTLS.
    guests: HashMap<FiveTuple, u16>,
    /// The client whose frame is handled now, and where it arrives: what is answered goes that way, behind the news that it has moved.
    current: Option<(FiveTuple, u16)>,
}

impl Neighbours {
    pub(crate) fn new(own: u16, inboxes: Inboxes) -> Self {
        Self { inboxes, own, passed_on: ForwardTable::default(), guests: HashMap::new(), current: None }
    }

    /// Hands a frame of a client who belongs elsewhere to his worker; `None` when he does not.
    pub(crate) fn pass_on(&mut self, now: Instant, client: FiveTuple, bytes: &[u8]) -> Option<bool> {
        let worker = self.passed_on.worker(now, client)?;
        Some(self.hand_over(client, worker, bytes))
    }

    /// Hands a request with a ticket of another worker's allocation to that worker. Only when that says that the client has moved there
    /// ([`ToWorker::Moved`]) is more passed on to it.
    pub(crate) fn hand_over(&self, client: FiveTuple, worker: u16, bytes: &[u8]) -> bool {
        let bytes = Bytes::copy_from_slice(bytes);
        self.tell(worker, ToWorker::Guest { client, host: self.own, bytes })
    }

    /// Passes a client on to `worker` from now on, until his allocation's lifetime is over.
    pub(crate) fn insert(&mut self, now: Instant, client: FiveTuple, entry: Forwarding) {
        self.passed_on.insert(now, client, entry);
    }

    /// Notes where the client arrives whose frame is handled now.
    pub(crate) fn welcome(&mut self, client: FiveTuple, host: u16) {
        self.current = Some((client, host));
    }

    /// Tells the worker where the client of the current frame arrives that it is served here until then: its frames are passed on.
    pub(crate) fn announce_moved(&self, client: FiveTuple, user: Arc<str>, until: Instant) {
        if let Some((_, host)) = self.current {
            let entry = Forwarding { worker: self.own, user, until };
            self.tell(host, ToWorker::Moved { client, entry });
        }
    }

    /// Ends the handling of the current frame; a client who is served here by a connection can be answered by its worker alone.
    pub(crate) fn dismiss(&mut self, client: FiveTuple, is_served: bool) {
        let Some((_, host)) = self.current.take() else { return };
        if !is_served {
            self.guests.remove(&client);
        } else if client.transport != Transport::Udp {
            self.guests.insert(client, host);
        }
    }

    /// Says whether the current frame is this client's.
    pub(crate) fn is_current(&self, client: FiveTuple) -> bool {
        self.current.is_some_and(|(current, _)| current == client)
    }

    /// Answers a client by the worker that he arrives at; `None` when he arrives here.
    pub(crate) fn answer(&self, client: FiveTuple, bytes: &[u8]) -> Option<bool> {
        let current = self.current.filter(|(current, _)| *current == client).map(|(_, host)| host);
        let host = current.or_else(|| self.guests.get(&client).copied())?;
        Some(self.tell(host, ToWorker::Back { client, bytes: Bytes::copy_from_slice(bytes) }))
    }

    /// Tells the others that a client has left his allocation.
    pub(crate) fn announce_left(&mut self, client: FiveTuple) {
        self.guests.remove(&client);
        let all = self.inboxes.get().map_or(0, |inboxes| inboxes.len());
        for worker in (0..all as u16).filter(|worker| *worker != self.own) {
            self.tell(worker, ToWorker::Left { client });
        }
    }

    /// Forgets a client who has left his allocation.
    pub(crate) fn forget(&mut self, client: FiveTuple) {
        self.passed_on.remove(client);
    }

    /// Tells his worker that a client's connection has ended here.
    pub(crate) fn gone(&mut self, client: FiveTuple) {
        if let Some(worker) = self.passed_on.remove(client) {
            self.tell(worker, ToWorker::GuestGone { client });
        }
    }

    fn tell(&self, worker: u16, message: ToWorker) -> bool {
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
    fn requests_that_no_worker_accepts_take_no_place_of_those_who_have_moved() {
        let polls = [0, 1].map(|_| mio::Poll::new().unwrap());
        let inbox = |poll: &mio::Poll| Inbox::new(mio::Waker::new(poll.registry(), mio::Token(0)).unwrap());
        let ((own, _own), (other, mut arrived)) = (inbox(&polls[0]), inbox(&polls[1]));
        let inboxes: Inboxes = Arc::new(OnceLock::from(Arc::<[Inbox]>::from([own, other])));
        let mut here = Neighbours::new(0, inboxes);
        let now = time::now().mono;
        // More than there are places, each with a ticket that is worth nothing any more.
        for number in 0..20_000 {
            assert!(here.hand_over(client(number), 1, b"stale"));
            assert!(matches!(arrived.try_recv(), Ok(ToWorker::Guest { host: 0, .. })));
            assert_eq!(here.pass_on(now, client(number), b"more"), None);
        }
        let entry = Forwarding { worker: 1, user: "alice".into(), until: now + Duration::from_secs(600) };
        here.insert(now, client(30_000), entry);
        assert_eq!(here.pass_on(now, client(30_000), b"data"), Some(true));
        assert!(matches!(arrived.try_recv(), Ok(ToWorker::Guest { .. })));
        here.forget(client(30_000));
        assert_eq!(here.pass_on(now, client(30_000), b"data"), None);
    }

    #[test]
    fn what_is_answered_follows_the_news_that_its_client_has_moved() {
        let polls = [0, 1].map(|_| mio::Poll::new().unwrap());
        let inbox = |poll: &mio::Poll| Inbox::new(mio::Waker::new(poll.registry(), mio::Token(0)).unwrap());
        let ((own, _own), (other, mut arrived)) = (inbox(&polls[0]), inbox(&polls[1]));
        let inboxes: Inboxes = Arc::new(OnceLock::from(Arc::<[Inbox]>::from([own, other])));
        let mut owner = Neighbours::new(0, inboxes);
        owner.welcome(client(1), 1);
        owner.announce_moved(client(1), "alice".into(), time::now().mono);
        assert!(owner.is_current(client(1)) && !owner.is_current(client(2)));
        assert_eq!(owner.answer(client(1), b"success"), Some(true));
        owner.dismiss(client(1), true);
        assert!(matches!(arrived.try_recv(), Ok(ToWorker::Moved { .. })));
        assert!(matches!(arrived.try_recv(), Ok(ToWorker::Back { .. })));
        assert_eq!(owner.answer(client(1), b"later"), None, "it leaves by a socket of this worker");
        let stream = FiveTuple { transport: Transport::Tls, ..client(2) };
        owner.welcome(stream, 1);
        owner.dismiss(stream, true);
        assert_eq!(owner.answer(stream, b"later"), Some(true));
        owner.welcome(stream, 1);
        owner.dismiss(stream, false);
        assert_eq!(owner.answer(stream, b"later"), None);
    }
}
