//! Clients of one server that talk with each other, and belong to different workers.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Mutex;
use std::time::Duration;

use ginnel::stun::{Builder, Class, Method, TransactionId, attr};

use crate::house::{House, Lines};
use crate::turn_client::TurnClient;

const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// So many that they never are all one worker's.
const PAIRS: usize = 24;
/// What each client of a pair sends, and how much of it is under way.
const PACKETS: usize = 2000;
const UNDER_WAY: usize = 20;
const CHANNEL: u16 = 0x4001;
/// How often a connectivity check is sent.
const CHECKS: usize = 7;
const END: Duration = Duration::from_secs(10);

fn channel_data(number: usize) -> Vec<u8> {
    [&CHANNEL.to_be_bytes()[..], &8_u16.to_be_bytes(), &(number as u64).to_be_bytes()].concat()
}

/// An ICE connectivity check.
fn check(receiver: &str, sender: &str) -> Vec<u8> {
    let name = format!("{receiver}:{sender}");
    let check = Builder::new(Class::Request, Method::BINDING, TransactionId::new([7; 12]))
        .attribute(attr::USERNAME, name.as_bytes())
        .finish();
    [&CHANNEL.to_be_bytes()[..], &(check.len() as u16).to_be_bytes(), &check].concat()
}

/// Sends a check until the other client has heard it, as ICE agents do: the server can tell who is named once that one has said who
/// it is, and which of two datagrams a server of several workers deals with first is open.
fn check_until_heard(sender: &TurnClient, receiver: &TurnClient, check: &[u8]) {
    for _ in 0..CHECKS {
        sender.tell(check);
        if std::iter::from_fn(|| receiver.hear()).any(|heard| heard == check) {
            return;
        }
    }
    panic!("the check was not heard");
}

/// Has both say whom they mean.
fn say_who_is_meant([one, other]: &[TurnClient; 2], pair: usize) {
    let (here, there) = (format!("here{pair}"), format!("there{pair}"));
    one.tell(&check(&there, &here));
    check_until_heard(other, one, &check(&here, &there));
    check_until_heard(one, other, &check(&there, &here));
}

fn hear_data(client: &TurnClient) -> Option<Vec<u8>> {
    let is_check = |heard: &Vec<u8>| heard.len() > channel_data(0).len();
    std::iter::from_fn(|| client.hear()).find(|heard| !is_check(heard))
}

fn talk(pair: &[TurnClient; 2]) {
    for first in (0..PACKETS).step_by(UNDER_WAY) {
        let numbers = first..first + UNDER_WAY;
        for number in numbers.clone() {
            pair.iter().for_each(|client| client.tell(&channel_data(number)));
        }
        for client in pair {
            for number in numbers.clone() {
                assert_eq!(hear_data(client), Some(channel_data(number)), "packet {number}");
            }
        }
    }
}

/// How pairs come together.
#[derive(Clone, Copy, PartialEq)]
enum Pairs {
    /// One after the other.
    InTurn,
    /// All at the same time, with connectivity checks.
    AtOnce,
}

fn clients_of_different_workers_lose_nothing_and_stay_inside(workers: &str, pairs: Pairs) {
    let turn = format!("allocations_per_user = {}", 2 * PAIRS);
    let mut house = House::with(&[IpAddr::V4(HERE)], Lines { top: workers, turn: &turn });
    let (address, turns) = (house.address, Mutex::new(()));
    std::thread::scope(|scope| {
        for number in 0..PAIRS {
            let turns = &turns;
            scope.spawn(move || {
                let turn = (pairs == Pairs::InTurn).then(|| turns.lock());
                let (mut one, here) = TurnClient::allocate_and_name(HERE, address);
                let (mut other, there) = TurnClient::allocate_and_name(HERE, address);
                one.bind_channel(CHANNEL, there);
                other.bind_channel(CHANNEL, here);
                drop(turn);
                let pair = [one, other];
                if pairs == Pairs::AtOnce {
                    say_who_is_meant(&pair, number);
                }
                talk(&pair);
            });
        }
    });
    house.server.terminate();
    house.server.succeed(END);
    let handed_over = house.server.lines(|line| {
        let (_, count) = line.split_once("handed over to other workers packets=")?;
        Some(count.trim().parse::<usize>().unwrap())
    });
    let total: usize = handed_over.iter().sum();
    // Pairs that live on different workers hand over all they say, the others nothing.
    let (crossing, checks) = (total / (2 * PACKETS), total % (2 * PACKETS));
    let most_checks = PAIRS * (1 + 2 * CHECKS);
    assert!(crossing > 0 && checks <= most_checks, "{handed_over:?}: {}", house.server.printed());
    assert!(pairs == Pairs::AtOnce || checks == 0, "{handed_over:?}");
}

#[test]
fn clients_of_two_workers_lose_nothing_and_what_they_say_stays_inside() {
    clients_of_different_workers_lose_nothing_and_stay_inside("workers = 2", Pairs::InTurn);
}

#[test]
fn clients_of_four_workers_lose_nothing_and_what_they_say_stays_inside() {
    clients_of_different_workers_lose_nothing_and_stay_inside("workers = 4", Pairs::InTurn);
}

#[test]
fn clients_that_come_all_at_once_find_each_other_by_their_connectivity_checks() {
    clients_of_different_workers_lose_nothing_and_stay_inside("workers = 2", Pairs::AtOnce);
}
