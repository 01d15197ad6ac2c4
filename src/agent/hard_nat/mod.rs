//! Direct paths through NATs that map each destination to another port: port prediction, and a bounded spray of probes.
//!
//! The *hard* side has such a NAT, the *easy* side has none or one with a single mapping. The easy side's address is known; the hard side's
//! port towards it is not. So the hard side opens several sockets, has its NAT map each of them to the easy side, and tells it where the ports
//! may be; the easy side probes these ports from its usual socket. A probe that meets a mapping is an ordinary check of ICE: it makes a
//! peer-reflexive pair, and is used only after it was answered in both directions.
//!
//! Where the ports may be follows from the mappings that the server reports to eight fresh sockets (`prediction.rs`):
//!
//! - they are a sequence: the next ones are predicted;
//! - they are in one block of at most 4096 ports, as carriers assign them (RFC 7422): only that block is probed;
//! - they are random: 256 sockets and 1024 probes meet with 98 %.
//!
//! Two hard sides never spray: the probability is the product of both. Where the mappings of both are sequences, both predict (`mutual.rs`).
//!
//! **Agreement.** The two sides agree over the relayed pair that carries the session, in Binding indications that have the attribute
//! [`ATTRIBUTE`](crate::ice::CONTROL) and are authenticated as checks are. So a spray starts only after a path exists, the server can
//! neither start nor direct it, agents without this module ignore the messages, and candidates of both sides are known by then. Offer and
//! answer would come before it is known whether plain ICE succeeds; a stream of QUIC would need the tunnel to wait for the application.
//!
//! **Limits.** `limits.rs` lists them. A peer can have only one address probed: that of its own server-reflexive candidate, never a
//! private one or the server's.
//!
//! | file | content |
//! | --- | --- |
//! | `wire.rs` | the messages |
//! | `prediction.rs` | where the next mappings may be |
//! | `limits.rs` | the limits, and what this process has sprayed |
//! | `sampling.rs` | the requests to the server from fresh sockets |
//! | `machine.rs` | the state machine of both sides |
//! | `opening.rs`, `probing.rs` | what the hard and the easy side send |
//! | `mutual.rs` | what two hard sides send |

pub(super) mod limits;
mod machine;
mod mutual;
#[cfg(test)]
mod mutual_simulation;
mod opening;
mod prediction;
mod probing;
mod sampling;
#[cfg(test)]
mod simulation;
mod wire;

pub(super) use machine::{HardNat, HardNatConfig, HardNatOutput, ProbeSource, SprayStatus};
pub(super) use prediction::PredictedPorts;
#[cfg(feature = "cli")]
pub(super) use prediction::{Prediction, SAMPLES};
pub(super) use wire::SprayMessage;
