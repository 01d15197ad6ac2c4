//! The mesh: nodes that find each other and exchange messages without a server.
//!
//! A node knows the others by a map of signed records, keeps links to a few of them, and reaches the rest over these. Any node that is online
//! can be joined through. `docs/wire/mesh.md` has the formats.
//!
//! | file | content |
//! | --- | --- |
//! | `node_id.rs`, `keys.rs`, `mesh_time.rs`, `reader.rs` | addresses, keys, time, parsing |
//! | `record.rs`, `certificate.rs` | the signed record of a node; friendships that both have signed |
//! | `map.rs`, `digest.rs`, `map_file.rs` | the map of nodes, its comparison with another map, its file |
//! | `frame.rs`, `sealed.rs` | frames of a link; what is sealed for one node |
//! | `member.rs`, `membership.rs` | who is online: SWIM, and what of its packets is believed |
//! | `machine.rs`, `output.rs` | the state machine: inputs and timers; actions, events, counters |
//! | `exchange.rs` | comparison of maps, and news |
//! | `links.rs`, `connecting.rs`, `reflexive.rs` | links and routing; how links come about; the own endpoints and NAT |
//! | `messages.rs`, `friends.rs` | messages with confirmations; mail that friends keep |
//!
//! # Driving it
//!
//! `Mesh` does no I/O. The service passes frames, link changes, Binding messages and timeouts with the time, then drains `poll_action` and
//! `poll_event`, and schedules `handle_timeout` for `poll_timeout`. A link is a connection of the agent whose other side has proven that it
//! holds the key of its address; frames are sent on streams or, where they may be lost, as datagrams.
//!
//! # The library's interface
//!
//! The service will offer `Mesh::join(config)`, `is_online(address)` with the answers yes, no and unknown, `send(address, body)` with the
//! confirmations *stored* and *delivered*, `inbox()`, `peers()` and a stream of events (S3-18, S3-19).

#[cfg(test)]
mod attack_tests;
mod certificate;
mod connecting;
mod digest;
mod exchange;
mod frame;
mod friends;
#[cfg(all(feature = "server", feature = "load"))]
pub(crate) mod fuzzing;
mod keys;
mod links;
mod machine;
mod map;
mod map_file;
#[cfg(test)]
mod map_tests;
mod member;
mod membership;
mod mesh_time;
mod messages;
mod node_id;
mod output;
mod reader;
mod record;
mod reflexive;
#[cfg(test)]
mod scenario_tests;
mod sealed;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod size_tests;
