//! What a stranger or a broken peer must not achieve.

mod garbage;
mod peers;
mod shutdown;
