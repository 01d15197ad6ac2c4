//! What a stranger or a broken peer must not achieve.

pub(crate) mod abuse;
mod amplification;
mod connections;
mod coturn_bugs;
mod garbage;
mod logs;
mod own_addresses;
mod peers;
mod shutdown;
mod strangers;
mod users;
