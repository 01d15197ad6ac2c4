//! Looking ahead for a batch.

use super::*;
use crate::turn_server::PREFETCH_BATCH;

#[test]
fn looking_ahead_is_for_large_relays_and_large_batches_and_changes_nothing() {
    let mut shared = shared(10_000, 50_000..=59_999);
    shared.quota = Arc::new(AllocationQuota::new(10_000, 10_000));
    let mut world = World::with(shared);
    let relayed: Vec<_> = (1..=3000).map(|client| world.allocate(client)).collect();
    assert!(world.relay.should_prefetch(PREFETCH_BATCH) && !world.relay.should_prefetch(1));
    assert!(!World::new().relay.should_prefetch(PREFETCH_BATCH));
    // Two who talk with each other, one who talks with somebody outside, one who talks with nobody.
    let inside = [relayed[1].to_string(), relayed[0].to_string()];
    assert_eq!((world.permit(1, &inside[0]), world.permit(2, &inside[1])), (0, 0));
    assert_eq!((world.bind(1, 0x4000, &inside[0]), world.bind(2, 0x4000, &inside[1])), (0, 0));
    assert_eq!(world.bind(3, 0x4000, PEER), 0);
    let counters = world.relay.counters();
    world.relay.prefetch_clients((0..200).map(tuple));
    let relay = *world.sockets.iter().find(|(_, address)| **address == relayed[2]).unwrap().0;
    assert_eq!(world.relay.counters(), counters);
    assert!(!world.relay.has_output());
    assert!(world.indicate(1, &inside[0]) && world.indicate(3, PEER) && !world.indicate(4, PEER));
    assert!(world.receive_from_peer(relay, PEER).is_some());
}
