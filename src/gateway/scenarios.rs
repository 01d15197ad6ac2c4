//! The router with a fake clock: who is answered, paused, closed and dropped.

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

/// A frame that an endpoint receives.
#[derive(Debug, Clone, PartialEq, Eq)]
enum TestFrame {
    Open(u32),
    Refuse(u32),
    Accept(u32, u32),
    Close(u32),
    Ping,
    Credit(u32, u32),
    Data(u32, usize),
}

/// A router, its time, and the endpoints' inputs and results.
struct TestGateway {
    router: Router,
    now: Now,
    clients: u32,
    inputs: HashMap<EndpointKey, BytesMut>,
    next: HashMap<EndpointKey, ReadAction>,
    dropped: HashMap<EndpointKey, CloseReason>,
}

impl TestGateway {
    fn new(limits: Limits) -> Self {
        Self::with(RouterConfig { limits, times: Times::default(), tokens: None })
    }

    fn with(config: RouterConfig) -> Self {
        Self {
            router: Router::new(config, ChaCha20Rng::seed_from_u64(1)),
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
        wire::emit_header(&mut bytes, ConnId(conn), len);
        bytes.resize(wire::HEADER_LEN + len, 0);
        self.send(from, &bytes);
    }

    fn send(&mut self, from: EndpointKey, bytes: &[u8]) {
        self.inputs.entry(from).or_default().extend_from_slice(bytes);
        self.offer(from);
    }

    /// Sends as much as the router reads; returns the rest.
    fn send_readable(&mut self, from: EndpointKey, mut bytes: &[u8]) -> Vec<u8> {
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

    /// Takes all frames that are queued for an endpoint.
    fn receive(&mut self, endpoint: EndpointKey) -> Vec<TestFrame> {
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
                    Frame::Data { conn, message } => TestFrame::Data(conn.0, message.len()),
                    Frame::Command(Command::Open(conn)) => TestFrame::Open(conn.0),
                    Frame::Command(Command::Refuse(conn)) => TestFrame::Refuse(conn.0),
                    Frame::Command(Command::Accept { conn, remote }) => TestFrame::Accept(conn.0, remote),
                    Frame::Command(Command::Close(conn)) => TestFrame::Close(conn.0),
                    Frame::Command(Command::Ping) => TestFrame::Ping,
                    Frame::Command(Command::Credit { conn, bytes }) => TestFrame::Credit(conn.0, bytes),
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
            [TestFrame::Open(conn)] => conn,
            ref other => panic!("{other:?}"),
        }
    }

    /// Opens an id and dials; returns it with what the dialler received.
    fn dial(&mut self, endpoint: EndpointKey, remote: u32) -> (u32, Vec<TestFrame>) {
        let conn = self.open(endpoint);
        self.send_command(endpoint, Command::Dial { conn: ConnId(conn), remote });
        (conn, self.receive(endpoint))
    }

    /// Dials and checks that both endpoints receive Accept.
    fn connect(&mut self, client: EndpointKey, server: EndpointKey, server_id: u32) -> u32 {
        let (conn, received) = self.dial(client, server_id);
        assert_eq!(received, [TestFrame::Accept(conn, server_id)]);
        let received = self.receive(server);
        assert!(matches!(received[..], [TestFrame::Accept(same, _), ..] if same == conn), "{received:?}");
        conn
    }

    /// Advances the clock and handles the timers that are due.
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
