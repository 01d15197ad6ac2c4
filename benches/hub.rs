//! Cost of the signalling state machine: registrations, heartbeats and calls with 1 to 1 000 000 tags, and the slowest of 10 000 calls per
//! second. Time is simulated; only the hub is measured.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ginnel::Now;
use ginnel::internals::load::histogram::Histogram;
use ginnel::internals::net::time;
use ginnel::internals::signaling::{Config, ConnId, Hub, Limits, Output, Rate, ServerPort};
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

const TAGS: [usize; 3] = [1, 10_000, 1_000_000];
/// The interval of calls: 10 000 per second.
const STEP: Duration = Duration::from_micros(100);
/// The heartbeat interval of a client.
const HEARTBEAT: Duration = Duration::from_secs(25);
/// The number of calls of which the slowest are reported.
const CALLS: usize = 100_000;
/// Clients that take part in calls; the rate limits per pair and per client need many.
const CALLERS: usize = 1000;
/// The distance between consecutive heartbeats: a prime, so that all clients are reached, and not in the order of memory.
const STRIDE: usize = 65_537;
const ICE: &str = r#""ufrag":"8hhY","pwd":"asd88fgpdd777uzjYhagZg","cands":["candidate:1 1 udp 2130706431 10.0.1.17 8998 typ host"]"#;

/// The transport of the clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Udp,
    Web,
}

/// The hub, and the transport of its clients.
struct Machine {
    hub: Hub,
    transport: Transport,
}

impl Machine {
    fn new(transport: Transport) -> Self {
        let plenty = Rate::new(1e12, 1e12);
        let limits = Limits {
            tags: usize::MAX,
            tags_per_network: usize::MAX,
            connections: usize::MAX,
            connections_per_network: usize::MAX,
            per_source: plenty,
            per_pair: plenty,
            ..Limits::default()
        };
        let config = Config { limits, ..Config::default() };
        Self { hub: Hub::new(config, [7; 32]), transport }
    }

    fn open(&mut self, now: Now, client: usize) {
        if self.transport == Transport::Web {
            self.hub.handle_websocket_opened(now, ConnId(client as u64), address(client).ip());
        }
    }

    fn receive(&mut self, now: Now, client: usize, text: &str) {
        match self.transport {
            Transport::Udp => {
                let local = Some(IpAddr::from(Ipv4Addr::new(198, 41, 0, 4)));
                self.hub.handle_datagram(now, ServerPort::Main, address(client), local, text.as_bytes());
            }
            Transport::Web => self.hub.handle_websocket_text(now, ConnId(client as u64), text),
        }
    }

    /// Handles due timers.
    fn tick(&mut self, now: Now) {
        if self.hub.poll_timeout().is_some_and(|due| due <= now.mono) {
            self.hub.handle_timeout(now);
        }
    }

    /// Polls all outputs, as the service does.
    fn drain(&mut self, mut each: impl FnMut(Output)) {
        while let Some(output) = self.hub.poll_output() {
            each(output);
        }
    }

    fn tags(&self) -> usize {
        self.hub.clients()
    }
}

fn address(client: usize) -> SocketAddr {
    let [_, a, b, c] = (client as u32).to_be_bytes();
    SocketAddr::from(([10, a, b, c], 40_000))
}

fn text_of(output: Output) -> Option<String> {
    match output {
        Output::Datagram { payload, .. } => String::from_utf8(payload).ok(),
        Output::Text { text, .. } => Some(text),
        _ => None,
    }
}

/// Returns the value of `"name":` in a message, without quotes.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let rest = text.split_once(&format!("\"{name}\":"))?.1.trim_start_matches('"');
    rest.split(['"', ',', '}']).next()
}

/// A hub with idle tags and callers, and the clock.
struct LoadedHub {
    machine: Machine,
    now: Now,
    tags: Vec<Box<str>>,
    /// How many of them are idle.
    idle: usize,
    next_heartbeat: usize,
    heartbeats_due: f64,
    call_number: usize,
    mid: u64,
    texts: Vec<String>,
}

impl LoadedHub {
    fn new(transport: Transport, idle: usize) -> Self {
        let machine = Machine::new(transport);
        let (now, tags) = (time::now(), Vec::with_capacity(idle + CALLERS));
        let mut hub = Self {
            machine,
            now,
            tags,
            idle,
            next_heartbeat: 0,
            heartbeats_due: 0.0,
            call_number: 0,
            mid: 1,
            texts: Vec::new(),
        };
        for client in 0..idle + CALLERS {
            // Faster than calls, but slow enough that timers are spread.
            hub.advance(Duration::from_micros(20));
            hub.machine.open(hub.now, client);
            hub.receive(client, r#"{"t":1,"mid":1}"#);
            let tag = hub.texts.iter().find_map(|text| field(text, "tag")).unwrap().into();
            hub.tags.push(tag);
            hub.heartbeat(client);
        }
        assert_eq!(hub.machine.tags(), idle + CALLERS);
        hub
    }

    /// Advances the time, with the heartbeats that are due.
    fn advance(&mut self, time: Duration) {
        self.now = self.now.after(time);
        self.heartbeats_due += self.tags.len() as f64 * time.as_secs_f64() / HEARTBEAT.as_secs_f64();
        while self.heartbeats_due >= 1.0 {
            self.heartbeats_due -= 1.0;
            self.next_heartbeat = (self.next_heartbeat + STRIDE) % self.tags.len();
            self.heartbeat(self.next_heartbeat);
        }
    }

    fn heartbeat(&mut self, client: usize) -> Duration {
        let text = format!(r#"{{"t":2,"tag":"{}"}}"#, self.tags[client]);
        self.receive(client, &text)
    }

    /// Passes a client's message to the hub; returns how long that took.
    fn receive(&mut self, client: usize, text: &str) -> Duration {
        let (machine, texts) = (&mut self.machine, &mut self.texts);
        texts.clear();
        let mut outputs = Vec::with_capacity(8);
        let began = time::mono();
        machine.receive(self.now, client, black_box(text));
        machine.drain(|output| outputs.push(output));
        let took = time::mono().duration_since(began);
        texts.extend(outputs.into_iter().filter_map(text_of));
        took
    }

    /// Handles due timers; returns how long that took.
    fn tick(&mut self) -> Duration {
        let began = time::mono();
        self.machine.tick(self.now);
        self.machine.drain(|output| drop(black_box(output)));
        time::mono().duration_since(began)
    }

    fn new_mid(&mut self) -> u64 {
        self.mid += 1;
        self.mid
    }

    /// A whole call, t=4 to t=-52; returns how long the hub took, without the end (t=55).
    fn call(&mut self) -> Duration {
        self.call_number += 1;
        let caller = self.call_number % CALLERS;
        let callee = (caller + 1 + self.call_number / CALLERS % (CALLERS - 1)) % CALLERS;
        let (caller, callee) = (self.idle + caller, self.idle + callee);
        let mid = self.new_mid();
        let text = format!(
            r#"{{"t":4,"mid":{mid},"params":{{"tag":"{}","rtag":"{}",{ICE}}}}}"#,
            self.tags[caller], self.tags[callee]
        );
        let mut took = self.receive(caller, &text);
        let (mid, token) = self.last_request(51);
        let text = format!(r#"{{"t":-51,"mid":{mid},"token":"{token}","code":200,"extra":{{{ICE}}}}}"#);
        took += self.receive(callee, &text);
        let (mid, token) = self.last_request(52);
        took += self.receive(caller, &format!(r#"{{"t":-52,"mid":{mid},"token":"{token}","code":200}}"#));
        let end = self.new_mid();
        self.receive(caller, &format!(r#"{{"t":55,"mid":{end},"token":"{token}"}}"#));
        let (mid, token) = self.last_request(55);
        self.receive(callee, &format!(r#"{{"t":-55,"mid":{mid},"token":"{token}","code":200}}"#));
        took
    }

    /// Returns `mid` and token of the hub's last request of type `t`.
    fn last_request(&self, t: i64) -> (String, String) {
        let begin = format!(r#"{{"t":{t},"#);
        let text = self.texts.iter().find(|text| text.starts_with(&begin)).unwrap();
        (field(text, "mid").unwrap().to_owned(), field(text, "token").unwrap().to_owned())
    }
}

fn benchmark_calls(c: &mut Criterion) {
    for transport in [Transport::Udp, Transport::Web] {
        let name = if transport == Transport::Udp { "call by UDP" } else { "call by WebSocket" };
        for tags in TAGS {
            let before = resident();
            let mut hub = LoadedHub::new(transport, tags);
            if tags == TAGS[2] {
                let each = (resident() - before) / hub.tags.len() - 32 - size_of::<Box<str>>();
                println!("memory/{name}/{tags}: {each} bytes per tag");
            }
            let mut group = c.benchmark_group(name);
            group.throughput(Throughput::Elements(1));
            group.bench_function(BenchmarkId::from_parameter(tags), |b| {
                b.iter_custom(|calls| {
                    let one = |_| {
                        hub.advance(STEP);
                        hub.tick() + hub.call()
                    };
                    (0..calls).map(one).sum()
                });
            });
            group.finish();
            print_latencies(&mut hub, name, tags);
        }
    }
}

/// Prints quantiles of the processing time of a call at 10 000 calls per second, including the timers and heartbeats that are due.
fn print_latencies(hub: &mut LoadedHub, name: &str, tags: usize) {
    let mut histogram = Histogram::default();
    for _ in 0..CALLS {
        hub.advance(STEP);
        let took = hub.tick() + hub.call();
        histogram.record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }
    let at = |per_mille| histogram.quantile(per_mille).as_nanos() as f64 / 1000.0;
    println!(
        "latency/{name}/{tags}: p50 {:.1} · p99 {:.1} · p99.9 {:.1} · longest {:.1} µs at {} calls/s",
        at(500),
        at(990),
        at(999),
        histogram.longest().as_nanos() as f64 / 1000.0,
        1.0 / STEP.as_secs_f64()
    );
}

fn benchmark_heartbeats_and_registrations(c: &mut Criterion) {
    for tags in TAGS {
        let mut hub = LoadedHub::new(Transport::Udp, tags);
        let mut group = c.benchmark_group("heartbeat");
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::from_parameter(tags), |b| {
            b.iter_custom(|beats| {
                let mut one = |_| {
                    hub.now = hub.now.after(HEARTBEAT / hub.tags.len() as u32);
                    hub.next_heartbeat = (hub.next_heartbeat + STRIDE) % hub.tags.len();
                    hub.heartbeat(hub.next_heartbeat)
                };
                (0..beats).map(&mut one).sum()
            });
        });
        group.finish();
        let mut group = c.benchmark_group("registration");
        group.throughput(Throughput::Elements(1));
        // The callers register in turn, with a new mid: each keeps its tag, so that the number of tags is constant.
        group.bench_function(BenchmarkId::from_parameter(tags), |b| {
            b.iter_custom(|registrations| {
                let mut one = |_| {
                    hub.advance(STEP);
                    let (clients, mid) = (hub.tags.len(), hub.new_mid());
                    let client = clients + (mid as usize) % CALLERS;
                    let took = hub.receive(client, &format!(r#"{{"t":1,"mid":{mid}}}"#));
                    took + hub.tick()
                };
                (0..registrations).map(&mut one).sum()
            });
        });
        group.finish();
    }
}

/// Returns the resident memory of this process, in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}

criterion_group!(benches, benchmark_calls, benchmark_heartbeats_and_registrations);
criterion_main!(benches);
