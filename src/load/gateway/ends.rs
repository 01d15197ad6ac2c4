//! What clients and servers say to a gateway and hear from it: virtual connections are opened, dialled, accepted, closed. Pure.

use crate::gateway::wire::{Command, ConnId, HEAD};
use std::collections::HashMap;

/// What a server lets the gateway send on a virtual connection before it has taken anything, heads counted.
const GRANT: u32 = 256 * 1024;

/// Who is at one end of a connection to the gateway, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Client(usize),
    Server(usize),
}

/// What has become of a virtual connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Both ends may send.
    Up(u32),
    /// The server may send more.
    Credit(u32),
    /// It is gone.
    Closed(u32),
}

/// How many there are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) clients: usize,
    /// Virtual connections of each client.
    pub(super) each: usize,
    pub(super) servers: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    New,
    /// One end has heard of it.
    Half,
    Up,
    Refused,
    Closed,
}

#[derive(Debug, Clone, Copy, Default)]
struct Virtual {
    conn: u32,
    state: State,
    /// Bytes that the server may send.
    credit: i64,
    /// Bytes that the server has taken and not granted again.
    taken: u32,
}

/// All virtual connections.
#[derive(Debug)]
pub(super) struct Ends {
    size: Size,
    /// The first server's id; the others follow.
    first_id: u32,
    /// Whether servers and gateway grant each other credit.
    has_credit: bool,
    all: Vec<Virtual>,
    /// How many of its own each client has been given.
    opened: Vec<u16>,
    by_conn: HashMap<u32, u32>,
    up: usize,
    pub(super) refused: u64,
}

impl Size {
    pub(super) fn virtual_connections(self) -> usize {
        self.clients * self.each
    }
}

impl Ends {
    pub(super) fn new(size: Size, first_id: u32, has_credit: bool) -> Self {
        Self {
            size,
            first_id,
            has_credit,
            all: vec![Virtual::default(); size.virtual_connections()],
            opened: vec![0; size.clients],
            by_conn: HashMap::new(),
            up: 0,
            refused: 0,
        }
    }

    /// Takes all virtual connections for open, each with its number and 1 as its id: nobody stands between the ends who gives them any.
    pub(super) fn open_all(&mut self) {
        for (number, entry) in self.all.iter_mut().enumerate() {
            *entry = Virtual { conn: number as u32 + 1, state: State::Up, ..Virtual::default() };
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

    /// Returns whether `conn` is that of `number`, and `end` one of its ends.
    pub(super) fn is_of(&self, number: u32, conn: ConnId, end: End) -> bool {
        let known = self.all.get(number as usize).is_some_and(|entry| entry.conn == conn.0);
        known
            && match end {
                End::Client(client) => self.client_of(number) == client,
                End::Server(server) => self.server_of(number) == server,
            }
    }

    /// Takes note that the server sends a frame of `len` bytes and its head.
    pub(super) fn spend(&mut self, number: u32, len: u32) {
        self.all[number as usize].credit -= i64::from(len) + HEAD as i64;
    }

    /// Returns whether the server may send.
    pub(super) fn may_send(&self, number: u32) -> bool {
        !self.has_credit || self.all[number as usize].credit > 0
    }

    /// Takes note that the server has received `len` bytes and their head; returns what it says to that.
    pub(super) fn taken(&mut self, number: u32, len: u32) -> Option<Command<'static>> {
        let entry = &mut self.all[number as usize];
        entry.taken += len + HEAD as u32;
        if !self.has_credit || entry.taken < GRANT / 2 {
            return None;
        }
        Some(Command::Credit { conn: ConnId(entry.conn), bytes: std::mem::take(&mut entry.taken) })
    }

    /// Hears a command of the gateway; returns what changes, and what is said to it.
    pub(super) fn hear(
        &mut self,
        end: End,
        command: Command<'_>,
    ) -> (Option<Change>, Option<Command<'static>>) {
        match (command, end) {
            (Command::Ping, _) => (None, Some(Command::Ping)),
            (Command::Open(conn), End::Client(client)) => (None, self.open(client, conn)),
            (Command::Accept { conn, .. }, _) => self.accept(end, conn),
            (Command::Credit { conn, bytes }, End::Server(_)) => {
                let number = self.by_conn.get(&conn.0).copied();
                let change = number.map(|number| {
                    self.all[number as usize].credit += i64::from(bytes);
                    Change::Credit(number)
                });
                (change, None)
            }
            (Command::Refuse(conn), _) => {
                self.refused += 1;
                (self.close(conn, State::Refused), None)
            }
            (Command::Close(conn), _) => (self.close(conn, State::Closed), None),
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

    fn accept(&mut self, end: End, conn: ConnId) -> (Option<Change>, Option<Command<'static>>) {
        let Some(&number) = self.by_conn.get(&conn.0) else { return (None, None) };
        let entry = &mut self.all[number as usize];
        let grants = self.has_credit && matches!(end, End::Server(_));
        let said = grants.then_some(Command::Credit { conn, bytes: GRANT });
        let change = match entry.state {
            State::New => {
                entry.state = State::Half;
                None
            }
            State::Half => {
                entry.state = State::Up;
                self.up += 1;
                Some(Change::Up(number))
            }
            _ => None,
        };
        (change, said)
    }

    fn close(&mut self, conn: ConnId, state: State) -> Option<Change> {
        let number = *self.by_conn.get(&conn.0)?;
        self.close_number(number, state)
    }

    fn close_number(&mut self, number: u32, state: State) -> Option<Change> {
        let entry = &mut self.all[number as usize];
        if matches!(entry.state, State::Refused | State::Closed) {
            return None;
        }
        entry.state = state;
        Some(Change::Closed(number))
    }

    /// Takes all virtual connections of `end` for closed, which is gone.
    pub(super) fn gone(&mut self, end: End) -> Vec<u32> {
        let all = 0..self.all.len() as u32;
        let its: Vec<_> = all
            .filter(|number| match end {
                End::Client(client) => self.client_of(*number) == client,
                End::Server(server) => self.server_of(*number) == server,
            })
            .collect();
        its.into_iter().filter(|number| self.close_number(*number, State::Closed).is_some()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { clients: 2, each: 2, servers: 2 };
    const CONN: ConnId = ConnId(77);
    const ACCEPT: Command<'_> = Command::Accept { conn: CONN, remote: 1 };

    #[test]
    fn a_virtual_connection_is_up_when_both_ends_have_heard_of_it() {
        let mut ends = Ends::new(SIZE, 10, true);
        let dial = ends.hear(End::Client(1), Command::Open(CONN));
        assert_eq!(dial, (None, Some(Command::Dial { conn: CONN, remote: 11 })));
        assert_eq!(ends.hear(End::Client(1), ACCEPT), (None, None));
        let (change, said) = ends.hear(End::Server(1), ACCEPT);
        assert_eq!(change, Some(Change::Up(2)));
        assert_eq!(said, Some(Command::Credit { conn: CONN, bytes: GRANT }));
        assert!(ends.is_of(2, CONN, End::Client(1)) && ends.is_of(2, CONN, End::Server(1)));
        assert!(!ends.is_of(2, CONN, End::Server(0)) && !ends.is_of(3, CONN, End::Client(1)));
        assert_eq!(ends.hear(End::Server(1), Command::Close(CONN)).0, Some(Change::Closed(2)));
        assert_eq!(ends.hear(End::Client(1), Command::Close(CONN)).0, None, "it is told once");
        assert_eq!(ends.up(), 1);
    }

    #[test]
    fn a_server_sends_while_it_has_credit_and_grants_what_it_has_taken() {
        let mut ends = Ends::new(SIZE, 1, true);
        ends.hear(End::Client(0), Command::Open(CONN));
        assert!(!ends.may_send(0));
        ends.hear(End::Server(0), Command::Credit { conn: CONN, bytes: 100 });
        ends.spend(0, 50);
        assert!(ends.may_send(0));
        ends.spend(0, 500);
        assert!(!ends.may_send(0));
        assert_eq!(ends.taken(0, 100), None);
        let bytes = 108 + GRANT / 2 + 8;
        assert_eq!(ends.taken(0, GRANT / 2), Some(Command::Credit { conn: CONN, bytes }));
    }

    #[test]
    fn who_is_gone_takes_its_virtual_connections_along() {
        let mut ends = Ends::new(SIZE, 1, false);
        ends.open_all();
        assert_eq!(ends.gone(End::Client(1)), [2, 3]);
        assert_eq!(ends.gone(End::Server(0)), [0], "number 3 is closed already");
        assert!(ends.may_send(1), "without credit it is the sender's socket that stops it");
    }
}
