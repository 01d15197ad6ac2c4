//! Clients of either server on one thread, by the connections of `ginnel load signaling`.

use super::servers::{Kind, Server};
use anyhow::bail;
use ginnel::internals::load::signaling::websocket_clients::WebSocketClients;
use ginnel::internals::load::{LoadTransport, Target};
use ginnel::internals::net::time;
use serde::Serialize;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The heartbeat interval of PeerJS's clients.
const HEARTBEAT: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);
/// Bytes of a message at the server.
const LENGTH: usize = 320;
const CANDIDATE: &str = "candidate:842163049 1 udp 1677729535 203.0.113.22 41641 typ srflx raddr 10.0.1.17 rport 8998 generation 0";

/// The number of candidates sent at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Burst {
    pub(super) size: usize,
    /// Whether they share one message, if the protocol allows it.
    pub(super) packed: bool,
}

/// The cost of forwarding candidates.
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub(super) struct Relayed {
    pub(super) candidates: u64,
    pub(super) per_second: f64,
    /// Per second of the server's CPU time.
    pub(super) per_cpu_second: f64,
    /// The server's CPU time per elapsed time.
    pub(super) server_share: f64,
}

#[derive(Debug, Default)]
struct Client {
    is_online: bool,
    tag: String,
    /// The token of the call with its partner.
    token: String,
    /// Candidates of its partner that have arrived.
    received: u64,
}

/// All clients. Clients whose numbers differ in the last bit are partners.
pub(super) struct ClientSet {
    kind: Kind,
    connections: WebSocketClients,
    clients: Vec<Client>,
    last_heartbeat: Instant,
}

impl ClientSet {
    pub(super) fn new(kind: Kind, address: SocketAddr) -> anyhow::Result<Self> {
        let connections = WebSocketClients::new(Target::new(address, LoadTransport::Tcp, false)?)?;
        Ok(Self { kind, connections, clients: Vec::new(), last_heartbeat: time::mono() })
    }

    /// Connects clients and waits until all are registered.
    pub(super) fn connect(&mut self, count: usize) -> anyhow::Result<()> {
        for number in 0..count {
            self.clients.push(Client::default());
            match self.kind {
                Kind::Ginnel => {
                    self.connections.open_at("/ws")?;
                    self.connections.send_texts(number, &[r#"{"t":1,"mid":1}"#.to_owned()]);
                }
                Kind::PeerJs => {
                    let path =
                        format!("/peerjs?key=peerjs&id=peer{number:06}&token=token{number:06}&version=1.5.4");
                    self.connections.open_at(&path)?;
                }
            }
            if number % 64 == 63 {
                self.pump(Duration::ZERO)?;
            }
        }
        self.until("all are online", |set| set.clients.iter().all(|client| client.is_online))
    }

    pub(super) fn stay(&mut self, time: Duration) -> anyhow::Result<()> {
        let end = time::mono() + time;
        while time::mono() < end {
            self.pump(LOOK)?;
        }
        Ok(())
    }

    /// Makes a call between partners, if the server has calls.
    pub(super) fn call(&mut self) -> anyhow::Result<()> {
        if self.kind == Kind::PeerJs {
            return Ok(());
        }
        for caller in (0..self.clients.len()).step_by(2) {
            let (tag, rtag) = (&self.clients[caller].tag, &self.clients[caller + 1].tag);
            let text = format!(r#"{{"t":4,"mid":{caller},"params":{{"tag":"{tag}","rtag":"{rtag}"}}}}"#);
            self.connections.send_texts(caller, &[text]);
        }
        self.until("all calls are answered", |set| {
            set.clients.iter().step_by(2).all(|client| !client.token.is_empty())
        })
    }

    /// Clients with even numbers send `burst` candidates at a time, the next ones when these have arrived at the partner.
    pub(super) fn relay(
        &mut self,
        Burst { size: burst, packed }: Burst,
        time: Duration,
        server: &Server,
    ) -> anyhow::Result<Relayed> {
        let is_packed = packed && self.kind == Kind::Ginnel;
        self.clients.iter_mut().for_each(|client| client.received = burst as u64);
        let (began, cpu) = (time::mono(), server.cpu()?);
        let mut candidates = 0;
        while time::mono() < began + time {
            for sender in (0..self.clients.len()).step_by(2) {
                if self.clients[sender + 1].received < burst as u64 {
                    continue;
                }
                candidates += std::mem::take(&mut self.clients[sender + 1].received);
                let (texts, each) = if is_packed { (1, burst) } else { (burst, 1) };
                let texts: Vec<_> = (0..texts).map(|_| self.message(sender, each)).collect();
                self.connections.send_texts(sender, &texts);
            }
            self.pump(LOOK)?;
        }
        // The initial candidates were not sent.
        let candidates = candidates - (burst * self.clients.len() / 2) as u64;
        let (elapsed, cpu) = ((time::mono() - began).as_secs_f64(), (server.cpu()? - cpu).as_secs_f64());
        self.stay(Duration::from_millis(300))?;
        Ok(Relayed {
            candidates,
            per_second: candidates as f64 / elapsed,
            per_cpu_second: candidates as f64 / cpu,
            server_share: cpu / elapsed,
        })
    }

    /// Candidates of `sender` for its partner. A message with one candidate has the same length for both servers.
    fn message(&self, sender: usize, count: usize) -> String {
        let to = sender + 1;
        let with = |padding: &str, count: usize| match self.kind {
            Kind::Ginnel => {
                let token = &self.clients[sender].token;
                let cands = vec![format!("\"{CANDIDATE}{padding}\""); count].join(",");
                format!(r#"{{"t":54,"token":"{token}","params":{{"cands":[{cands}]}}}}"#)
            }
            Kind::PeerJs => format!(
                r#"{{"type":"CANDIDATE","payload":{{"candidate":{{"candidate":"{CANDIDATE}{padding}","sdpMLineIndex":0,"sdpMid":"0"}},"type":"data","connectionId":"dc_4v1tqzs1x3p"}},"dst":"peer{to:06}"}}"#
            ),
        };
        let bare = with("", 1).len();
        with(&" ".repeat(LENGTH.saturating_sub(bare)), count)
    }

    fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) -> anyhow::Result<()> {
        let deadline = time::mono() + TIMEOUT;
        while !is_so(self) {
            if time::mono() > deadline {
                bail!("timed out: {what}");
            }
            self.pump(LOOK)?;
        }
        Ok(())
    }

    fn pump(&mut self, wait: Duration) -> anyhow::Result<()> {
        if self.kind == Kind::PeerJs && self.last_heartbeat.elapsed() > HEARTBEAT {
            self.last_heartbeat = time::mono();
            let heartbeat = [r#"{"type":"HEARTBEAT"}"#.to_owned()];
            for number in 0..self.clients.len() {
                self.connections.send_texts(number, &heartbeat);
            }
        }
        let (kind, clients) = (self.kind, &mut self.clients);
        let mut answers: Vec<Vec<String>> = Vec::new();
        let mut whose = Vec::new();
        self.connections.receive_texts(wait, &mut |_, number, text| {
            let Ok(text) = std::str::from_utf8(text) else { return };
            let answer = match kind {
                Kind::Ginnel => handle_message(clients, number, text),
                Kind::PeerJs => {
                    clients[number].is_online |= text.contains("\"OPEN\"");
                    clients[number].received += u64::from(text.contains("\"CANDIDATE\""));
                    None
                }
            };
            let Some(answer) = answer else { return };
            if whose.last() == Some(&number)
                && let Some(last) = answers.last_mut()
            {
                last.push(answer);
            } else {
                whose.push(number);
                answers.push(vec![answer]);
            }
        })?;
        for (number, answers) in whose.into_iter().zip(answers) {
            self.connections.send_texts(number, &answers);
        }
        if self.connections.closed() > 0 {
            bail!("{} has closed {} connections", self.kind.name(), self.connections.closed());
        }
        Ok(())
    }
}

/// Handles a message of ginnel's server; returns the answer.
fn handle_message(clients: &mut [Client], number: usize, text: &str) -> Option<String> {
    let t = field(text, "t")?.parse::<i64>().ok()?;
    let client = &mut clients[number];
    if t == -1 {
        client.is_online = true;
        client.tag = field(text, "tag")?.to_owned();
    }
    if !(51..=55).contains(&t) {
        return None;
    }
    let token = field(text, "token")?;
    match t {
        52 => client.token = token.to_owned(),
        54 => client.received += text.matches("candidate:").count() as u64,
        _ => {}
    }
    // Without a mid the server expects no answer.
    let mid = field(text, "mid")?;
    Some(format!(r#"{{"t":-{t},"mid":{mid},"token":"{token}","code":200}}"#))
}

/// Returns the value of `"name":` in a message, without quotes.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("\"{name}\":"))?;
    rest.trim_start_matches('"').split(['"', ',', '}']).next()
}
