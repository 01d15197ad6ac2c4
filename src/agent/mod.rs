//! The peer.

mod candidate;
mod identity;
mod lanes;
mod nat;
mod probe;
mod reason;
mod session;
mod tcp_leg;
mod ticket;
