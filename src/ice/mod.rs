//! ICE without I/O: one component, full agent, trickle
//! ([RFC 8445](https://www.rfc-editor.org/rfc/rfc8445), [RFC 8838](https://www.rfc-editor.org/rfc/rfc8838)).
//!
//! [`IceAgent`] gets local and remote candidates, checks their pairs, and selects the one on which data is sent. It keeps what has failed and
//! tries it again, so that a path that becomes possible later is used, and a dead one is left within a second:
//!
//! - **Checks** are single Binding requests, each with its own transaction id, at growing intervals. A round without a response makes the pair
//!   fail; it is checked again after 1, 2, 4 … 60 s, and at once after a [network event](IceAgent::handle_network_change).
//! - **Selection** prefers pairs without a relay, then shorter round trips: a change must gain 20 % and at least 10 ms. Data is sent on the first
//!   pair that has answered; the peer needs not have nominated it.
//! - **Nomination** can be repeated. Between agents with the option `renomination` it has a number
//!   ([draft-thatcher-ice-renomination](https://datatracker.ietf.org/doc/html/draft-thatcher-ice-renomination)); otherwise the last USE-CANDIDATE
//!   wins.
//! - **Consent** ([RFC 7675](https://www.rfc-editor.org/rfc/rfc7675)) is asked for every 5 s ± 20 % and expires after 30 s. Silence after data or
//!   a check moves the data to the next pair much earlier; see [`IceAgent::handle_data_sent`].
//! - **Restart**: the old pair carries data until a pair of the new generation answers.
//!
//! The caller owns the sockets. A local address identifies one of them: the base of a host candidate, or the relayed address of an allocation. It
//! passes STUN messages from peers to [`IceAgent::handle_message`], sends what [`IceAgent::poll_transmit`] returns, takes events from
//! [`IceAgent::poll_event`], and calls [`IceAgent::handle_timeout`] at [`IceAgent::poll_timeout`].
//!
//! TCP candidates are optional. [`IceEvent::Connect`] says which connection to open; messages on connections go to
//! [`IceAgent::handle_tcp_message`].
//!
//! | file | content |
//! | --- | --- |
//! | `candidate.rs`, `credentials.rs`, `sdp.rs` | candidates, user name fragment and password; offers and answers (RFC 8839) |
//! | `binding.rs` | the messages of a check |
//! | `pair.rs`, `check_list.rs`, `generation.rs` | a candidate pair and its timers; the pairs between two restarts |
//! | `machine.rs` | [`IceAgent`]: inputs, timers, pacing |
//! | `requests.rs`, `responses.rs` | checks of the peer, responses to own ones |
//! | `selection.rs` | which pair carries data, and which is nominated |
//! | `provisional.rs` | data on a relayed pair before the first answer |
//! | `tcp.rs` | TCP connections (RFC 6544) |
//! | `control.rs` | messages of the agent beside the checks |
//! | `probe_budget.rs` | how much is sent to addresses that have not answered |
//! | `counters.rs` | how often each limit was reached |
//!
//! | limit | value | counter ([`IceCounters`]) |
//! | --- | --- | --- |
//! | local candidates | 64 | `refused_local_candidates` |
//! | candidates of the peer | 16 of a kind | `excess_remote_candidates` |
//! | pairs | 256 | `excess_pairs` |
//! | checks to an IP address that has not answered | 20 a second, 100 at once | `postponed_checks` |
//! | checks to all such addresses | 50 a second, 400 at once | `postponed_checks` |
//! | responses to such an address | in the rate of its checks | `dropped_responses` |
//! | datagrams before the first answer | 16 on each of two pairs, as checks | |
//! | messages and events that wait for the caller | 512 and 1024 | `dropped_messages`, `dropped_events` |

mod binding;
mod candidate;
mod check_list;
mod control;
mod counters;
mod credentials;
mod generation;
mod machine;
#[cfg(test)]
mod machine_tests;
mod pair;
mod probe_budget;
mod provisional;
mod requests;
mod responses;
mod sdp;
mod selection;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod simulation_tcp;
mod tcp;
#[cfg(test)]
mod tcp_tests;

pub use candidate::{Candidate, CandidateError, CandidateKind, CandidateTransport};
pub use counters::IceCounters;
pub use credentials::{IceCredentials, IceCredentialsError};
pub use machine::{IceAgent, IceConfig, IceEvent, IceInput, IceRole, IceState, IceTransmit, SelectedPair};
pub use sdp::{SdpError, SessionDescription};
