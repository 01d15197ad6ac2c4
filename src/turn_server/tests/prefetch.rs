//! Prefetching for a batch of packets.

use super::*;
use crate::turn_server::PREFETCH_BATCH;

#[test]
fn prefetching_requires_many_allocations_and_a_large_batch_and_changes_nothing() {
    let mut shared = shared(10_000, 50_000..=59_999);
    shared.quota = Arc::new(AllocationQuota::new(10_000, 10_000));
    let mut server = TestRelay::with(shared);
    let relayed: Vec<_> = (1..=3000).map(|client| server.allocate(client)).collect();
    assert!(server.relay.should_prefetch(PREFETCH_BATCH) && !server.relay.should_prefetch(1));
    assert!(!TestRelay::new().relay.should_prefetch(PREFETCH_BATCH));
    // Clients 1 and 2 send to each other, client 3 to a remote peer, client 4 to none.
    let inside = [relayed[1].to_string(), relayed[0].to_string()];
    assert_eq!((server.create_permission(1, &inside[0]), server.create_permission(2, &inside[1])), (0, 0));
    assert_eq!(
        (server.bind_channel(1, 0x4000, &inside[0]), server.bind_channel(2, 0x4000, &inside[1])),
        (0, 0)
    );
    assert_eq!(server.bind_channel(3, 0x4000, PEER), 0);
    let counters = server.relay.counters();
    server.relay.prefetch_clients((0..200).map(tuple));
    let relay = *server.sockets.iter().find(|(_, address)| **address == relayed[2]).unwrap().0;
    assert_eq!(server.relay.counters(), counters);
    assert!(!server.relay.has_output());
    assert!(server.send_from(1, &inside[0]) && server.send_from(3, PEER) && !server.send_from(4, PEER));
    assert!(server.receive_from_peer(relay, PEER).is_some());
}
