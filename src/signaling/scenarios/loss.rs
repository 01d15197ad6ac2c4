//! A whole call between two plain clients over a network that loses, duplicates and reorders.

use super::*;
use rand::RngCore;
use std::collections::HashMap;

const STEP: Duration = Duration::from_millis(100);
const TICKS: usize = 600;

/// A plain client with one socket that retransmits unanswered requests and calls again after ten seconds.
#[derive(Default)]
struct Client {
    tag: Option<String>,
    wants: Option<String>,
    peer: Option<(Value, Value)>,
    status_requests: usize,
}

impl Client {
    /// Returns the request that the client sends at this tick.
    fn next_request(&self, tick: usize) -> Option<Value> {
        if !tick.is_multiple_of(5) {
            return None;
        }
        match (&self.tag, &self.wants, &self.peer) {
            (None, ..) => Some(json!({"t": 1, "mid": 1})),
            (Some(tag), Some(rtag), None) => {
                Some(json!({"t": 4, "mid": 2 + tick / 100, "params": {"tag": tag, "rtag": rtag}}))
            }
            (Some(tag), ..) if tick.is_multiple_of(50) => Some(json!({"t": 2, "tag": tag})),
            _ => None,
        }
    }

    fn handle(&mut self, message: &Value) -> Option<Value> {
        let address = |host: &str, port: &str, at: &Value| Some((at[host].clone(), at[port].clone()));
        let token = message.get("token").cloned();
        match message["t"].as_i64()? {
            -1 => self.tag = message["extra"]["tag"].as_str().map(str::to_owned),
            51 => {
                self.peer = address("host", "port", &message["params"]);
                return Some(json!({"t": -51, "mid": message["mid"], "token": token, "code": 200}));
            }
            52 => {
                self.peer = address("rhost", "rport", &message["extra"]);
                return Some(json!({"t": -52, "mid": message["mid"], "token": token}));
            }
            53 => {
                self.status_requests += 1;
                let extra = json!({"punching": true});
                return Some(
                    json!({"t": -53, "mid": message["mid"], "token": token, "code": 200, "extra": extra}),
                );
            }
            _ => {}
        }
        None
    }
}

#[test]
fn two_clients_connect_over_a_network_with_a_third_of_loss() {
    for seed in 0..40_u8 {
        let mut chance = ChaCha20Rng::from_seed([seed; 32]);
        let mut hubs = TestHubs::new(config());
        let names = ["192.0.2.10:1", "192.0.2.20:2"];
        let mut clients: HashMap<&str, Client> = names.map(|name| (name, Client::default())).into();
        let mut wire: Vec<(usize, &str, bool, Value)> = Vec::new();
        for tick in 0..TICKS {
            let callee = clients[names[1]].tag.clone();
            clients.get_mut(names[0]).unwrap().wants = callee;
            for name in names {
                wire.extend(clients[name].next_request(tick).map(|message| (tick, name, true, message)));
            }
            let (due, later) = wire.into_iter().partition(|entry| entry.0 <= tick);
            wire = later;
            for (_, name, to_server, message) in Vec::into_iter(due) {
                let draw = chance.next_u32() % 100;
                let copies = if draw < 33 { 0 } else { 1 + usize::from(draw > 90) };
                for _ in 0..copies {
                    if to_server {
                        hubs.send_udp(name, &message);
                    } else if let Some(answer) = clients.get_mut(name).unwrap().handle(&message) {
                        wire.push((tick + 1 + chance.next_u32() as usize % 3, name, true, answer));
                    }
                }
            }
            for name in names {
                for (_, message) in hubs.take_datagrams(name) {
                    wire.push((tick + 1 + chance.next_u32() as usize % 3, name, false, message));
                }
            }
            hubs.advance(STEP);
        }
        assert_eq!(hubs.cluster.clients(), 2, "seed {seed}: a repeated registration made a second tag");
        let (a, b) = (&clients[names[0]], &clients[names[1]]);
        assert_eq!(a.peer, Some((json!("192.0.2.20"), json!(2))), "seed {seed}");
        assert_eq!(b.peer, Some((json!("192.0.2.10"), json!(1))), "seed {seed}");
        assert!(a.status_requests > 0 && b.status_requests > 0, "seed {seed}");
    }
}
