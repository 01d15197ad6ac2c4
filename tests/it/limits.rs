//! A reached limit logs one line and is counted every time.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::metrics;
use crate::test_server::{Lines, TestServer};
use crate::turn_client::{BlockingTurnClient, config, response_code};

const SOON: Duration = Duration::from_secs(20);

/// The number of times a limit was reached, by the metrics.
fn times(server: SocketAddr, limit: &str) -> u64 {
    metrics::value(server, &format!("ginnel_limit_reached_total{{limit=\"{limit}\"}}"))
}

fn client(server: SocketAddr) -> BlockingTurnClient {
    BlockingTurnClient::new(config(), Ipv4Addr::LOCALHOST, server)
}

#[test]
fn refusals_above_128_allocations_of_a_user_log_one_line_and_are_counted() {
    let test_server = TestServer::on_loopback("relay_ports = \"40000-41023\"");
    let mut clients: Vec<_> = (0..130).map(|_| client(test_server.address)).collect();
    let codes: Vec<_> = clients.iter_mut().map(|client| response_code(client.try_allocate())).collect();
    assert_eq!((&codes[..128], &codes[128..]), (&[0; 128][..], &[486; 2][..]));
    let line = test_server.process.expect("line about the limit", SOON, |line| {
        line.contains("turn.allocations_per_user").then(|| line.to_owned())
    });
    assert!(line.contains("WARN") && line.contains("value=128"), "{line}");
    // More where an answer was late, and the request was sent again.
    assert!(times(test_server.address, "turn.allocations_per_user") >= 2);
    assert_eq!(times(test_server.address, "turn.max_allocations"), 0);
}

#[test]
fn limits_are_counted_without_a_gateway() {
    let lines = Lines { turn: "max_allocations = 0\n[gateway]\nenabled = false", ..Lines::default() };
    let test_server = TestServer::with(&[Ipv4Addr::LOCALHOST.into()], lines);
    let before = times(test_server.address, "turn.max_allocations");
    assert_eq!(response_code(client(test_server.address).try_allocate()), 508);
    test_server
        .process
        .expect("line about the limit", SOON, |line| line.contains("turn.max_allocations").then_some(()));
    assert!(times(test_server.address, "turn.max_allocations") > before);
}
