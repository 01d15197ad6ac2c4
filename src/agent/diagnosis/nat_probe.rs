//! NAT behaviour discovery ([RFC 5780 section 4](https://www.rfc-editor.org/rfc/rfc5780#section-4)), with as little as one address of the server.
//!
//! Each test has sockets of its own: what one has sent would let in what another must not get.

use super::nat_behavior::NatObservations;
use super::stun_socket::{CHANGE_IP, CHANGE_PORT, StunOptions, StunSocket, answer, request};
use crate::agent::hard_nat::SAMPLES;
use crate::net::time;
use futures_util::future::join_all;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long an answer may take that a filter may drop, beyond two round trips.
const FILTER_TIME: Duration = Duration::from_millis(450);
/// How often the packets of the hairpin test are sent, and the time in between.
const HAIRPINS: usize = 4;
const HAIRPIN_INTERVAL: Duration = Duration::from_millis(120);
/// How long the server's signalling may take to name the second port.
const SECOND_PORT_TIME: Duration = Duration::from_millis(300);

/// Runs all tests with the first of these servers that answers; another one is another address.
pub(super) async fn observe(
    servers: Vec<SocketAddr>,
    second_port: watch::Receiver<Option<u16>>,
    deadline: Instant,
) -> NatObservations {
    let Some(server) = first_to_answer(&servers, deadline).await else { return NatObservations::default() };
    let further =
        servers.into_iter().find(|other| other.ip() != server.ip() && other.is_ipv4() == server.is_ipv4());
    let (mapping, filtering, hairpin) = tokio::join!(
        mappings(server, further, second_port, deadline),
        filtering(server, deadline),
        hairpin(server, deadline)
    );
    let (from_other_port, from_other_address) = filtering;
    NatObservations { from_other_port, from_other_address, hairpin, ..mapping }
}

/// Returns the server that answers first, by IPv4 if any does.
async fn first_to_answer(servers: &[SocketAddr], deadline: Instant) -> Option<SocketAddr> {
    for is_v4 in [true, false] {
        let mut attempts = JoinSet::new();
        for server in servers.iter().copied().filter(|server| server.is_ipv4() == is_v4) {
            let Some(socket) = StunSocket::bind(server) else { continue };
            attempts.spawn(async move {
                let answer = socket.ask(server, StunOptions::default(), deadline).await;
                answer.and_then(|answer| answer.mapped).map(|_| server)
            });
        }
        while let Some(attempt) = attempts.join_next().await {
            if let Ok(Some(server)) = attempt {
                return Some(server);
            }
        }
    }
    None
}

/// The mappings of one socket to the server's ports and to another address; where they differ, those of fresh sockets too.
async fn mappings(
    server: SocketAddr,
    further: Option<SocketAddr>,
    mut second_port: watch::Receiver<Option<u16>>,
    deadline: Instant,
) -> NatObservations {
    let mut seen = NatObservations::default();
    let Some(socket) = StunSocket::bind(server) else { return seen };
    let plain = StunOptions::default();
    let Some(first) = socket.ask(server, plain, deadline).await else { return seen };
    (seen.local, seen.first) = (Some(socket.local()), first.mapped);
    let patience = deadline.min(time::runtime() + FILTER_TIME + 2 * first.round_trip);
    let second = match first.other {
        Some(other) => SocketAddr::new(server.ip(), other.port()),
        None => {
            let named = second_port.wait_for(Option::is_some);
            let named = tokio::time::timeout(SECOND_PORT_TIME, named).await;
            let port = named.ok().and_then(Result::ok).and_then(|port| *port);
            SocketAddr::new(server.ip(), port.unwrap_or_else(|| server.port().saturating_add(1)))
        }
    };
    let patience = patience.max(deadline.min(time::runtime() + FILTER_TIME + 2 * first.round_trip));
    seen.second_port = socket.ask(second, plain, patience).await.and_then(|answer| answer.mapped);
    let other = first.other.map(|other| SocketAddr::new(other.ip(), server.port())).or(further);
    if let Some(other) = other.filter(|other| other.ip() != server.ip()) {
        let patience = deadline.min(time::runtime() + FILTER_TIME + 2 * first.round_trip);
        seen.other_address = socket.ask(other, plain, patience).await.and_then(|answer| answer.mapped);
    }
    let changes =
        [seen.second_port, seen.other_address].into_iter().flatten().any(|other| Some(other) != seen.first);
    if changes {
        seen.samples =
            samples(server, deadline.min(time::runtime() + FILTER_TIME + 2 * first.round_trip)).await;
    }
    seen
}

/// The mappings of sockets that are opened one after the other.
async fn samples(server: SocketAddr, deadline: Instant) -> Vec<SocketAddr> {
    let sockets: Vec<StunSocket> = (0..SAMPLES).filter_map(|_| StunSocket::bind(server)).collect();
    // Each sends its first request when it is polled first, which is in this order.
    let answers =
        join_all(sockets.iter().map(|socket| socket.ask(server, StunOptions::default(), deadline))).await;
    answers.into_iter().flatten().filter_map(|answer| answer.mapped).collect()
}

/// Whether answers from the server's other port and from its other address pass, `None` where it cannot send one.
async fn filtering(server: SocketAddr, deadline: Instant) -> (Option<bool>, Option<bool>) {
    let plain = StunOptions::default();
    let Some(socket) = StunSocket::bind(server) else { return (None, None) };
    let Some(first) = socket.ask(server, plain, deadline).await else { return (None, None) };
    let mut passed = [None, None];
    for (index, change) in [(1, CHANGE_IP | CHANGE_PORT), (0, CHANGE_PORT)] {
        if change & CHANGE_IP != 0 && first.other.is_none() {
            continue;
        }
        let patience = time::runtime() + FILTER_TIME + 2 * first.round_trip;
        if patience > deadline {
            break;
        }
        let options = StunOptions { change, ..plain };
        passed[index] = match socket.ask(server, options, patience).await {
            Some(answer) => answer.mapped.map(|_| true),
            None => Some(false),
        };
        if passed[index] == Some(true) {
            break;
        }
    }
    (passed[0], passed[1])
}

/// Whether two sockets reach each other by their mapped addresses; both send, so that a filter lets them in.
async fn hairpin(server: SocketAddr, deadline: Instant) -> Option<bool> {
    let sockets = [StunSocket::bind(server)?, StunSocket::bind(server)?];
    let plain = StunOptions::default();
    let (first, second) =
        tokio::join!(sockets[0].ask(server, plain, deadline), sockets[1].ask(server, plain, deadline));
    let mapped = [first?.mapped?, second?.mapped?];
    let id: [u8; 12] = rand::random();
    let packet = request(id, plain);
    for _ in 0..HAIRPINS {
        sockets[0].send(mapped[1], &packet);
        sockets[1].send(mapped[0], &packet);
        let until = deadline.min(time::runtime() + HAIRPIN_INTERVAL);
        let (first, second) = tokio::join!(sockets[0].receive(until), sockets[1].receive(until));
        if [first, second]
            .into_iter()
            .flatten()
            .any(|(bytes, _)| bytes == packet && answer(&bytes, id).is_none())
        {
            return Some(true);
        }
    }
    Some(false)
}
