//! What every limit does when it is reached: it is counted, and a sampled line names its key. Counting needs no clock and no handle, so
//! that pure machines do it where they refuse.
//!
//! [`Limit`] is the one table of limits. [`Limit::reached`] counts; [`Report`] decides which lines are due; `report` writes them once
//! a second; [`to_prometheus`] gives the counts to `/metrics`. The counts are of the process, as its logs are.
//! How long whoever was refused or cut off waits before it comes again is `Backoff`'s.
//! Other lines that can repeat pass a [`Sampler`], mostly by way of `sampled!`.

#[cfg(any(feature = "server", feature = "gateway-client"))]
mod backoff;
#[cfg(feature = "server")]
mod keyed_rate;
#[cfg(feature = "server")]
mod prefix;
#[cfg(any(feature = "server", feature = "cli"))]
mod queue;
#[cfg(feature = "server")]
mod quota;
#[cfg(feature = "server")]
mod rate;
#[cfg(feature = "server")]
mod sampler;
#[cfg(feature = "server")]
mod service;
#[cfg(feature = "server")]
mod table;

#[cfg(any(feature = "server", feature = "gateway-client"))]
pub(crate) use backoff::Backoff;
#[cfg(feature = "server")]
pub(crate) use keyed_rate::KeyedRateLimiter;
#[cfg(feature = "server")]
pub use prefix::{NetworkPrefix, PrefixError};
#[cfg(any(feature = "server", feature = "cli"))]
pub(crate) use queue::{QueueBounds, QueueError, QueueReceiver, QueueSender, queue};
#[cfg(feature = "server")]
pub(crate) use quota::{Exceeded, Permit, Quota};
#[cfg(feature = "server")]
pub use rate::Rate;
#[cfg(feature = "server")]
pub(crate) use rate::{RateLimiter, SharedRateLimiter};
#[cfg(feature = "server")]
pub use sampler::Sampler;
#[cfg(feature = "server")]
pub(crate) use sampler::sampled;
#[cfg(feature = "server")]
pub(crate) use service::report;
#[cfg(feature = "server")]
pub use table::{Limit, Table, to_prometheus};
