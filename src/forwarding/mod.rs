//! TCP, UDP and Unix sockets over a connection of two agents; `docs/wire/forwarding.md` has the protocol.
//!
//! One side shares: [`sharing::serve`] runs for each connection that it accepts, and a [`policy::Policy`] decides what the other side may reach.
//! The other side forwards: local sockets whose connections and datagrams go through the current connection of a [`link::Link`].
//!
//! Each TCP or Unix connection is a stream of its own. A finished direction is finished at the other end, and a reset is a reset there. QUIC's
//! flow control is the back-pressure. An idle connection has no buffers. UDP flows are QUIC datagrams; those that do not fit go over the flow's
//! stream.
//!
//! | module | content | |
//! | --- | --- | --- |
//! | `wire` | headers of streams, replies, datagrams | pure |
//! | `policy` | what is shared | pure |
//! | `session` | one connection: opens streams, and delivers the datagrams of its flows | tokio |
//! | `link` | the current session of a connection that is re-established | tokio |
//! | `local_socket` | TCP and Unix sockets of this host | tokio |
//! | `copying` | the bytes of one connection | tokio |
//! | `flow` | one UDP flow | tokio |
//! | `sharing` | the side that shares | tokio |
//! | `listening` | local sockets of the side that forwards | tokio |
//! | `reverse` | listeners that the other side opens, and their connections | tokio |
//! | `socks` | the SOCKS 5 server | tokio |

pub(crate) mod copying;
pub(crate) mod flow;
pub(crate) mod link;
pub(crate) mod listening;
pub(crate) mod local_socket;
pub(crate) mod policy;
pub(crate) mod reverse;
pub(crate) mod session;
pub(crate) mod sharing;
pub(crate) mod socks;
pub(crate) mod wire;

/// Maximum number of connections of one session at a time, and of UDP flows.
pub(crate) const MAX_CONNECTIONS: usize = 1024;
/// See [`MAX_CONNECTIONS`].
pub(crate) const MAX_FLOWS: usize = 1024;
/// Streams that the other side may have open: those of all connections and flows, and some for queries and listeners.
const MAX_STREAMS: u32 = 2112;

#[cfg(test)]
mod tests;
