//! Every limit that a client can reach is counted, with its value.

use super::*;
use crate::limits::Rate;
use crate::limits::{Limit, Table};

/// Returns how often `limit` was reached in this process, and its value.
fn reached(limit: Limit) -> (u64, u64) {
    Table::of_process().get(limit)
}

#[test]
fn each_reached_limit_of_the_relay_is_counted_with_its_value() {
    let mut shared = shared(3, 50_000..=50_003);
    shared.quota = Arc::new(AllocationQuota::new(3, 5));
    shared.limits.permissions = 2;
    shared.limits.new_peers = Rate::with_burst_time(1, Duration::from_secs(2));
    shared.limits.allocation_bandwidth = Rate::bytes(2000);
    shared.limits.user_bandwidth = Rate::bytes(3000);
    let limits = [
        (Limit::AllocationsPerUser, 3),
        (Limit::MaxAllocations, 5),
        // Four ports on each of two addresses.
        (Limit::RelayPorts, 8),
        (Limit::PermissionsPerAllocation, 2),
        (Limit::NewPeersPerSecond, 1),
        (Limit::BandwidthPerAllocation, 2000),
        (Limit::BandwidthPerUser, 3000),
    ];
    let before = limits.map(|(limit, _)| reached(limit).0);
    let mut server = TestRelay::with(shared);
    let allocate =
        |server: &mut TestRelay, client, user| server.request(client, user, Method::ALLOCATE, udp).0;
    assert_eq!([1, 2, 3, 4].map(|client| allocate(&mut server, client, "alice")), [0, 0, 0, 486]);
    assert_eq!([5, 6].map(|client| allocate(&mut server, client, "bob")), [0, 508], "no port is free");
    let held = [(); 5].map(|()| server.shared.quota.acquire(&"carol".into()));
    assert!(held.iter().any(Result::is_err), "four of five allocations exist");
    assert_eq!(server.create_permission(1, PEER), 0);
    assert_eq!(server.create_permission(1, "8.8.4.4:1"), 0);
    assert_eq!(server.create_permission(1, "9.9.9.9:1"), 508);
    assert!(!(0..5).all(|port| server.send_from(1, &format!("8.8.8.8:{}", 6000 + port))));
    server.advance(10);
    assert_eq!(server.create_permission(2, PEER), 0);
    assert!(
        server.send_data(1, PEER, &[0; 1000]).is_some() && server.send_data(1, PEER, &[0; 1000]).is_none()
    );
    assert!(server.send_data(2, PEER, &[0; 1000]).is_none(), "the user's bandwidth is used up");
    for ((limit, value), before) in limits.into_iter().zip(before) {
        let (times, logged_value) = reached(limit);
        assert!(times > before, "{}", limit.name());
        assert_eq!(logged_value, value, "{}", limit.name());
    }
}
