//! A TCP proxy in front of the server that records what passes and can close its connections.

use std::io::{Cursor, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio_tungstenite::tungstenite::WebSocket;
use tokio_tungstenite::tungstenite::protocol::Role;

/// The two ends of one line, and what came from each.
struct Line {
    ends: [TcpStream; 2],
    passed: [Arc<Mutex<Vec<u8>>>; 2],
}

/// A running proxy; it ends with its test.
pub(crate) struct RecordingProxy {
    /// Where to connect.
    pub(crate) address: SocketAddr,
    lines: Arc<Mutex<Vec<Line>>>,
}

impl RecordingProxy {
    /// Starts a proxy in front of `server`.
    pub(crate) fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let recorder = Self { address: listener.local_addr().unwrap(), lines: Arc::default() };
        let lines = Arc::clone(&recorder.lines);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let ends = [client.unwrap(), TcpStream::connect(server).unwrap()];
                let passed = [(); 2].map(|()| Arc::default());
                for (from, passed) in passed.iter().enumerate() {
                    let (from, to) = (ends[from].try_clone().unwrap(), ends[1 - from].try_clone().unwrap());
                    let passed = Arc::clone(passed);
                    std::thread::spawn(move || pass(from, to, &passed));
                }
                lines.lock().unwrap().push(Line { ends, passed });
            }
        });
        recorder
    }

    /// Cuts every line.
    pub(crate) fn cut(&self) {
        for line in self.lines.lock().unwrap().iter() {
            line.ends.iter().for_each(|end| drop(end.shutdown(Shutdown::Both)));
        }
    }

    /// The WebSocket texts so far, per connection: those of the client and those of the server.
    pub(crate) fn texts(&self) -> Vec<[Vec<Value>; 2]> {
        let lines = self.lines.lock().unwrap();
        let read = |line: &Line| {
            let [sent, received] = &line.passed;
            [texts(&sent.lock().unwrap(), Role::Server), texts(&received.lock().unwrap(), Role::Client)]
        };
        lines.iter().map(read).collect()
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, passed: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        passed.lock().unwrap().extend_from_slice(&buffer[..length]);
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    to.shutdown(Shutdown::Both).ok();
}

/// The whole texts behind an HTTP head.
fn texts(bytes: &[u8], reader: Role) -> Vec<Value> {
    let Some(head) = bytes.windows(4).position(|end| end == b"\r\n\r\n") else { return Vec::new() };
    let frames = Cursor::new(bytes[head + 4..].to_vec());
    let mut socket = WebSocket::from_raw_socket(frames, reader, None);
    let mut texts = Vec::new();
    while let Ok(message) = socket.read() {
        texts.extend(message.to_text().ok().and_then(|text| serde_json::from_str(text).ok()));
    }
    texts
}
