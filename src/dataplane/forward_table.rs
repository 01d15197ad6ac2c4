//! The clients that arrive at one worker and whose allocation another worker has (RFC 8016). Pure.

use crate::limits::Limit;
use crate::turn_server::FiveTuple;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// Most clients that one worker forwards.
const CAPACITY: usize = 16_384;
/// Most clients of one user, so that one user does not fill the table.
const CAPACITY_PER_USER: usize = 4096;

/// Where a client is forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForwardEntry {
    /// The worker with the allocation.
    pub(crate) worker: u16,
    /// The user of the allocation.
    pub(crate) user: Arc<str>,
    /// The end of its lifetime.
    pub(crate) until: Instant,
}

/// The clients that one worker forwards.
#[derive(Debug, Default)]
pub(crate) struct ForwardTable {
    clients: HashMap<FiveTuple, ForwardEntry>,
    users: HashMap<Arc<str>, usize>,
}

impl ForwardTable {
    /// Returns the worker with the client's allocation.
    pub(crate) fn worker(&mut self, now: Instant, client: FiveTuple) -> Option<u16> {
        let entry = self.clients.get(&client)?;
        if now < entry.until {
            return Some(entry.worker);
        }
        self.remove(client);
        None
    }

    /// Inserts a client, unless the table is full.
    pub(crate) fn insert(&mut self, now: Instant, client: FiveTuple, entry: ForwardEntry) {
        self.remove(client);
        if self.is_full(&entry.user) {
            let is_over = |(_, known): &(&FiveTuple, &ForwardEntry)| known.until <= now;
            let over: Vec<_> = self.clients.iter().filter(is_over).map(|(client, _)| *client).collect();
            for client in over {
                self.remove(client);
            }
        }
        if self.is_full(&entry.user) {
            Limit::ForwardedClients.reached(CAPACITY_PER_USER);
            return;
        }
        *self.users.entry(Arc::clone(&entry.user)).or_default() += 1;
        self.clients.insert(client, entry);
    }

    /// Removes a client; returns the worker with its allocation.
    pub(crate) fn remove(&mut self, client: FiveTuple) -> Option<u16> {
        let ForwardEntry { worker, user, .. } = self.clients.remove(&client)?;
        if let Some(count) = self.users.get_mut(&user) {
            *count -= 1;
            if *count == 0 {
                self.users.remove(&user);
            }
        }
        Some(worker)
    }

    fn is_full(&self, user: &Arc<str>) -> bool {
        self.clients.len() >= CAPACITY
            || self.users.get(user).is_some_and(|count| *count >= CAPACITY_PER_USER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::time;
    use crate::turn_server::Transport;
    use std::net::{Ipv4Addr, SocketAddr};
    use std::time::Duration;

    fn client(number: usize) -> FiveTuple {
        let address = SocketAddr::from((Ipv4Addr::from(number as u32), 1000));
        FiveTuple { client: address, server: address, transport: Transport::Udp }
    }

    fn entry(user: &str, until: Instant) -> ForwardEntry {
        ForwardEntry { worker: 1, user: user.into(), until }
    }

    #[test]
    fn one_user_takes_his_own_places_and_nobody_elses() {
        let now = time::now().mono;
        let later = now + Duration::from_secs(600);
        let mut table = ForwardTable::default();
        for number in 0..CAPACITY_PER_USER + 10 {
            table.insert(now, client(number), entry("alice", later));
        }
        assert_eq!(table.worker(now, client(CAPACITY_PER_USER - 1)), Some(1));
        assert_eq!(table.worker(now, client(CAPACITY_PER_USER)), None, "alice has no more places");
        table.insert(now, client(0), entry("alice", later));
        assert_eq!(table.worker(now, client(0)), Some(1), "the same client again takes no other place");
        table.insert(now, client(50_000), entry("bob", later));
        assert_eq!(table.worker(now, client(50_000)), Some(1));
        assert_eq!(table.remove(client(0)), Some(1));
        table.insert(now, client(60_000), entry("alice", later));
        assert_eq!(table.worker(now, client(60_000)), Some(1));
    }

    #[test]
    fn entries_end_with_the_lifetime_of_their_allocation_and_make_room() {
        let now = time::now().mono;
        let later = now + Duration::from_secs(600);
        let mut table = ForwardTable::default();
        for number in 0..CAPACITY {
            table.insert(now, client(number), entry(&format!("user {}", number / CAPACITY_PER_USER), later));
        }
        table.insert(now, client(CAPACITY), entry("bob", later));
        assert_eq!(table.worker(now, client(CAPACITY)), None, "all places are taken");
        table.insert(later, client(CAPACITY), entry("bob", later + Duration::from_secs(1)));
        assert_eq!(table.worker(later, client(CAPACITY)), Some(1));
        assert_eq!((table.clients.len(), table.users.len()), (1, 1), "expired entries were removed");
        assert_eq!(table.worker(later + Duration::from_secs(1), client(CAPACITY)), None);
        assert!(table.clients.is_empty() && table.users.is_empty());
    }
}
