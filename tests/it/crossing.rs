//! Clients of one server that talk with each other, and belong to different workers.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::house::{House, Lines};
use crate::turn_client::TurnClient;

const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// So many that they never are all one worker's.
const PAIRS: usize = 50;
/// What each client of a pair sends, and how much of it is under way.
const PACKETS: usize = 500;
const UNDER_WAY: usize = 10;
const CHANNEL: u16 = 0x4001;
const END: Duration = Duration::from_secs(10);

/// What says which pair it is of, so that nobody takes another pair's for its own.
fn channel_data(pair: usize, number: usize) -> Vec<u8> {
    let payload = [pair, number].map(|value| (value as u64).to_be_bytes()).concat();
    [&CHANNEL.to_be_bytes()[..], &16_u16.to_be_bytes(), &payload].concat()
}

fn talk(pair: &[TurnClient; 2], which: usize) {
    for first in (0..PACKETS).step_by(UNDER_WAY) {
        let numbers = first..first + UNDER_WAY;
        for number in numbers.clone() {
            pair.iter().for_each(|client| client.tell(&channel_data(which, number)));
        }
        for client in pair {
            for number in numbers.clone() {
                assert_eq!(
                    client.hear(),
                    Some(channel_data(which, number)),
                    "packet {number} of pair {which}"
                );
            }
        }
    }
}

/// All clients at the same time, in no order.
fn clients_of_different_workers_lose_nothing_and_stay_inside(workers: &str) {
    let turn = format!(
        "allocations_per_user = {}\n[log]\nlevel = \"info,ginnel::dataplane::streams=debug\"",
        2 * PAIRS
    );
    let mut house = House::with(&[IpAddr::V4(HERE)], Lines { top: workers, turn: &turn });
    let address = house.address;
    std::thread::scope(|scope| {
        for number in 0..PAIRS {
            scope.spawn(move || {
                let (mut one, here) = TurnClient::allocate_and_name(HERE, address);
                let (mut other, there) = TurnClient::allocate_and_name(HERE, address);
                one.bind_channel(CHANNEL, there);
                other.bind_channel(CHANNEL, here);
                talk(&[one, other], number);
            });
        }
    });
    house.server.terminate();
    house.server.succeed(END);
    let handed_over = house.server.lines(|line| {
        let (_, count) = line.split_once("handed over to other workers packets=")?;
        Some(count.trim().parse::<usize>().unwrap())
    });
    // Pairs that live on different workers hand over all they say, the others nothing.
    let total: usize = handed_over.iter().sum();
    assert!(total > 0 && total.is_multiple_of(2 * PACKETS), "{handed_over:?}: {}", house.server.printed());
}

#[test]
fn a_hundred_clients_of_two_workers_lose_nothing_and_what_they_say_stays_inside() {
    clients_of_different_workers_lose_nothing_and_stay_inside("workers = 2");
}

#[test]
fn a_hundred_clients_of_four_workers_lose_nothing_and_what_they_say_stays_inside() {
    clients_of_different_workers_lose_nothing_and_stay_inside("workers = 4");
}
