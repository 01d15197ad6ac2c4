//! Memory of idle sessions.

use std::io::Write;
use std::time::Duration;

use serde_json::json;

use super::{CHEAP, Client, Messaging, PATIENCE};
use crate::waiting::wait_until_steady;
use crate::{metrics, tools};

/// What an idle session may cost.
const MOST_KIB: f64 = 4.0;

/// Opens sessions of which each has received everything; `is_authenticated` ones as devices. Returns them and what each costs.
fn open_sessions(messaging: &Messaging, count: usize, is_authenticated: bool) -> (Vec<Client>, f64) {
    let resident =
        || wait_until_steady(PATIENCE, Duration::from_millis(300), || messaging.server.resident_kib());
    let open = |first: usize, count: usize| -> Vec<Client> {
        let mut opened = Vec::new();
        for batch in (first..first + count).collect::<Vec<_>>().chunks(50) {
            let mut clients: Vec<_> = batch.iter().map(|_| messaging.connect()).collect();
            if is_authenticated {
                for (client, number) in clients.iter_mut().zip(batch) {
                    let body = json!({"version": "1.0", "id": format!("device-{number}"), "abilities": []});
                    client.send(101, "m", body.to_string().as_bytes());
                }
                clients.iter_mut().for_each(|client| assert!(client.frame().3.starts_with(b"{\"code\":100")));
            }
            opened.append(&mut clients);
        }
        opened
    };
    // What the process needs once does not count.
    let mut sessions = open(0, 200);
    let before = resident();
    sessions.append(&mut open(200, count));
    let after = resident();
    let open = metrics::value(messaging.server.address, "ginnel_messaging_connections");
    assert_eq!(open, sessions.len() as u64, "none is evicted");
    (sessions, after.saturating_sub(before) as f64 / count as f64)
}

fn start() -> Messaging {
    let rates = "registrations_per_network = { burst = 100000, per_second = 100000 }\n";
    // The first ones are silent until the last one is open.
    let idle = "[messaging.times]\nidle = 86400\n";
    let connections = "[limits]\nconnections_per_address = 100000\n";
    Messaging::start(&format!("[messaging.limits]\n{rates}{idle}{CHEAP}{connections}"))
}

#[test]
fn idle_sessions_cost_little_memory() {
    for is_authenticated in [false, true] {
        let messaging = start();
        let (mut sessions, each) = open_sessions(&messaging, 1000, is_authenticated);
        assert!(each <= MOST_KIB, "{each:.2} KiB, authenticated: {is_authenticated}");
        for client in &mut sessions {
            client.stream.write_all(&[0; 4]).unwrap();
            assert_eq!(client.read_exact(4), [0; 4], "it is served");
        }
    }
}

#[test]
#[ignore = "long: the memory of 15 000 idle sessions"]
fn long_messaging_sessions() {
    for is_authenticated in [false, true] {
        let messaging = start();
        let count = tools::switch("GINNEL_LONG_RUNS", 15_000);
        let (_sessions, each) = open_sessions(&messaging, count, is_authenticated);
        tools::print(&format!("{count} sessions, authenticated: {is_authenticated}: {each:.2} KiB each"));
        assert!(each <= MOST_KIB);
    }
}
