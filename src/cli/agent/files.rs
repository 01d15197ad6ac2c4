//! What `agent send` and `agent recv` share.

pub(super) mod error;
mod progress_bar;
pub(super) mod recv;
mod report;
pub(super) mod send;
mod state;
mod units;
