//! What clients and servers say to a gateway and hear from it: virtual connections are opened, dialled, accept, closed. Pure.

use crate::gateway::wire::{Command, ConnId, HEADER_LEN};
use std::collections::HashMap;

/// What a server lets the gateway send on a virtual connection before it has taken anything, heads counted.
const GRANT: u32 = 256 * 1024;

/// Who is at one end of a connection to the gateway, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Client(usize),
    Server(usize),
}

/// What has become of a virtual connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectionChange {
    /// Both virtual_connections may send.
    Up(u32),
    /// The server may send more.
    Credit(u32),
    /// It is gone.
    Closed(u32),
}

/// How many there are.
#[derive(Debug, Clone, Copy)]
pub(super) struct LoadSize {
    pub(super) clients: usize,
    /// ConnectionEntry connections of each client.
    pub(super) each: usize,
    pub(super) servers: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum ConnectionState {
    #[default]
    New,
    /// One end has heard of it.
    Half,
    Up,
    Refused,
    Closed,
}

#[derive(Debug, Clone, Copy, Default)]
struct ConnectionEntry {
    conn: u32,
    state: ConnectionState,
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
    /// How many of its own each client has been given.
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

    /// Takes all virtual connections for open, each with its number and 1 as its id: nobody stands middlebox the virtual_connections who gives them any.
    pub(super) fn open_all(&mut self) {
        for (number, entry) in self.all.iter_mut().enumerate() {
            *entry = ConnectionEntry {
                conn: number as u32 + 1,
                state: ConnectionState::Up,
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

    /// Returns how many came up, whatever has become of them.
    pub(super) fn up(&self) -> usize {
        self.up
    }

    /// Returns the id that the gateway gave.
    pub(super) fn conn(&self, number: u32) -> ConnId {
        ConnId(self.all[number as usize].conn)
    }

    /// Returns whether `conn` is that of `number`, and `end` one of its virtual_connections.
    pub(super) fn is_of(&self, number: u32, conn: ConnId, end: Side) -> bool {
        let known = self.all.get(number as usize).is_some_and(|entry| entry.conn == conn.0);
        known
            && match end {
                Side::Client(client) => self.client_of(number) == client,
                Side::Server(server) => self.server_of(number) == server,
            }
    }

    /// Takes note that the server sends a frame of `len` bytes and its head.
    pub(super) fn spend(&mut self, number: u32, len: u32) {
        self.all[number as usize].credit -= i64::from(len) + HEADER_LEN as i64;
    }

    /// Returns whether the server may send.
    pub(super) fn may_send(&self, number: u32) -> bool {
        !self.has_credit || self.all[number as usize].credit > 0
    }

    /// Takes note that the server has received `len` bytes and their head; returns what it says to that.
    pub(super) fn taken(&mut self, number: u32, len: u32) -> Option<Command<'static>> {
        let entry = &mut self.all[number as usize];
        entry.taken += len + HEADER_LEN as u32;
        if !self.has_credit || entry.taken < GRANT / 2 {
            return None;
        }
        Some(Command::Credit { conn: ConnId(entry.conn), bytes: std::mem::take(&mut entry.taken) })
    }

    /// Hears a command of the gateway; returns what changes, and what is said to it.
    pub(super) fn handle(
        &mut self,
        end: Side,
        command: Command<'_>,
    ) -> (Option<ConnectionChange>, Option<Command<'static>>) {
        match (command, end) {
            (Command::Ping, _) => (None, Some(Command::Ping)),
            (Command::Open(conn), Side::Client(client)) => (None, self.open(client, conn)),
            (Command::Accept { conn, .. }, _) => self.accept(end, conn),
            (Command::Credit { conn, bytes }, Side::Server(_)) => {
                let number = self.by_conn.get(&conn.0).copied();
                let change = number.map(|number| {
                    self.all[number as usize].credit += i64::from(bytes);
                    ConnectionChange::Credit(number)
                });
                (change, None)
            }
            (Command::Refuse(conn), _) => {
                self.refused += 1;
                (self.close(conn, ConnectionState::Refused), None)
            }
            (Command::Close(conn), _) => (self.close(conn, ConnectionState::Closed), None),
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

    fn accept(&mut self, end: Side, conn: ConnId) -> (Option<ConnectionChange>, Option<Command<'static>>) {
        let Some(&number) = self.by_conn.get(&conn.0) else { return (None, None) };
        let entry = &mut self.all[number as usize];
        let grants = self.has_credit && matches!(end, Side::Server(_));
        let said = grants.then_some(Command::Credit { conn, bytes: GRANT });
        let change = match entry.state {
            ConnectionState::New => {
                entry.state = ConnectionState::Half;
                None
            }
            ConnectionState::Half => {
                entry.state = ConnectionState::Up;
                self.up += 1;
                Some(ConnectionChange::Up(number))
            }
            _ => None,
        };
        (change, said)
    }

    fn close(&mut self, conn: ConnId, state: ConnectionState) -> Option<ConnectionChange> {
        let number = *self.by_conn.get(&conn.0)?;
        self.close_number(number, state)
    }

    fn close_number(&mut self, number: u32, state: ConnectionState) -> Option<ConnectionChange> {
        let entry = &mut self.all[number as usize];
        if matches!(entry.state, ConnectionState::Refused | ConnectionState::Closed) {
            return None;
        }
        entry.state = state;
        Some(ConnectionChange::Closed(number))
    }

    /// Takes all virtual connections of `end` for closed, which is gone.
    pub(super) fn gone(&mut self, end: Side) -> Vec<u32> {
        let all = 0..self.all.len() as u32;
        let its: Vec<_> = all
            .filter(|number| match end {
                Side::Client(client) => self.client_of(*number) == client,
                Side::Server(server) => self.server_of(*number) == server,
            })
            .collect();
        its.into_iter()
            .filter(|number| self.close_number(*number, ConnectionState::Closed).is_some())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: LoadSize = LoadSize { clients: 2, each: 2, servers: 2 };
    const CONN: ConnId = ConnId(77);
    const ACCEPT: Command<'_> = Command::Accept { conn: CONN, remote: 1 };

    #[test]
    fn a_virtual_connection_is_up_when_both_ends_have_heard_of_it() {
        let mut virtual_connections = VirtualConnections::new(SIZE, 10, true);
        let dial = virtual_connections.handle(Side::Client(1), Command::Open(CONN));
        assert_eq!(dial, (None, Some(Command::Dial { conn: CONN, remote: 11 })));
        assert_eq!(virtual_connections.handle(Side::Client(1), ACCEPT), (None, None));
        let (change, said) = virtual_connections.handle(Side::Server(1), ACCEPT);
        assert_eq!(change, Some(ConnectionChange::Up(2)));
        assert_eq!(said, Some(Command::Credit { conn: CONN, bytes: GRANT }));
        assert!(
            virtual_connections.is_of(2, CONN, Side::Client(1))
                && virtual_connections.is_of(2, CONN, Side::Server(1))
        );
        assert!(
            !virtual_connections.is_of(2, CONN, Side::Server(0))
                && !virtual_connections.is_of(3, CONN, Side::Client(1))
        );
        assert_eq!(
            virtual_connections.handle(Side::Server(1), Command::Close(CONN)).0,
            Some(ConnectionChange::Closed(2))
        );
        assert_eq!(
            virtual_connections.handle(Side::Client(1), Command::Close(CONN)).0,
            None,
            "it is told once"
        );
        assert_eq!(virtual_connections.up(), 1);
    }

    #[test]
    fn a_server_sends_while_it_has_credit_and_grants_what_it_has_taken() {
        let mut virtual_connections = VirtualConnections::new(SIZE, 1, true);
        virtual_connections.handle(Side::Client(0), Command::Open(CONN));
        assert!(!virtual_connections.may_send(0));
        virtual_connections.handle(Side::Server(0), Command::Credit { conn: CONN, bytes: 100 });
        virtual_connections.spend(0, 50);
        assert!(virtual_connections.may_send(0));
        virtual_connections.spend(0, 500);
        assert!(!virtual_connections.may_send(0));
        assert_eq!(virtual_connections.taken(0, 100), None);
        let bytes = 108 + GRANT / 2 + 8;
        assert_eq!(virtual_connections.taken(0, GRANT / 2), Some(Command::Credit { conn: CONN, bytes }));
    }

    #[test]
    fn who_is_gone_takes_its_virtual_connections_along() {
        let mut virtual_connections = VirtualConnections::new(SIZE, 1, false);
        virtual_connections.open_all();
        assert_eq!(virtual_connections.gone(Side::Client(1)), [2, 3]);
        assert_eq!(virtual_connections.gone(Side::Server(0)), [0], "number 3 is closed already");
        assert!(virtual_connections.may_send(1), "without credit it is the sender's socket that stops it");
    }
}
