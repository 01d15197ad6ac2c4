//! Well-behaved endpoints among others that do not read, disconnect or vanish: each message is echoed once and in order, and no state remains.

use std::time::Duration;

use bytes::Bytes;
use ginnel::gateway::client::{ClientBuilder, Endpoint, Key, Raw, ServerBuilder, Settings};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use tokio::task::JoinSet;

use super::endpoint::{CLOSE, DIAL, NEW, OPEN, command, data};
use super::{Gateway, KEY};
use crate::safety::abuse::{MOST_ROUNDS, settled};

const SERVERS: [u32; 2] = [1, 2];
const WORKERS: u64 = 6;
const ROUNDS: u32 = 16;
/// The time limit of a well-behaved connection.
const LONG: Duration = Duration::from_secs(60);

/// Echoes messages; each connection has its own task.
async fn echo(server: Endpoint<Raw>) {
    while let Ok(mut connection) = server.accept().await {
        tokio::spawn(async move {
            while let Ok(Some(message)) = connection.receive().await {
                if connection.send(message).await.is_err() {
                    return;
                }
            }
        });
    }
}

fn message(rng: &mut ChaCha20Rng, number: u32) -> Bytes {
    let len = match rng.random_range(0..10) {
        0 => 0,
        1 => rng.random_range(20_000..100_000),
        _ => rng.random_range(4..2000),
    };
    let mut message = vec![u8::try_from(number % 251).unwrap(); len];
    message.iter_mut().zip(number.to_le_bytes()).for_each(|(to, from)| *to = from);
    message.into()
}

/// Sends and receives at the same time until everything was echoed.
async fn well_behaved(client: &Endpoint<Raw>, remote: u32, mut rng: ChaCha20Rng) {
    let connection = client.dial(remote).await.unwrap();
    let (mut sender, mut receiver) = connection.into_split();
    let messages: Vec<_> = (0..rng.random_range(1..80)).map(|number| message(&mut rng, number)).collect();
    let sent = messages.clone();
    let sending = async {
        for message in sent {
            sender.send(message).await.unwrap();
        }
    };
    let receiving = async {
        for (number, message) in messages.iter().enumerate() {
            let received = receiver.receive().await.unwrap();
            assert!(received.as_ref() == Some(message), "{number} of {}", messages.len());
        }
    };
    tokio::time::timeout(LONG, async { tokio::join!(sending, receiving) }).await.unwrap();
}

/// Sends without reading until it is closed or has sent everything.
async fn non_reading(client: &Endpoint<Raw>, remote: u32, mut rng: ChaCha20Rng) {
    let Ok(mut connection) = client.dial(remote).await else { return };
    for number in 0..400 {
        let sending = connection.send(message(&mut rng, number));
        if !matches!(tokio::time::timeout(Duration::from_millis(200), sending).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// A client on a plain socket that disconnects in the middle of a frame.
fn vanishing(gateway: std::net::SocketAddr, mut rng: ChaCha20Rng) {
    let mut client = super::endpoint::Endpoint::connect(gateway);
    client.send(&command(NEW, &[]));
    let opened = client.receive();
    assert_eq!(opened[8], OPEN);
    let conn = u32::from_le_bytes(opened[9..].try_into().unwrap());
    client.send(&command(DIAL, &[conn, SERVERS[rng.random_range(0..2)]]));
    let part = rng.random_range(0..5000);
    client.send(&[data(conn, b"never read"), data(conn, &[0; 5000])[..part].to_vec()].concat());
    if rng.random() {
        client.send(&command(CLOSE, &[conn])[..rng.random_range(1..13)]);
    }
}

async fn worker(gateway: std::net::SocketAddr, seed: u64) {
    let settings = Settings { reconnect: None, ..Settings::default() };
    let dialling = ClientBuilder::new(gateway.to_string()).settings(settings);
    for round in 0..ROUNDS {
        let rng = move |number: u64| ChaCha20Rng::seed_from_u64(seed << 32 | u64::from(round) << 8 | number);
        let (client, other) = (dialling.connect().await.unwrap(), dialling.connect().await.unwrap());
        let mut tasks = JoinSet::new();
        for number in 0..5_u64 {
            let (client, other) = (client.clone(), other.clone());
            tasks.spawn(async move {
                let remote = SERVERS[usize::try_from(number % 2).unwrap()];
                match number {
                    0..3 => well_behaved(&client, remote, rng(number)).await,
                    // A connection that is not read blocks its own endpoint; the well-behaved ones have another.
                    _ => non_reading(&other, remote, rng(number)).await,
                }
            });
        }
        tasks.spawn_blocking(move || vanishing(gateway, rng(99)));
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_echoed_once_and_in_order_beside_misbehaving_endpoints() {
    let gateway = Gateway::start("[gateway.times]\npause = 1.0");
    let key = || Key::new(KEY).unwrap();
    let (md5, hmac) = (gateway.md5.to_string(), gateway.hmac.to_string());
    for server in [ServerBuilder::md5(md5, SERVERS[0], key()), ServerBuilder::hmac(hmac, SERVERS[1], key())] {
        tokio::spawn(echo(server.connect().await.unwrap()));
    }
    let mut workers = JoinSet::new();
    for seed in 0..WORKERS {
        workers.spawn(worker(gateway.clients(), seed));
    }
    while let Some(done) = workers.join_next().await {
        done.unwrap();
    }
    tokio::task::spawn_blocking(move || {
        // The two servers stay; nothing of any client does.
        gateway.wait_for_metric("clients", 0.0);
        for gauge in ["virtual_connections", "opened_ids", "waiting_bytes"] {
            gateway.wait_for_metric(gauge, 0.0);
        }
        assert_eq!(gateway.metric("servers"), 2.0, "no server was dropped");
    })
    .await
    .unwrap();
}

/// Many endpoints of each misbehaving kind; all are closed at the end.
fn misbehaving_endpoints(gateway: &Gateway) {
    let clients = || super::endpoint::Endpoint::client(gateway);
    let mut gone = Vec::new();
    for number in 0..40_u8 {
        let id = 100 + u32::from(number);
        let mut malformed = clients();
        malformed.send(&command(255, &[]));
        let mut violating = clients();
        violating.send(&(0..100).flat_map(|id| data(id + 1, &[number; 100])).collect::<Vec<_>>());
        let wrong =
            super::endpoint::Endpoint::authenticating(gateway, id, "a key that is none of the gateway's");
        gone.extend([malformed, violating, wrong]);
        let mut hoarder = clients();
        hoarder.send(&command(NEW, &[]).repeat(200));
        // An endpoint that never reads, with full queues, a partial frame and virtual connections to both sides.
        let mut server = super::endpoint::Endpoint::narrow_server(gateway, id);
        let mut client = clients();
        let conns = [client.dial(id), client.dial(id)];
        for conn in conns {
            client.send(&data(conn, &[number; 100_000]));
        }
        client.send(&data(conns[0], &[number; 100_000])[..50_000]);
        server.send(&data(conns[1], &[number; 300]));
        let _unproven = super::endpoint::Endpoint::connect(gateway.hmac);
    }
    for mut endpoint in gone {
        endpoint.read_to_end();
    }
}

#[test]
fn misbehaving_endpoints_do_not_make_memory_grow() {
    let gateway = Gateway::start("");
    let mut sizes = Vec::new();
    while !settled(&sizes) && sizes.len() < MOST_ROUNDS {
        misbehaving_endpoints(&gateway);
        gateway.assert_becomes_empty();
        sizes.push(gateway.test_server.resident_kib());
    }
    eprintln!("{sizes:?} KiB after each round");
    assert!(settled(&sizes), "{sizes:?} KiB");
}
