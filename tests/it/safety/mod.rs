//! Attacks and failures that must not affect others.

pub(crate) mod abuse;
mod amplification;
mod connections;
mod coturn_bugs;
mod garbage;
mod logs;
mod own_addresses;
mod peers;
mod shutdown;
pub(crate) mod unauthenticated;
mod users;
