//! `agent doctor`: which paths the network of this host allows, and what would mend it.
//!
//! [`diagnose`] runs all probes at the same time, each with its own limit, and gives [`Observations`]. [`Diagnosis`] draws the conclusions from
//! them; [`sections`] gives what is shown, as text and as JSON from one value.
//!
//! | file | content | |
//! | --- | --- | --- |
//! | `observations.rs`, `http_answer.rs` | what probes have seen | pure |
//! | `nat_behavior.rs` | mapping and filtering in the terms of RFC 4787 | pure |
//! | `verdict.rs`, `remedies.rs` | the conclusion, and what would mend it | pure |
//! | `sections.rs` | text and JSON | pure |
//! | `pair.rs` | the path that two hosts can expect | pure |
//! | `probes.rs` | runs all probes | tokio |
//! | `server_probe.rs`, `turn_probe.rs` | one server by each transport | tokio |
//! | `nat_probe.rs`, `stun_socket.rs` | NAT behaviour discovery (RFC 5780) | tokio |
//! | `lifetime_probe.rs` | how long a mapping of UDP lives | tokio |

mod http_answer;
mod lifetime_probe;
mod nat_behavior;
mod nat_probe;
mod observations;
mod pair;
mod probes;
mod remedies;
mod sections;
mod server_probe;
mod stun_socket;
mod turn_probe;
mod verdict;

pub(super) use observations::{PortMappingObservations, PortMappingSupport};
pub(crate) use pair::NetworkDescription;
pub(crate) use probes::{describe, diagnose};
pub(crate) use sections::{PairObservations, Section, pair_section, sections};
pub(crate) use verdict::Diagnosis;
