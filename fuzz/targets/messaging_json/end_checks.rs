//! What must hold when everything has happened.

use super::World;
use super::harness::{Model, SLOTS};
use super::keys::USERS;

impl World {
    /// Logs a device in; every message that is stored reaches it.
    pub(super) fn check_delivery(&mut self, number: i64) {
        let device = &self.devices[&number];
        let mailbox = device.mailbox;
        let user = USERS.iter().position(|user| *user == device.details.account).expect("a user");
        let index = usize::from(device.details.signing_key != super::keys::signing(user, 0).public());
        let slot = SLOTS - 2;
        let connection = self.open(slot);
        self.log_in_device(connection, user, index as u8);
        self.complete(usize::MAX);
        let session = self.harness.clients[&connection].device.expect("it logs in");
        assert!(session.number == number && session.reads_mailbox);
        let (mut after, mut received) = (0, Vec::new());
        loop {
            self.fetch(connection, after, 100);
            self.complete(usize::MAX);
            let page =
                std::mem::take(&mut self.harness.clients.get_mut(&connection).expect("it is open").page);
            let Some((last, _)) = page.last() else { break };
            after = *last;
            received
                .extend(page.into_iter().filter(|(_, kind)| kind == "message").map(|(sequence, _)| sequence));
        }
        let expected: Vec<_> = self.mailboxes.entry(mailbox).or_default().iter().copied().collect();
        assert_eq!(received, expected, "everything that is stored reaches device {number}, in order");
        self.harness.close(slot);
    }
}
