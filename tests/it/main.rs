//! Integration tests: one binary, one module per capability.
//!
//! `lab` is the NAT laboratory (network namespaces; needs root), `test_server` starts a `ginnel serve`, `tools` finds foreign programs, and
//! `waiting` waits. A test that cannot run here prints one line and passes; in CI it fails.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and reads the clock and the environment of its run"
)]

mod admission;
mod agent_errors;
mod agent_limits;
mod agent_messages;
mod agent_reconnect;
mod agent_secrets;
mod architecture;
mod authority;
mod bulk;
mod classic_stun;
mod client_to_client;
mod connect_times;
mod dependencies;
mod doctor;
mod error_table;
mod examples;
mod files;
mod first_start;
mod forwarding;
mod fuzz_corpora;
mod gateway;
mod gateway_agents;
mod ice_world;
mod json_events;
mod judges;
mod keys;
mod lab;
mod limits;
mod load;
mod manual;
mod messaging;
mod metrics;
mod nat_kinds;
mod nat_matrix;
mod only_http;
mod outages;
mod paths;
mod ping;
mod pipes;
mod port_mapping;
mod proc;
mod proxies;
mod public_api;
mod punching;
mod raw_turn;
mod recording_proxy;
mod relay_families;
mod reverse_proxy;
mod routed_nats;
mod safety;
mod sessions;
mod several_servers;
mod short_codes;
mod signaling_client;
mod signaling_ports;
mod startup;
mod store;
mod test_server;
mod tools;
mod transfers;
mod transports;
mod turn_client;
mod waiting;
