//! Two endpoints over wires that lose datagrams, in stopped time.

use super::*;
use crate::agent::call_auth::InitialKey;
use crate::agent::datagram_queue::DatagramQueue;
use crate::agent::keys::{AgentRole, SECRET_LEN, Secret};
use crate::agent::outlet::{Outlet, QueueFraming};
use crate::agent::quic::{QuicConnection, QuicEndpoint};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::sync::Mutex;
use std::sync::atomic::AtomicU32;
use tokio::sync::mpsc;
use tokio::time::sleep_until;

fn now() -> Instant {
    time::runtime()
}

const DELAY: Duration = Duration::from_millis(20);
/// What each side sends: 100 kB/s.
const CHUNK: [u8; 2000] = [7; 2000];
const PACE: Duration = Duration::from_millis(20);
/// All datagrams of 1000.
const CUT: u32 = 1000;

struct Side {
    tunnel: Arc<Tunnel>,
    queue: Arc<DatagramQueue>,
    /// When data arrived.
    arrivals: Arc<Mutex<Vec<Instant>>>,
}

/// Two sides that send all the time, and the share of datagrams that the wires lose, in thousandths.
struct World {
    sides: [Side; 2],
    loss: Arc<AtomicU32>,
    connections: Vec<QuicConnection>,
}

impl Side {
    fn new() -> Self {
        let queue = Arc::new(DatagramQueue::default());
        Self { tunnel: Tunnel::with_queue(Arc::clone(&queue)), queue, arrivals: Arc::default() }
    }

    async fn handshake(&self, role: AgentRole) -> QuicConnection {
        let secret = Secret([1; SECRET_LEN]);
        let endpoint = QuicEndpoint::new(Arc::clone(&self.tunnel)).unwrap();
        endpoint.handshake(&secret, &InitialKey::without_call(&secret), role).await.unwrap()
    }

    /// Sends to the other side all the time, and notes what arrives from it.
    async fn talk(&self, connection: quinn::Connection) {
        let mut send = connection.open_uni().await.unwrap();
        tokio::spawn(async move {
            while send.write_all(&CHUNK).await.is_ok() {
                sleep(PACE).await;
            }
        });
        let arrivals = Arc::clone(&self.arrivals);
        tokio::spawn(async move {
            let mut receive = connection.accept_uni().await.unwrap();
            while let Ok(Some(_)) = receive.read_chunk(1 << 20, true).await {
                arrivals.lock().unwrap().push(now());
            }
        });
    }

    /// Returns the longest time without data since `from`.
    fn longest_gap(&self, from: Instant) -> Duration {
        let arrivals = self.arrivals.lock().unwrap();
        let times: Vec<_> = [from]
            .into_iter()
            .chain(arrivals.iter().copied().filter(|at| *at > from))
            .chain([now()])
            .collect();
        times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap()
    }
}

impl World {
    async fn new(seed: u64) -> Self {
        let sides = [Side::new(), Side::new()];
        let loss = Arc::new(AtomicU32::new(0));
        let mut seeds = ChaCha8Rng::seed_from_u64(seed);
        for (from, to) in [(0, 1), (1, 0)] {
            wire(&sides[from], &sides[to], Arc::clone(&loss), ChaCha8Rng::from_rng(&mut seeds));
        }
        let (client, server) =
            tokio::join!(sides[0].handshake(AgentRole::Connector), sides[1].handshake(AgentRole::Listener));
        for (side, quic) in sides.iter().zip([&client, &server]) {
            side.talk(quic.connection.clone()).await;
        }
        Self { sides, loss, connections: vec![client, server] }
    }

    fn lose(&self, thousandths: u32) {
        self.loss.store(thousandths, Ordering::Relaxed);
    }

    fn longest_gap(&self, from: Instant) -> Duration {
        assert!(self.connections.iter().all(|quic| quic.connection.close_reason().is_none()));
        self.sides.iter().map(|side| side.longest_gap(from)).max().unwrap()
    }
}

fn wire(from: &Side, to: &Side, loss: Arc<AtomicU32>, mut random: ChaCha8Rng) {
    let (queue, tunnel) = (Arc::clone(&from.queue), Arc::clone(&to.tunnel));
    let (under_way, mut arriving) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let datagram = queue.next().await;
            if random.random_range(0..1000) >= loss.load(Ordering::Relaxed) {
                under_way.send((tokio::time::Instant::now() + DELAY, datagram)).unwrap();
            }
        }
    });
    tokio::spawn(async move {
        while let Some((due, datagram)) = arriving.recv().await {
            sleep_until(due).await;
            tunnel.deliver(datagram);
        }
    });
}

/// Both windows are full, both sides have data to send, and both probe timers have backed off.
#[tokio::test(start_paused = true)]
async fn data_flows_within_a_second_after_an_outage() {
    for seed in 0..4 {
        let world = World::new(seed).await;
        sleep(Duration::from_secs(1)).await;
        assert!(world.longest_gap(now() - Duration::from_millis(500)) < Duration::from_millis(200));
        world.lose(CUT);
        sleep(Duration::from_secs(30)).await;
        world.lose(0);
        let back = now();
        for side in &world.sides {
            let queue = Arc::clone(&side.queue);
            side.tunnel.set_outlet(Some(Outlet::Queue(queue, QueueFraming::Datagrams)));
        }
        sleep(Duration::from_secs(3)).await;
        let gap = world.longest_gap(back);
        assert!(gap < Duration::from_secs(1), "{gap:?} with seed {seed}");
    }
}

/// Nobody notices that the path is back.
#[tokio::test(start_paused = true)]
async fn data_flows_soon_after_an_outage_that_only_quic_sees() {
    for seed in 0..2 {
        let world = World::new(seed).await;
        sleep(Duration::from_secs(1)).await;
        world.lose(CUT);
        sleep(Duration::from_secs(40)).await;
        world.lose(0);
        let back = now();
        sleep(Duration::from_secs(5)).await;
        let gap = world.longest_gap(back);
        assert!(gap < Duration::from_millis(2500), "{gap:?} with seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn data_flows_under_heavy_loss_without_long_gaps() {
    let mut gaps = Vec::new();
    for seed in 0..4 {
        let world = World::new(seed).await;
        world.lose(300);
        let begin = now();
        sleep(Duration::from_secs(30)).await;
        gaps.push(world.longest_gap(begin));
    }
    gaps.sort();
    assert!(gaps.iter().all(|gap| *gap < Duration::from_secs(5)), "{gaps:?}");
}

fn observation(now: Instant) -> Observation {
    Observation {
        now,
        since_sent: Duration::ZERO,
        since_received: Duration::ZERO,
        eliciting: 0,
        in_flight: 0,
        is_new_path: false,
        round_trip: Duration::from_millis(50),
    }
}

/// Two sides that answered each other's acknowledgements would never stop.
#[test]
fn an_acknowledgement_is_waited_for_and_answered_by_none() {
    let (begin, mut watch) = (now(), Watch::default());
    let at = |millis: u64| {
        let silence = Duration::from_millis(millis);
        Observation { since_sent: silence, since_received: silence, ..observation(begin + silence) }
    };
    for millis in (0..5000).step_by(50) {
        // Only acknowledgements were sent.
        assert_eq!(watch.handle(Observation { in_flight: 40, ..at(millis) }), None);
    }
    assert!(watch.is_idle(&at(5000)));
    let waiting = |millis| Observation { eliciting: 1, in_flight: 100, ..at(millis) };
    let probes: Vec<u64> = (5000..15_000)
        .step_by(50)
        .filter(|millis| watch.handle(waiting(*millis)) == Some(Action::Probe))
        .collect();
    assert_eq!(probes, [5250, 5750, 6750, 8750, 10_750, 12_750, 14_750]);
    assert!(!watch.is_idle(&waiting(15_000)));
    let answered = Observation { since_received: Duration::ZERO, in_flight: 0, ..waiting(15_000) };
    assert_eq!(watch.handle(answered), None);
    assert!(watch.is_idle(&Observation { since_received: Duration::from_secs(1), ..answered }));
}

#[test]
fn acknowledgements_that_wait_are_let_through_once() {
    let (begin, mut watch) = (now(), Watch::default());
    let mut at = |sent: u64, received: u64| {
        watch.handle(Observation {
            since_sent: Duration::from_millis(sent),
            since_received: Duration::from_millis(received),
            ..observation(begin)
        })
    };
    assert_eq!(at(100, 10), None, "within the acknowledgement delay");
    assert_eq!(at(150, 60), Some(Action::Acknowledge));
    assert_eq!(at(200, 110), None, "once");
    assert_eq!(at(0, 160), None);
    assert_eq!(at(90, 30), Some(Action::Acknowledge), "of later datagrams");
}

#[test]
fn a_new_path_is_probed_at_once() {
    let mut watch = Watch::default();
    let seen = Observation { is_new_path: true, ..observation(now()) };
    assert_eq!(watch.handle(seen), Some(Action::Probe));
    assert_eq!(watch.handle(Observation { is_new_path: false, ..seen }), None);
}
