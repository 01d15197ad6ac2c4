//! A node of the mesh under frames, link changes, Binding responses and time: nothing makes it panic, nobody without a signature gets into its
//! map, its timers advance, and the same inputs give the same actions.

use ginnel::internals::mesh;
use ginnel::internals::net::time;

/// Every two bytes choose an event and its operand; some take more.
pub(crate) fn run(data: &[u8]) {
    mesh::machine(time::now(), data);
}
