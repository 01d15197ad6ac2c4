//! The commands between clients, servers and a gateway: virtual connections are opened, dialled, accepted and closed. Pure.

use crate::gateway::wire::{Command, ConnId, HEADER_LEN};
use std::collections::HashMap;

/// The initial credit that a server grants on a virtual connection, headers included.
const GRANT: u32 = 256 * 1024;

/// The client or server of a connection, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Party {
    Client(usize),
    Server(usize),
}

/// A change of a virtual connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectionChange {
    /// Both ends may send.
    Up(u32),
    /// The server may send more.
    Credit(u32),
    /// It has ended.
    Closed(u32),
}

/// The size of a load.
#[derive(Debug, Clone, Copy)]
pub(super) struct LoadSize {
    pub(super) clients: usize,
    /// Virtual connections per client.
    pub(super) each: usize,
    pub(super) servers: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum OpeningState {
    #[default]
    New,
    /// One end has received Accept.
    HalfOpen,
    Up,
    Refused,
    Closed,
}

#[derive(Debug, Clone, Copy, Default)]
struct ConnectionEntry {
    conn: u32,
    state: OpeningState,
    /// Bytes that the server may send.
    credit: i64,
    /// Bytes that the server has taken and not granted again.
    taken: u32,
}

/// All virtual connections.
#[derive(Debug)]
pub(super) struct VirtualConnections {
    size: LoadSize,
    /// The first server's id; the others follow.
    first_id: u32,
    /// Whether servers and gateway grant each other credit.
    has_credit: bool,
    all: Vec<ConnectionEntry>,
    /// Virtual connections opened per client.
    opened: Vec<u16>,
    by_conn: HashMap<u32, u32>,
    up: usize,
    pub(super) refused: u64,
}

impl LoadSize {
    pub(super) fn virtual_connections(self) -> usize {
        self.clients * self.each
    }
}

impl VirtualConnections {
    pub(super) fn new(size: LoadSize, first_id: u32, has_credit: bool) -> Self {
        Self {
            size,
            first_id,
            has_credit,
            all: vec![ConnectionEntry::default(); size.virtual_connections()],
            opened: vec![0; size.clients],
            by_conn: HashMap::new(),
            up: 0,
            refused: 0,
        }
    }

    /// Marks all virtual connections as open, for a proxy without commands. Each has its number plus 1 as id.
    pub(super) fn open_all(&mut self) {
        for (number, entry) in self.all.iter_mut().enumerate() {
            *entry = ConnectionEntry {
                conn: number as u32 + 1,
                state: OpeningState::Up,
                ..ConnectionEntry::default()
            };
            self.by_conn.insert(entry.conn, number as u32);
        }
        self.up = self.all.len();
    }

    /// Returns which server a virtual connection leads to.
    pub(super) fn server_of(&self, number: u32) -> usize {
        let (client, nth) = (number as usize / self.size.each, number as usize % self.size.each);
        (client + nth) % self.size.servers
    }

    /// Returns which client it belongs to.
    pub(super) fn client_of(&self, number: u32) -> usize {
        number as usize / self.size.each
    }

    /// Returns how many were opened, closed ones included.
    pub(super) fn up(&self) -> usize {
        self.up
    }

    /// Returns the id that the gateway assigned.
    pub(super) fn conn(&self, number: u32) -> ConnId {
        ConnId(self.all[number as usize].conn)
    }

    /// Returns whether `conn` is the id of `number`, and `end` one of its ends.
    pub(super) fn is_of(&self, number: u32, conn: ConnId, end: Party) -> bool {
        let known = self.all.get(number as usize).is_some_and(|entry| entry.conn == conn.0);
        known
            && match end {
                Party::Client(client) => self.client_of(number) == client,
                Party::Server(server) => self.server_of(number) == server,
            }
    }

    /// Subtracts a message of `len` bytes and its header from the server's credit.
    pub(super) fn spend(&mut self, number: u32, len: u32) {
        self.all[number as usize].credit -= i64::from(len) + HEADER_LEN as i64;
    }

    /// Returns whether the server may send.
    pub(super) fn may_send(&self, number: u32) -> bool {
        !self.has_credit || self.all[number as usize].credit > 0
    }

    /// Counts a message of `len` bytes that the server received; returns the credit to grant.
    pub(super) fn taken(&mut self, number: u32, len: u32) -> Option<Command<'static>> {
        let entry = &mut self.all[number as usize];
        entry.taken += len + HEADER_LEN as u32;
        if !self.has_credit || entry.taken < GRANT / 2 {
            return None;
        }
        Some(Command::Credit { conn: ConnId(entry.conn), bytes: std::mem::take(&mut entry.taken) })
    }

    /// Handles a command of the gateway; returns the change and the answer.
    pub(super) fn handle(
        &mut self,
        end: Party,
        command: Command<'_>,
    ) -> (Option<ConnectionChange>, Option<Command<'static>>) {
        match (command, end) {
            (Command::Ping, _) => (None, Some(Command::Ping)),
            (Command::Open(conn), Party::Client(client)) => (None, self.open(client, conn)),
            (Command::Accept { conn, .. }, _) => self.accept(end, conn),
            (Command::Credit { conn, bytes }, Party::Server(_)) => {
                let number = self.by_conn.get(&conn.0).copied();
                let change = number.map(|number| {
                    self.all[number as usize].credit += i64::from(bytes);
                    ConnectionChange::Credit(number)
                });
                (change, None)
            }
            (Command::Refuse(conn), _) => {
                self.refused += 1;
                (self.close(conn, OpeningState::Refused), None)
            }
            (Command::Close(conn), _) => (self.close(conn, OpeningState::Closed), None),
            _ => (None, None),
        }
    }

    fn open(&mut self, client: usize, conn: ConnId) -> Option<Command<'static>> {
        let nth = usize::from(self.opened[client]);
        if nth >= self.size.each {
            return None;
        }
        self.opened[client] += 1;
        let number = (client * self.size.each + nth) as u32;
        self.all[number as usize].conn = conn.0;
        self.by_conn.insert(conn.0, number);
        let remote = self.first_id.wrapping_add(self.server_of(number) as u32);
        Some(Command::Dial { conn, remote })
    }

    fn accept(&mut self, end: Party, conn: ConnId) -> (Option<ConnectionChange>, Option<Command<'static>>) {
        let Some(&number) = self.by_conn.get(&conn.0) else { return (None, None) };
        let entry = &mut self.all[number as usize];
        let grants = self.has_credit && matches!(end, Party::Server(_));
        let answer = grants.then_some(Command::Credit { conn, bytes: GRANT });
        let change = match entry.state {
            OpeningState::New => {
                entry.state = OpeningState::HalfOpen;
                None
            }
            OpeningState::HalfOpen => {
                entry.state = OpeningState::Up;
                self.up += 1;
                Some(ConnectionChange::Up(number))
            }
            _ => None,
        };
        (change, answer)
    }

    fn close(&mut self, conn: ConnId, state: OpeningState) -> Option<ConnectionChange> {
        let number = *self.by_conn.get(&conn.0)?;
        self.close_number(number, state)
    }

    fn close_number(&mut self, number: u32, state: OpeningState) -> Option<ConnectionChange> {
        let entry = &mut self.all[number as usize];
        if matches!(entry.state, OpeningState::Refused | OpeningState::Closed) {
            return None;
        }
        entry.state = state;
        Some(ConnectionChange::Closed(number))
    }

    /// Closes all virtual connections of an `end` that has disconnected.
    pub(super) fn gone(&mut self, end: Party) -> Vec<u32> {
        let all = 0..self.all.len() as u32;
        let own: Vec<_> = all
            .filter(|number| match end {
                Party::Client(client) => self.client_of(*number) == client,
                Party::Server(server) => self.server_of(*number) == server,
            })
            .collect();
        own.into_iter().filter(|number| self.close_number(*number, OpeningState::Closed).is_some()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: LoadSize = LoadSize { clients: 2, each: 2, servers: 2 };
    const CONN: ConnId = ConnId(77);
    const ACCEPT: Command<'_> = Command::Accept { conn: CONN, remote: 1 };

    #[test]
    fn a_virtual_connection_is_open_when_both_ends_have_received_accept() {
        let mut virtual_connections = VirtualConnections::new(SIZE, 10, true);
        let dial = virtual_connections.handle(Party::Client(1), Command::Open(CONN));
        assert_eq!(dial, (None, Some(Command::Dial { conn: CONN, remote: 11 })));
        assert_eq!(virtual_connections.handle(Party::Client(1), ACCEPT), (None, None));
        let (change, answer) = virtual_connections.handle(Party::Server(1), ACCEPT);
        assert_eq!(change, Some(ConnectionChange::Up(2)));
        assert_eq!(answer, Some(Command::Credit { conn: CONN, bytes: GRANT }));
        assert!(
            virtual_connections.is_of(2, CONN, Party::Client(1))
                && virtual_connections.is_of(2, CONN, Party::Server(1))
        );
        assert!(
            !virtual_connections.is_of(2, CONN, Party::Server(0))
                && !virtual_connections.is_of(3, CONN, Party::Client(1))
        );
        assert_eq!(
            virtual_connections.handle(Party::Server(1), Command::Close(CONN)).0,
            Some(ConnectionChange::Closed(2))
        );
        assert_eq!(
            virtual_connections.handle(Party::Client(1), Command::Close(CONN)).0,
            None,
            "it is reported once"
        );
        assert_eq!(virtual_connections.up(), 1);
    }

    #[test]
    fn a_server_sends_while_it_has_credit_and_grants_what_it_has_received() {
        let mut virtual_connections = VirtualConnections::new(SIZE, 1, true);
        virtual_connections.handle(Party::Client(0), Command::Open(CONN));
        assert!(!virtual_connections.may_send(0));
        virtual_connections.handle(Party::Server(0), Command::Credit { conn: CONN, bytes: 100 });
        virtual_connections.spend(0, 50);
        assert!(virtual_connections.may_send(0));
        virtual_connections.spend(0, 500);
        assert!(!virtual_connections.may_send(0));
        assert_eq!(virtual_connections.taken(0, 100), None);
        let bytes = 108 + GRANT / 2 + 8;
        assert_eq!(virtual_connections.taken(0, GRANT / 2), Some(Command::Credit { conn: CONN, bytes }));
    }

    #[test]
    fn a_disconnect_closes_all_virtual_connections() {
        let mut virtual_connections = VirtualConnections::new(SIZE, 1, false);
        virtual_connections.open_all();
        assert_eq!(virtual_connections.gone(Party::Client(1)), [2, 3]);
        assert_eq!(virtual_connections.gone(Party::Server(0)), [0], "number 3 is closed already");
        assert!(virtual_connections.may_send(1), "without credit only the socket limits the sender");
    }
}
