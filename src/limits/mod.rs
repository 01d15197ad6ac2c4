//! The machinery of all limits, and the table that counts how often each is reached.
//!
//! | what | type |
//! | --- | --- |
//! | rate limiter (GCRA): one, one that threads share, one for each of many keys | `RateLimiter`, `SharedRateLimiter`, `KeyedRateLimiter` |
//! | amounts that are held: in total and by each key, released on drop | `Quota`, `Permit` |
//! | network that several addresses are counted as; CIDR lists | [`NetworkPrefix`] |
//! | queue with a bound on items and on bytes | `queue` |
//! | waits between attempts, with jitter | `Backoff` |
//!
//! [`Limit::reached`] counts in a table of the process, so that a state machine needs no handle to count what it refuses. A task logs each
//! limit that is reached, at most once a minute, and [`to_prometheus`] writes the counts for `/metrics`. Other lines that can repeat pass a
//! [`Sampler`].

#[cfg(any(feature = "server", feature = "gateway-client"))]
mod backoff;
#[cfg(feature = "server")]
mod keyed_rate;
#[cfg(any(feature = "server", feature = "gateway-client"))]
mod prefix;
#[cfg(any(feature = "server", feature = "cli"))]
mod queue;
#[cfg(feature = "server")]
mod quota;
#[cfg(any(feature = "server", feature = "agent"))]
mod rate;
#[cfg(feature = "server")]
mod sampler;
#[cfg(feature = "server")]
mod service;
#[cfg(feature = "server")]
mod table;

#[cfg(any(feature = "server", feature = "gateway-client"))]
pub(crate) use backoff::Backoff;
#[cfg(any(feature = "server", feature = "gateway-client"))]
pub use prefix::NetworkPrefix;
#[cfg(feature = "server")]
pub use prefix::PrefixError;
#[cfg(any(feature = "server", feature = "cli"))]
pub(crate) use queue::{QueueBounds, QueueError, QueueReceiver, QueueSender, queue};
#[cfg(any(feature = "server", feature = "agent"))]
pub use rate::Rate;
#[cfg(any(feature = "server", feature = "agent"))]
pub(crate) use rate::{RateLimiter, SharedRateLimiter};
#[cfg(feature = "server")]
pub(crate) use {
    keyed_rate::KeyedRateLimiter,
    quota::{Exceeded, Permit, Quota},
    sampler::{Sampler, sampled},
    service::report,
    table::{Limit, Table, to_prometheus},
};
