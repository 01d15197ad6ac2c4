//! Every limit that a client can reach is counted under its key.

use super::*;
use crate::limits::Rate;
use crate::limits::{Limit, Table};

/// How often `limit` was reached in this process, and the value that was told.
fn reached(limit: Limit) -> (u64, u64) {
    Table::of_process().get(limit)
}

#[test]
fn each_limit_of_the_relay_that_is_reached_is_counted_with_its_value() {
    let mut shared = shared(3, 50_000..=50_003);
    shared.quota = Arc::new(AllocationQuota::new(3, 5));
    shared.limits.permissions = 2;
    shared.limits.new_peers = Rate::with_burst_time(1, Duration::from_secs(2));
    shared.limits.allocation_bandwidth = Rate::bytes(2000);
    shared.limits.user_bandwidth = Rate::bytes(3000);
    let limits = [
        (Limit::AllocationsPerUser, 3),
        (Limit::MaxAllocations, 5),
        // Of two addresses.
        (Limit::RelayPorts, 8),
        (Limit::PermissionsPerAllocation, 2),
        (Limit::NewPeersPerSecond, 1),
        (Limit::BandwidthPerAllocation, 2000),
        (Limit::BandwidthPerUser, 3000),
    ];
    let before = limits.map(|(limit, _)| reached(limit).0);
    let mut world = World::with(shared);
    let ask = |world: &mut World, client, user| world.ask(client, user, Method::ALLOCATE, udp).0;
    assert_eq!([1, 2, 3, 4].map(|client| ask(&mut world, client, "alice")), [0, 0, 0, 486]);
    assert_eq!([5, 6].map(|client| ask(&mut world, client, "bob")), [0, 508], "no port is left");
    let held = [(); 5].map(|()| world.shared.quota.acquire(&"carol".into()));
    assert!(held.iter().any(Result::is_err), "four are held, and there may be five");
    assert_eq!(world.permit(1, PEER), 0);
    assert_eq!(world.permit(1, "8.8.4.4:1"), 0);
    assert_eq!(world.permit(1, "9.9.9.9:1"), 508);
    assert!(!(0..5).all(|port| world.indicate(1, &format!("8.8.8.8:{}", 6000 + port))));
    world.wait(10);
    assert_eq!(world.permit(2, PEER), 0);
    assert!(world.send_data(1, PEER, &[0; 1000]).is_some() && world.send_data(1, PEER, &[0; 1000]).is_none());
    assert!(world.send_data(2, PEER, &[0; 1000]).is_none(), "the rest of the user's");
    for ((limit, value), before) in limits.into_iter().zip(before) {
        let (times, told) = reached(limit);
        assert!(times > before, "{}", limit.name());
        assert_eq!(told, value, "{}", limit.name());
    }
}
