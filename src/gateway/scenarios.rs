//! The switchboard under a clock of its own: who is answered, held, closed and dropped.

mod flow_control;
mod liveness;
mod switching;

use super::CloseReason;
use super::config::{Duplicates, Limits, RouterConfig, Times};
use super::endpoint::EndpointKey;
use super::machine::{Output, ReadAction, Router};
use super::wire::{self, Command, ConnId, Frame};
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
enum Received {
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
    router: Router,
    now: Now,
    clients: u32,
    inputs: HashMap<EndpointKey, BytesMut>,
    next: HashMap<EndpointKey, ReadAction>,
    dropped: HashMap<EndpointKey, CloseReason>,
}

impl World {
    fn new(limits: Limits) -> Self {
        Self::with(RouterConfig { limits, times: Times::default(), tokens: None })
    }

    fn with(rules: RouterConfig) -> Self {
        Self {
            router: Router::new(rules, ChaCha20Rng::seed_from_u64(1)),
            now: time::now(),
            clients: 0,
            inputs: HashMap::new(),
            next: HashMap::new(),
            dropped: HashMap::new(),
        }
    }

    /// A client with an address of its own.
    fn client(&mut self) -> EndpointKey {
        self.clients += 1;
        self.client_at([10, 0, (self.clients >> 8) as u8, self.clients as u8])
    }

    fn client_at(&mut self, ip: [u8; 4]) -> EndpointKey {
        self.router.add_client(self.now, ip.into())
    }

    fn server(&mut self, id: u32, credit: bool) -> EndpointKey {
        let key = self.router.add_server(self.now, id, credit, Duplicates::Newest).unwrap();
        self.settle();
        key
    }

    /// An endpoint sends a command.
    fn send_command(&mut self, from: EndpointKey, command: Command<'_>) {
        let mut bytes = Vec::new();
        command.emit(&mut bytes);
        self.send(from, &bytes);
    }

    /// An endpoint sends a message of so many bytes.
    fn message(&mut self, from: EndpointKey, conn: u32, len: usize) {
        let mut bytes = Vec::new();
        wire::head(&mut bytes, ConnId(conn), len);
        bytes.resize(wire::HEAD + len, 0);
        self.send(from, &bytes);
    }

    fn send(&mut self, from: EndpointKey, bytes: &[u8]) {
        self.inputs.entry(from).or_default().extend_from_slice(bytes);
        self.offer(from);
    }

    /// An endpoint is read as far as the gateway wants to; returns what is left.
    fn pour(&mut self, from: EndpointKey, mut bytes: &[u8]) -> Vec<u8> {
        self.offer(from);
        while !bytes.is_empty() {
            let Some(ReadAction::Read { missing, exact }) = self.next.get(&from).copied() else { break };
            let some = if exact { missing.clamp(1, bytes.len()) } else { bytes.len() };
            let (now, later) = bytes.split_at(some);
            self.send(from, now);
            bytes = later;
        }
        bytes.to_vec()
    }

    fn offer(&mut self, from: EndpointKey) {
        let input = self.inputs.entry(from).or_default();
        let next = self.router.handle_frames(self.now, from, input);
        self.next.insert(from, next);
        self.settle();
    }

    fn settle(&mut self) {
        while let Some(output) = self.router.poll_output() {
            match output {
                Output::Transmit(_) => {}
                Output::Resume(key) => self.offer(key),
                Output::Close(key, why) => drop(self.dropped.insert(key, why)),
            }
        }
    }

    fn is_paused(&self, endpoint: EndpointKey) -> bool {
        self.next.get(&endpoint) == Some(&ReadAction::Pause)
    }

    /// Takes all that waits for an endpoint.
    fn receive(&mut self, endpoint: EndpointKey) -> Vec<Received> {
        let mut received = Vec::new();
        loop {
            let mut slices = [IoSlice::new(&[]); 9];
            let count = self.router.peek(endpoint, &mut slices);
            let bytes: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
            if bytes.is_empty() {
                return received;
            }
            self.router.handle_written(self.now, endpoint, bytes.len());
            let mut rest = &bytes[..];
            while let Some((frame, len)) = wire::frame(rest, usize::MAX).unwrap() {
                received.push(match frame {
                    Frame::Data { conn, message } => Received::Data(conn.0, message.len()),
                    Frame::Command(Command::Open(conn)) => Received::Open(conn.0),
                    Frame::Command(Command::Refuse(conn)) => Received::Refuse(conn.0),
                    Frame::Command(Command::Accept { conn, remote }) => Received::Accept(conn.0, remote),
                    Frame::Command(Command::Close(conn)) => Received::Close(conn.0),
                    Frame::Command(Command::Ping) => Received::Ping,
                    Frame::Command(Command::Credit { conn, bytes }) => Received::Credit(conn.0, bytes),
                    Frame::Command(other) => panic!("{other:?} to an endpoint"),
                });
                rest = &rest[len..];
            }
            assert!(rest.is_empty(), "whole frames");
            self.settle();
        }
    }

    /// An endpoint opens an id; returns it.
    fn open(&mut self, endpoint: EndpointKey) -> u32 {
        self.send_command(endpoint, Command::New);
        match self.receive(endpoint)[..] {
            [Received::Open(conn)] => conn,
            ref other => panic!("{other:?}"),
        }
    }

    /// Opens an id and dials; returns it with what the dialler received.
    fn dial(&mut self, endpoint: EndpointKey, remote: u32) -> (u32, Vec<Received>) {
        let conn = self.open(endpoint);
        self.send_command(endpoint, Command::Dial { conn: ConnId(conn), remote });
        (conn, self.receive(endpoint))
    }

    /// A virtual connection that both endpoints have received of.
    fn connect(&mut self, client: EndpointKey, server: EndpointKey, server_id: u32) -> u32 {
        let (conn, received) = self.dial(client, server_id);
        assert_eq!(received, [Received::Accept(conn, server_id)]);
        let told = self.receive(server);
        assert!(matches!(told[..], [Received::Accept(same, _), ..] if same == conn), "{told:?}");
        conn
    }

    /// Lets time pass, and the machine do what is due.
    fn wait(&mut self, by: Duration) {
        let until = self.now.after(by);
        while let Some(at) = self.router.poll_timeout().filter(|at| *at <= until.mono) {
            self.now = self.now.after(at.saturating_duration_since(self.now.mono));
            self.router.handle_timeout(self.now);
            self.settle();
        }
        self.now = until;
    }
}
