//! The load against a gateway gateway that makes a given mistake.

use super::*;
use crate::gateway::handshake::{ANSWER, MD5_ANSWER};
use crate::gateway::wire::{self, Command, ConnId, Frame, MAX_PACKET};
use crate::load::{LoadTimes, LoadTransport, Target};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

/// What the gateway does with the fiftieth data frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    Loses,
    Doubles,
    Swaps,
    Damages,
    Misdelivers,
    ClosesAll,
}

type FrameSender = Sender<Vec<u8>>;

#[derive(Default)]
struct FaultyState {
    servers: HashMap<u32, FrameSender>,
    /// By id: the senders to the client and to the server.
    conns: HashMap<u32, (FrameSender, Option<FrameSender>)>,
    last: u32,
    frames: u64,
    kept: Option<Vec<u8>>,
}

struct FaultyGateway {
    clients: SocketAddr,
    servers: SocketAddr,
}

fn key() -> Key {
    Key::new(*b"a key of the gateway").unwrap()
}

fn emitted(command: Command<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    command.emit(&mut bytes);
    bytes
}

fn frame_sender(socket: &TcpStream) -> FrameSender {
    let (to, from) = channel::<Vec<u8>>();
    let mut socket = socket.try_clone().unwrap();
    thread::spawn(move || while from.recv().is_ok_and(|bytes| socket.write_all(&bytes).is_ok()) {});
    to
}

fn frames(mut socket: TcpStream, mut each: impl FnMut(Frame<'_>, &[u8])) {
    let mut frame = vec![0; 4 + MAX_PACKET];
    while socket.read_exact(&mut frame[..4]).is_ok() {
        let len = wire::frame_len(&frame[..4], MAX_PACKET).unwrap().unwrap();
        if socket.read_exact(&mut frame[4..len]).is_err() {
            return;
        }
        let (read, _) = wire::frame(&frame[..len], MAX_PACKET).unwrap().unwrap();
        each(read, &frame[..len]);
    }
}

/// Authenticates a server; `None` with the wrong key.
fn challenge(socket: &mut TcpStream, handshake: HandshakeKind) -> Option<u32> {
    match handshake {
        HandshakeKind::Md5 => {
            socket.write_all(&[7; 8]).unwrap();
            let mut answer = [0; MD5_ANSWER];
            socket.read_exact(&mut answer).ok()?;
            key().verify_md5(&[7; 8], &answer)
        }
        HandshakeKind::Hmac => {
            socket.write_all(&[7; 32]).unwrap();
            let mut answer = [0; ANSWER];
            socket.read_exact(&mut answer).ok()?;
            let (id, proof) = key().verify(&[7; 32], &answer)?;
            socket.write_all(&proof).ok()?;
            Some(id)
        }
    }
}

impl FaultyGateway {
    fn start(handshake: HandshakeKind, mistake: Mistake) -> Self {
        let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (clients, servers) = (bind(), bind());
        let state = Arc::new(Mutex::new(FaultyState::default()));
        let gateway = Self { clients: clients.local_addr().unwrap(), servers: servers.local_addr().unwrap() };
        let for_servers = Arc::clone(&state);
        thread::spawn(move || {
            for mut socket in servers.incoming().map_while(Result::ok) {
                let state = Arc::clone(&for_servers);
                let Some(id) = challenge(&mut socket, handshake) else { continue };
                let own = frame_sender(&socket);
                state.lock().unwrap().servers.insert(id, own.clone());
                thread::spawn(move || {
                    frames(socket, |frame, bytes| match frame {
                        Frame::Command(Command::Credit { bytes, .. }) => assert!(bytes > 0),
                        Frame::Command(Command::New) => {
                            drop(own.send(emitted(Command::Open(ConnId(u32::MAX)))));
                        }
                        Frame::Command(_) => {}
                        Frame::Data { conn, .. } => {
                            state.lock().unwrap().forward(mistake, conn, false, bytes)
                        }
                    });
                });
            }
        });
        thread::spawn(move || {
            for socket in clients.incoming().map_while(Result::ok) {
                let state = Arc::clone(&state);
                let own = frame_sender(&socket);
                thread::spawn(move || {
                    frames(socket, |frame, bytes| {
                        let mut state = state.lock().unwrap();
                        match frame {
                            Frame::Data { conn, .. } => state.forward(mistake, conn, true, bytes),
                            Frame::Command(command) => state.dial(handshake, command, &own),
                        }
                    });
                });
            }
        });
        gateway
    }

    fn load(
        &self,
        handshake: HandshakeKind,
        change: impl FnOnce(&mut GatewayLoad),
    ) -> Result<GatewayReport, LoadError> {
        let mut what = GatewayLoad {
            middlebox: Middlebox::Gateway {
                servers_at: self.servers,
                handshake,
                key: key(),
                first_id: 1,
                token: None,
            },
            clients: 5,
            each: 3,
            servers: 2,
            sizes: vec![100, 30_000],
            direction: MessageDirection::Both,
            non_reading: 0,
            window: 64 * 1024,
            in_flight: 1024 * 1024,
            messages: Some(2000),
            quiet: Duration::from_secs(1),
        };
        change(&mut what);
        run(self.clients, &what)
    }
}

impl FaultyState {
    fn dial(&mut self, handshake: HandshakeKind, command: Command<'_>, own: &FrameSender) {
        match command {
            Command::New => {
                self.last += 1;
                let _ = own.send(emitted(Command::Open(ConnId(self.last))));
                self.conns.insert(self.last, (own.clone(), None));
            }
            Command::Dial { conn, remote } => {
                let Some(server) = self.servers.get(&remote).cloned() else {
                    let _ = own.send(emitted(Command::Refuse(conn)));
                    return;
                };
                for to in [own, &server] {
                    let _ = to.send(emitted(Command::Accept { conn, remote: 1 }));
                }
                if handshake == HandshakeKind::Hmac {
                    let _ = server.send(emitted(Command::Credit { conn, bytes: 1 << 30 }));
                }
                let _ = own.send(emitted(Command::Ping));
                self.conns.get_mut(&conn.0).unwrap().1 = Some(server);
            }
            _ => {}
        }
    }

    fn forward(&mut self, mistake: Mistake, conn: ConnId, is_up: bool, bytes: &[u8]) {
        let (client, server) = &self.conns[&conn.0];
        let server = server.as_ref().unwrap();
        let to = if is_up { server } else { client };
        self.frames += 1;
        let mut bytes = bytes.to_vec();
        if self.frames == 50 {
            match mistake {
                Mistake::None => {}
                Mistake::Loses => return,
                Mistake::Doubles => drop(to.send(bytes.clone())),
                Mistake::Swaps => {
                    self.kept = Some(bytes);
                    return;
                }
                Mistake::Damages => *bytes.last_mut().unwrap() ^= 1,
                Mistake::Misdelivers => {
                    let other = if conn.0 > 1 { conn.0 - 1 } else { 2 };
                    bytes[4..8].copy_from_slice(&other.to_le_bytes());
                }
                Mistake::ClosesAll => {
                    for (conn, (client, server)) in &self.conns {
                        for to in [Some(client), server.as_ref()].into_iter().flatten() {
                            drop(to.send(emitted(Command::Close(ConnId(*conn)))));
                        }
                    }
                    return;
                }
            }
        }
        drop(to.send(bytes));
        // A kept frame is sent after the next one of the same virtual connection and direction.
        let is_same = |kept: &Vec<u8>| wire::conn_of(kept) == Some(conn) && kept[12] % 2 == u8::from(!is_up);
        if let Some(kept) = self.kept.take_if(|kept| is_same(kept)) {
            drop(to.send(kept));
        }
    }
}

fn run(at: SocketAddr, what: &GatewayLoad) -> Result<GatewayReport, LoadError> {
    let load = Load {
        target: Target::new(at, LoadTransport::Tcp, false).unwrap(),
        times: LoadTimes { warm_up: Duration::ZERO, seconds: Duration::from_secs(60) },
        pid: Some(std::process::id()),
        cpu: None,
        segmentation: true,
        own_sockets: false,
    };
    let stop = AtomicBool::new(false);
    load.gateway(what, &mut RunControl { stop: &stop, start: None, release: &stop, on_stage: &mut |_| {} })
}

#[test]
fn all_messages_arrive_by_both_handshakes_and_in_every_direction() {
    for (handshake, direction) in [
        (HandshakeKind::Md5, MessageDirection::Both),
        (HandshakeKind::Hmac, MessageDirection::Both),
        (HandshakeKind::Md5, MessageDirection::Up),
        (HandshakeKind::Hmac, MessageDirection::Down),
    ] {
        let gateway = FaultyGateway::start(handshake, Mistake::None);
        let report = gateway.load(handshake, |what| what.direction = direction).unwrap();
        assert_eq!((report.sent, report.received), (2000, 2000), "{report:?}");
        assert_eq!(report.complaint(), None);
        assert_eq!((report.closed, report.dropped, report.refused), (0, 0, 0));
        assert!(report.by_size.iter().all(|of| of.messages > 500 && of.latency_us.max > 0.0), "{report:?}");
        assert!(report.memory.connected.unwrap() > 0 && report.server_cpu.unwrap().us_each > 0.0);
    }
}

#[test]
fn each_mistake_of_a_gateway_has_its_count() {
    type Count = fn(&GatewayReport) -> u64;
    let mistakes: [(Mistake, Count); 5] = [
        (Mistake::Doubles, |report| report.doubled),
        (Mistake::Swaps, |report| report.out_of_order),
        (Mistake::Damages, |report| report.damaged),
        (Mistake::Misdelivers, |report| report.misdelivered),
        (Mistake::Loses, |report| report.lost),
    ];
    for (mistake, count) in mistakes {
        let report =
            FaultyGateway::start(HandshakeKind::Md5, mistake).load(HandshakeKind::Md5, |_| {}).unwrap();
        assert_eq!(count(&report), 1, "{mistake:?}: {report:?}");
        let others = mistakes.iter().filter(|(other, _)| *other != mistake && *other != Mistake::Loses);
        assert_eq!(others.map(|(_, count)| count(&report)).sum::<u64>(), 0, "{mistake:?}: {report:?}");
    }
}

#[test]
fn a_load_ends_when_its_virtual_connections_are_closed() {
    let report = FaultyGateway::start(HandshakeKind::Md5, Mistake::ClosesAll)
        .load(HandshakeKind::Md5, |what| what.messages = None);
    let report = report.unwrap();
    assert_eq!(report.closed, 15, "{report:?}");
}

#[test]
fn a_client_that_does_not_read_costs_others_no_message() {
    for handshake in [HandshakeKind::Md5, HandshakeKind::Hmac] {
        let report = FaultyGateway::start(handshake, Mistake::None).load(handshake, |what| {
            what.non_reading = 5;
            what.messages = Some(10_000);
        });
        let report = report.unwrap();
        assert_eq!((report.non_reading_clients, report.complaint()), (1, None), "{report:?}");
        assert!(report.received < report.sent && report.non_reading_sent > 100, "{report:?}");
    }
}

#[test]
fn the_same_messages_pass_through_a_proxy() {
    let behind = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let before = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (from, to) = (before.local_addr().unwrap(), behind.local_addr().unwrap());
    thread::spawn(move || {
        for socket in before.incoming().map_while(Result::ok) {
            let other = TcpStream::connect(to).unwrap();
            let copy = |mut from: TcpStream, mut to: TcpStream| {
                thread::spawn(move || std::io::copy(&mut from, &mut to))
            };
            copy(socket.try_clone().unwrap(), other.try_clone().unwrap());
            copy(other, socket);
        }
    });
    let what = GatewayLoad {
        middlebox: Middlebox::Proxy(behind),
        clients: 3,
        each: 1,
        servers: 3,
        sizes: vec![16_384],
        direction: MessageDirection::Both,
        non_reading: 0,
        window: 128 * 1024,
        in_flight: 1024 * 1024,
        messages: Some(1000),
        quiet: Duration::from_secs(1),
    };
    let report = run(from, &what).unwrap();
    assert_eq!((report.received, report.complaint(), report.handshake), (1000, None, "proxy"));
    assert!(run(from, &GatewayLoad { each: 2, ..what }).is_err());
}

#[test]
fn a_refused_server_and_a_bad_setting_give_a_readable_error() {
    let gateway = FaultyGateway::start(HandshakeKind::Md5, Mistake::None);
    let wrong = |what: &mut GatewayLoad| {
        if let Middlebox::Gateway { key, .. } = &mut what.middlebox {
            *key = Key::new(*b"another key than its").unwrap();
        }
    };
    let error = gateway.load(HandshakeKind::Md5, wrong).unwrap_err().to_string();
    assert!(error.contains("key right?"), "{error}");
    let gateway = FaultyGateway::start(HandshakeKind::Hmac, Mistake::None);
    let error = gateway.load(HandshakeKind::Hmac, wrong).unwrap_err().to_string();
    assert!(error.contains("does not accept server"), "{error}");
    for (bad, expected) in [
        ((|what| what.sizes = vec![19]) as fn(&mut GatewayLoad), "--size"),
        (|what| what.sizes = vec![524_285], "--size"),
        (|what| what.each = 65, "--each"),
        (|what| what.clients = 0, "--clients"),
    ] {
        let error = gateway.load(HandshakeKind::Hmac, bad).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
