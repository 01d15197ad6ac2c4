//! The gateway: virtual connections between clients on the public side and servers on the inner side, each of which holds one TCP
//! connection to it. The wire is the seven-command version of fastway's (document 002, S2-1 … S2-28); `docs/wire/gateway.md`
//! describes it, with what we add: command 7 (credit) for servers of the HMAC door, command 8 (ticket) for clients.
//!
//! | file | holds |
//! | --- | --- |
//! | [`wire`] | frames and commands |
//! | [`handshake`] | how servers prove that they hold the key |
//! | [`ticket`] | how clients prove that they were let in, where that is asked of them |
//! | [`client`] | the library: dial, accept, send and receive |

pub mod client;
pub mod handshake;
pub mod ticket;
pub mod wire;
