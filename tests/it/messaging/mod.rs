//! Messaging over TCP (S4): a running server, plain sockets, and a client in Python.

mod abuse;
mod agents;
mod durability;
mod kills;
mod offline_calls;
mod padding_oracle;
mod ports;
mod python_client;
mod scale;
mod websocket;
mod websocket_kills;
mod wire;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use crate::test_server::{Lines, TestServer, free_ports};

const PATIENCE: Duration = Duration::from_secs(60);
const PASSWORD: &str = "411460f7c92d2124a67ea0f4cb5f85";
/// Password hashes that cost little.
const CHEAP: &str = "[messaging.password]\nmemory_kib = 64\npasses = 1\n";

/// A server with messaging on loopback.
struct Messaging {
    server: TestServer,
    plain: SocketAddr,
}

/// One frame: cmd, msgId, whether it is encrypted, data.
type Frame = (u64, String, bool, Vec<u8>);

impl Messaging {
    /// Starts one; `rest` is in the section `[messaging]` and behind it.
    fn start(rest: &str) -> Self {
        Self::start_under(&[], rest)
    }

    /// Starts one with a program before it that runs it.
    fn start_under(runner: &[&str], rest: &str) -> Self {
        let port = free_ports();
        // Few relays, so that connections have the descriptors.
        let turn = format!("max_allocations = 1000\n[messaging]\nenabled = true\nport = {port}\n{rest}\n");
        let lines = Lines { top: "workers = 1", turn: &turn };
        let server = TestServer::under(runner, lines);
        Self { server, plain: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port) }
    }

    fn connect(&self) -> Client {
        let mut client = self.connect_raw();
        client.expect_key();
        client
    }

    fn connect_raw(&self) -> Client {
        Client { stream: connect(self.plain) }
    }

    fn user(&self, name: &str) -> Client {
        let mut client = self.connect();
        client.log_in(name);
        client
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

struct Client<S = TcpStream> {
    stream: S,
}

impl<S: Read + Write> Client<S> {
    fn send(&mut self, cmd: u64, msg_id: &str, data: &[u8]) {
        self.try_send(cmd, msg_id, data).unwrap();
    }

    fn try_send(&mut self, cmd: u64, msg_id: &str, data: &[u8]) -> io::Result<()> {
        self.stream.write_all(&encode(cmd, msg_id, data))
    }

    fn read_exact(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn frame(&mut self) -> Frame {
        self.try_frame().unwrap()
    }

    /// Reads a frame of a server that may end.
    fn try_frame(&mut self) -> io::Result<Frame> {
        let mut header = [0; 4];
        self.stream.read_exact(&mut header)?;
        let mut data = vec![0; u32::from_be_bytes(header) as usize];
        self.stream.read_exact(&mut data)?;
        Ok(decode(&data))
    }

    /// Reads the server's key.
    fn expect_key(&mut self) {
        let (cmd, _, is_encrypt, key) = self.frame();
        assert_eq!((cmd, is_encrypt, key.len()), (1, false, 294));
    }

    fn code(&mut self, cmd: u64, body: &Value) -> i64 {
        self.send(cmd, "m", body.to_string().as_bytes());
        let (got, msg_id, _, data) = self.frame();
        assert_eq!((got, &*msg_id), (cmd, "m"), "{}", String::from_utf8_lossy(&data));
        serde_json::from_slice::<Value>(&data).unwrap()["code"].as_i64().unwrap()
    }

    /// Registers a user, unless it is known, and logs in.
    fn log_in(&mut self, name: &str) {
        let account = json!({"username": name, "password": PASSWORD});
        assert!([100, 1001].contains(&self.code(102, &account)));
        assert_eq!(self.code(100, &account), 100);
    }

    fn is_closed(&mut self) -> bool {
        match self.stream.read(&mut [0; 1]) {
            Ok(count) => count == 0,
            Err(error) => matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
        }
    }
}

impl Client {
    fn try_clone(&self) -> Self {
        Self { stream: self.stream.try_clone().unwrap() }
    }
}

fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number > 127 {
        out.push((number & 127 | 128) as u8);
        number >>= 7;
    }
    out.push(number as u8);
}

fn encode(cmd: u64, msg_id: &str, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    if cmd != 0 {
        out.push(8);
        varint(cmd, &mut out);
    }
    for (key, field) in [(0x12, msg_id.as_bytes()), (0x22, data)] {
        if !field.is_empty() {
            out.push(key);
            varint(field.len() as u64, &mut out);
            out.extend(field);
        }
    }
    [&(out.len() as u32).to_be_bytes()[..], &out].concat()
}

fn decode(mut data: &[u8]) -> Frame {
    fn number(data: &mut &[u8]) -> u64 {
        let mut number = 0;
        for shift in (0..).step_by(7) {
            let (byte, rest) = data.split_first().unwrap();
            *data = rest;
            number |= u64::from(byte & 127) << shift;
            if *byte < 128 {
                break;
            }
        }
        number
    }
    let mut frame = Frame::default();
    while !data.is_empty() {
        let key = number(&mut data);
        if key & 7 == 0 {
            let value = number(&mut data);
            match key >> 3 {
                1 => frame.0 = value,
                _ => frame.2 = value != 0,
            }
        } else {
            let len = number(&mut data) as usize;
            let (value, rest) = data.split_at(len);
            data = rest;
            match key >> 3 {
                2 => frame.1 = String::from_utf8(value.to_vec()).unwrap(),
                _ => frame.3 = value.to_vec(),
            }
        }
    }
    frame
}
