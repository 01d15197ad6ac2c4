//! The peer.

fn main() {}
