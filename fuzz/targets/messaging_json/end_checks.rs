//! What must hold when everything has happened.

use super::keys::USERS;
use super::{SLOTS, World};
use std::time::Duration;

impl World {
    /// Completes everything; then every request is answered, and every message that is stored reaches its device.
    pub(super) fn end(&mut self) {
        self.backend.failures = 0;
        let open: Vec<_> = self.clients.keys().copied().collect();
        for connection in open {
            self.machine.handle_drained(self.now, connection);
        }
        self.complete(usize::MAX);
        for client in self.clients.values() {
            assert!(client.open.is_empty(), "unanswered: {:?}", client.open.keys());
            assert_eq!(client.unhandled, 0, "every text is done with");
        }
        // Nobody gets the answers of a connection that has ended.
        let has_closed = self.next as usize > self.clients.len();
        assert!(has_closed || self.acknowledgeable.values().all(|count| *count == 0));
        // Rates are full again.
        self.wait(Duration::from_secs(3600));
        self.drain();
        assert!(self.clients.is_empty(), "silent clients are closed");
        self.complete(usize::MAX);
        let counters = self.machine.counters();
        assert_eq!((counters.connections, counters.websockets, counters.online), (0, 0, 0));
        let devices: Vec<_> = self.devices.keys().copied().collect();
        for number in devices {
            self.check_delivery(number);
        }
    }

    fn check_delivery(&mut self, number: i64) {
        let device = &self.devices[&number];
        let mailbox = device.mailbox;
        let user = USERS.iter().position(|user| *user == device.details.account).expect("a user");
        let index = usize::from(device.details.signing_key != super::keys::signing(user, 0).public());
        let slot = SLOTS - 2;
        let connection = self.open(slot);
        self.log_in_device(connection, user, index as u8);
        self.complete(usize::MAX);
        assert_eq!(self.clients[&connection].device, Some((number, true)), "it logs in");
        let (mut after, mut received) = (0, Vec::new());
        loop {
            self.fetch(connection, after, 100);
            self.complete(usize::MAX);
            let page = std::mem::take(&mut self.clients.get_mut(&connection).expect("it is open").page);
            let Some((last, _)) = page.last() else { break };
            after = *last;
            received
                .extend(page.into_iter().filter(|(_, kind)| kind == "message").map(|(sequence, _)| sequence));
        }
        let expected: Vec<_> = self.mailboxes.entry(mailbox).or_default().iter().copied().collect();
        assert_eq!(received, expected, "everything that is stored reaches device {number}, in order");
        self.close(slot);
    }
}
