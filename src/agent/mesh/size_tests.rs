//! Meshes of several sizes: how fast the maps are complete, and what that costs.

use super::simulation::{World, seconds, world};

/// Nodes join through one, a tenth of them leaves and returns elsewhere, and the mesh is split for ten minutes; prints the times and the
/// traffic.
#[allow(clippy::print_stdout, reason = "the figures of a run")]
fn join_leave_and_split(count: usize) {
    let mut world = world(count, 1, seconds(20));
    world.under_way = if count > 100 { 15 } else { 0 };
    let joined = world.run_until(seconds(40), World::is_whole);
    assert!(joined.is_some(), "the map is complete everywhere within 60 s: {:?}", world.gaps());
    let of_joining: u64 = world.nodes.iter().map(|node| node.bytes).sum();
    world.nodes.iter_mut().for_each(|node| node.bytes = 0);
    world.run(seconds(120));
    let idle: u64 = world.nodes.iter().map(|node| node.bytes).sum();
    let links = world.links.len() * 2 / count;
    // A tenth leaves and comes back elsewhere.
    let leaving: Vec<_> = (1..count).step_by(10).collect();
    leaving.iter().for_each(|node| world.kill(*node));
    world.run(seconds(90));
    leaving.iter().for_each(|node| world.restart(*node));
    let returned = world.run_until(seconds(60), World::is_whole);
    assert!(returned.is_some(), "those that come back are known at their new addresses: {:?}", world.gaps());
    world.split(count / 2);
    world.run(seconds(600));
    assert!(!world.is_whole());
    world.heal();
    let healed = world.run_until(seconds(120), World::is_whole);
    println!(
        "{count} nodes: whole {:?} after the last has joined, {} bytes a node; idle {} B/s a node, {links} links a node; \
         a tenth returned: whole after {returned:?}; split of 600 s: whole after {healed:?}",
        joined.unwrap(),
        of_joining / count as u64,
        idle / 120 / count as u64,
    );
    assert!(healed.is_some(), "the halves are one mesh again within 120 s: {:?}", world.gaps());
}

#[test]
fn ten_nodes_join_leave_return_and_survive_a_split() {
    join_leave_and_split(10);
}

#[test]
fn a_hundred_nodes_join_leave_return_and_survive_a_split() {
    join_leave_and_split(100);
}

#[test]
#[ignore = "long: a thousand nodes join, leave, return and are split"]
fn long_mesh() {
    join_leave_and_split(1000);
}
