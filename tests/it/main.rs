//! Integration tests: one binary, a module per capability.
//!
//! `lab` is the NAT laboratory (network namespaces; needs root), `house` a server on loopback, `tools` says which
//! foreign programs are there. A test that cannot run here says so in one line and passes; in CI it fails.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and reads the clock and the environment of its run"
)]

mod admission;
mod agent_messages;
mod agent_secrets;
mod agent_stays;
mod architecture;
mod authority;
mod bulk;
mod classic_stun;
mod crossing;
mod document000;
mod examples;
mod front_door;
mod fuzz_corpora;
mod gateway;
mod gateway_agents;
mod house;
mod judges;
mod keys;
mod lab;
mod limits;
mod load;
mod nat_kinds;
mod outages;
mod paths;
mod pipes;
mod proc;
mod punching;
mod reverse_proxy;
mod safety;
mod signaler;
mod starting;
mod tap;
mod tools;
mod transports;
mod turn_client;
mod waiting;
