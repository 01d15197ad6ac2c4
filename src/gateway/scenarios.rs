//! The switchboard under a clock of its own: who is answered, held, closed and dropped.

mod flow;
mod liveness;
mod switching;

use super::config::{Duplicates, Limits, Rules, Times};
use super::machine::{Next, Output, Switchboard};
use super::wire::{self, Command, ConnId, Frame};
use super::{EndKey, Why};
use crate::clock::Now;
use crate::net::time;
use bytes::BytesMut;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use std::collections::HashMap;
use std::io::IoSlice;
use std::time::Duration;

/// What an endpoint receives, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Heard {
    Open(u32),
    Refuse(u32),
    Accept(u32, u32),
    Close(u32),
    Ping,
    Credit(u32, u32),
    Data(u32, usize),
}

/// A gateway, its time, and what it has said of whom.
struct World {
    board: Switchboard,
    now: Now,
    clients: u32,
    inputs: HashMap<EndKey, BytesMut>,
    next: HashMap<EndKey, Next>,
    dropped: HashMap<EndKey, Why>,
}

impl World {
    fn new(limits: Limits) -> Self {
        Self::with(Rules { limits, times: Times::default(), tickets: None })
    }

    fn with(rules: Rules) -> Self {
        Self {
            board: Switchboard::new(rules, ChaCha20Rng::seed_from_u64(1)),
            now: time::now(),
            clients: 0,
            inputs: HashMap::new(),
            next: HashMap::new(),
            dropped: HashMap::new(),
        }
    }

    /// A client with an address of its own.
    fn client(&mut self) -> EndKey {
        self.clients += 1;
        self.client_at([10, 0, (self.clients >> 8) as u8, self.clients as u8])
    }

    fn client_at(&mut self, ip: [u8; 4]) -> EndKey {
        self.board.handle_client(self.now, ip.into())
    }

    fn server(&mut self, id: u32, credit: bool) -> EndKey {
        let key = self.board.handle_server(self.now, id, credit, Duplicates::Newest).unwrap();
        self.settle();
        key
    }

    /// An endpoint sends a command.
    fn tell(&mut self, from: EndKey, command: Command<'_>) {
        let mut bytes = Vec::new();
        command.emit(&mut bytes);
        self.send(from, &bytes);
    }

    /// An endpoint sends a message of so many bytes.
    fn message(&mut self, from: EndKey, conn: u32, len: usize) {
        let mut bytes = Vec::new();
        wire::head(&mut bytes, ConnId(conn), len);
        bytes.resize(wire::HEAD + len, 0);
        self.send(from, &bytes);
    }

    fn send(&mut self, from: EndKey, bytes: &[u8]) {
        self.inputs.entry(from).or_default().extend_from_slice(bytes);
        self.offer(from);
    }

    /// An endpoint is read as far as the gateway wants to; returns what is left.
    fn pour(&mut self, from: EndKey, mut bytes: &[u8]) -> Vec<u8> {
        self.offer(from);
        while !bytes.is_empty() {
            let Some(Next::Read { missing, only }) = self.next.get(&from).copied() else { break };
            let some = if only { missing.clamp(1, bytes.len()) } else { bytes.len() };
            let (now, later) = bytes.split_at(some);
            self.send(from, now);
            bytes = later;
        }
        bytes.to_vec()
    }

    fn offer(&mut self, from: EndKey) {
        let input = self.inputs.entry(from).or_default();
        let next = self.board.handle_frames(self.now, from, input);
        self.next.insert(from, next);
        self.settle();
    }

    fn settle(&mut self) {
        while let Some(output) = self.board.poll_output() {
            match output {
                Output::Send(_) => {}
                Output::Resume(key) => self.offer(key),
                Output::Drop(key, why) => drop(self.dropped.insert(key, why)),
            }
        }
    }

    fn is_held(&self, end: EndKey) -> bool {
        self.next.get(&end) == Some(&Next::Hold)
    }

    /// Takes all that waits for an endpoint.
    fn hear(&mut self, end: EndKey) -> Vec<Heard> {
        let mut heard = Vec::new();
        loop {
            let mut slices = [IoSlice::new(&[]); 9];
            let count = self.board.peek(end, &mut slices);
            let bytes: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
            if bytes.is_empty() {
                return heard;
            }
            self.board.handle_written(self.now, end, bytes.len());
            let mut rest = &bytes[..];
            while let Some((frame, len)) = wire::frame(rest, usize::MAX).unwrap() {
                heard.push(match frame {
                    Frame::Data { conn, message } => Heard::Data(conn.0, message.len()),
                    Frame::Command(Command::Open(conn)) => Heard::Open(conn.0),
                    Frame::Command(Command::Refuse(conn)) => Heard::Refuse(conn.0),
                    Frame::Command(Command::Accept { conn, remote }) => Heard::Accept(conn.0, remote),
                    Frame::Command(Command::Close(conn)) => Heard::Close(conn.0),
                    Frame::Command(Command::Ping) => Heard::Ping,
                    Frame::Command(Command::Credit { conn, bytes }) => Heard::Credit(conn.0, bytes),
                    Frame::Command(other) => panic!("{other:?} to an endpoint"),
                });
                rest = &rest[len..];
            }
            assert!(rest.is_empty(), "whole frames");
            self.settle();
        }
    }

    /// An endpoint opens an id; returns it.
    fn open(&mut self, end: EndKey) -> u32 {
        self.tell(end, Command::New);
        match self.hear(end)[..] {
            [Heard::Open(conn)] => conn,
            ref other => panic!("{other:?}"),
        }
    }

    /// Opens an id and dials; returns it with what the dialler heard.
    fn dial(&mut self, end: EndKey, remote: u32) -> (u32, Vec<Heard>) {
        let conn = self.open(end);
        self.tell(end, Command::Dial { conn: ConnId(conn), remote });
        (conn, self.hear(end))
    }

    /// A virtual connection that both ends have heard of.
    fn connect(&mut self, client: EndKey, server: EndKey, server_id: u32) -> u32 {
        let (conn, heard) = self.dial(client, server_id);
        assert_eq!(heard, [Heard::Accept(conn, server_id)]);
        let told = self.hear(server);
        assert!(matches!(told[..], [Heard::Accept(same, _), ..] if same == conn), "{told:?}");
        conn
    }

    /// Lets time pass, and the machine do what is due.
    fn wait(&mut self, by: Duration) {
        let until = self.now.after(by);
        while let Some(at) = self.board.poll_timeout().filter(|at| *at <= until.mono) {
            self.now = self.now.after(at.saturating_duration_since(self.now.mono));
            self.board.handle_timeout(self.now);
            self.settle();
        }
        self.now = until;
    }
}
