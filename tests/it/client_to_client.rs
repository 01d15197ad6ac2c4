//! Relaying between clients of one server on different workers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::metrics;
use crate::test_server::{Lines, TestServer};
use crate::turn_client::BlockingTurnClient;

const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// So many that they never are all one worker's.
const PAIRS: usize = 50;
/// What each client of a pair sends, and how much of it is under way.
const PACKETS: usize = 500;
const UNDER_WAY: usize = 10;

/// Identifies the pair, so that a misdelivered message is noticed.
fn payload(pair: usize, number: usize) -> Vec<u8> {
    [pair, number].map(|value| (value as u64).to_be_bytes()).concat()
}

/// Each client sends to the other one's relayed address.
fn exchange(pair: &mut [(BlockingTurnClient, SocketAddr); 2], which: usize) {
    for first in (0..PACKETS).step_by(UNDER_WAY) {
        let numbers = first..first + UNDER_WAY;
        for number in numbers.clone() {
            pair.iter_mut().for_each(|(client, to)| client.send(*to, &payload(which, number)));
        }
        for (client, _) in &mut *pair {
            for number in numbers.clone() {
                let expected = Some(payload(which, number));
                assert_eq!(client.receive(), expected, "packet {number} of pair {which}");
            }
        }
    }
}

/// All clients at the same time, in no order.
fn clients_of_different_workers_lose_nothing_and_stay_inside(workers: &str) {
    let turn = format!("allocations_per_user = {}", 2 * PAIRS);
    let test_server = TestServer::with(&[IpAddr::V4(HERE)], Lines { top: workers, turn: &turn });
    let address = test_server.address;
    std::thread::scope(|scope| {
        for number in 0..PAIRS {
            scope.spawn(move || {
                let [mut one, mut other] = [(); 2].map(|()| BlockingTurnClient::allocate(HERE, address));
                let (here, there) = (one.relayed(), other.relayed());
                one.bind_channel(there).unwrap();
                other.bind_channel(here).unwrap();
                exchange(&mut [(one, there), (other, here)], number);
            });
        }
    });
    let handed_over = metrics::value(address, "ginnel_worker_handed_over_packets_total");
    // Pairs on different workers pass all their packets between workers, the others none.
    let of_pair = 2 * PACKETS as u64;
    assert!(handed_over > 0 && handed_over.is_multiple_of(of_pair), "{handed_over}");
}

#[test]
fn a_hundred_clients_of_two_workers_exchange_data_inside_the_server_without_loss() {
    clients_of_different_workers_lose_nothing_and_stay_inside("workers = 2");
}

#[test]
fn a_hundred_clients_of_four_workers_exchange_data_inside_the_server_without_loss() {
    clients_of_different_workers_lose_nothing_and_stay_inside("workers = 4");
}
