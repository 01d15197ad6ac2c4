//! The TTL or hop limit of a socket: what has to be said beside a datagram only where it differs.
//!
//! Relayed datagrams carry on the TTL that they came with, and on most networks that is the same number for a long time. Said beside
//! each datagram it costs the system a copy and a parse, so the socket takes the number over.

use rustix::net::sockopt::{ip_ttl, ipv6_unicast_hops, set_ip_ttl, set_ipv6_unicast_hops};
use std::io;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicU8, Ordering};

/// Datagrams with one TTL in a row, after which it becomes the socket's.
const PATIENCE: u8 = 64;
/// The least TTL that becomes the socket's: another thread's datagram may leave with it that was not to.
const LEAST: u8 = 32;

/// What one socket says when nothing is said beside a datagram. The threads that share a socket may overtake each other here, which
/// costs a datagram its exact TTL and nothing else.
#[derive(Debug)]
pub(super) struct HopLimit {
    is_ipv6: bool,
    /// The system's.
    default: u8,
    current: AtomicU8,
    /// What was said last, and how often in a row.
    candidate: AtomicU8,
    streak: AtomicU8,
}

impl HopLimit {
    /// Reads what a fresh socket has.
    pub(super) fn of(socket: &UdpSocket, is_ipv6: bool) -> io::Result<Self> {
        let default = match is_ipv6 {
            false => u8::try_from(ip_ttl(socket)?).ok(),
            true => Some(ipv6_unicast_hops(socket)?),
        };
        let default = default.unwrap_or(64);
        let [current, candidate, streak] = [default, 0, 0].map(AtomicU8::new);
        Ok(Self { is_ipv6, default, current, candidate, streak })
    }

    /// Returns what is to be said beside a datagram that is to leave with `wanted`, by default the system's.
    pub(super) fn to_set(&self, socket: &UdpSocket, wanted: Option<u8>) -> Option<u8> {
        let (ttl, relaxed) = (wanted.unwrap_or(self.default), Ordering::Relaxed);
        if ttl == self.current.load(relaxed) {
            if self.streak.load(relaxed) > 0 {
                self.streak.store(0, relaxed);
            }
            return None;
        }
        let streak = if ttl == self.candidate.load(relaxed) { self.streak.load(relaxed) + 1 } else { 0 };
        self.candidate.store(ttl, relaxed);
        self.streak.store(streak % PATIENCE, relaxed);
        if streak == PATIENCE && ttl >= LEAST && self.set(socket, ttl).is_ok() {
            self.current.store(ttl, relaxed);
            return None;
        }
        Some(ttl)
    }

    fn set(&self, socket: &UdpSocket, ttl: u8) -> io::Result<()> {
        match self.is_ipv6 {
            false => set_ip_ttl(socket, u32::from(ttl))?,
            true => set_ipv6_unicast_hops(socket, Some(ttl))?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_that_stays_becomes_the_sockets_and_another_is_said() {
        for (ip, is_ipv6) in [("127.0.0.1:0", false), ("[::1]:0", true)] {
            let socket = UdpSocket::bind(ip).unwrap();
            let hop_limit = HopLimit::of(&socket, is_ipv6).unwrap();
            let default = hop_limit.default;
            let said = |wanted| hop_limit.to_set(&socket, wanted);
            assert_eq!((said(None), said(Some(default))), (None, None));
            for _ in 0..PATIENCE {
                assert_eq!(said(Some(57)), Some(57));
            }
            assert_eq!(said(Some(57)), None);
            assert_eq!((said(None), said(Some(9)), said(Some(57))), (Some(default), Some(9), None));
            for _ in 0..3 * PATIENCE as usize {
                assert_eq!(said(Some(9)), Some(9), "too small to become the socket's");
            }
            // Alternating ones change nothing.
            for _ in 0..3 * PATIENCE as usize {
                assert_eq!((said(Some(40)), said(Some(41))), (Some(40), Some(41)));
            }
        }
    }
}
