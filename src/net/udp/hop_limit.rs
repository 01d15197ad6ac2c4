//! The TTL or hop limit of a socket: a control message carries it only where it differs.
//!
//! Relayed datagrams keep the TTL that they arrived with (less one), and on most networks that is the same for a long time. A control message
//! with each datagram costs a copy and a parse, so a TTL that repeats becomes the socket option.

use rustix::net::sockopt::{ip_ttl, ipv6_unicast_hops, set_ip_ttl, set_ipv6_unicast_hops};
use std::io;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicU8, Ordering};

/// Datagrams in a row with one TTL, after which it becomes the socket option.
const STREAK: u8 = 64;
/// The least TTL that becomes the socket option: another thread's datagram may leave with it.
const MIN_TTL: u8 = 32;

/// The socket option and its candidate. Threads that share a socket may race here, which
/// costs one datagram its exact TTL.
#[derive(Debug)]
pub(super) struct HopLimit {
    is_ipv6: bool,
    /// The system default.
    default: u8,
    current: AtomicU8,
    /// The last TTL, and how often it came in a row.
    candidate: AtomicU8,
    streak: AtomicU8,
}

impl HopLimit {
    /// Reads the option of a new socket.
    pub(super) fn of(socket: &UdpSocket, is_ipv6: bool) -> io::Result<Self> {
        let default = match is_ipv6 {
            false => u8::try_from(ip_ttl(socket)?).ok(),
            true => Some(ipv6_unicast_hops(socket)?),
        };
        let default = default.unwrap_or(64);
        let [current, candidate, streak] = [default, 0, 0].map(AtomicU8::new);
        Ok(Self { is_ipv6, default, current, candidate, streak })
    }

    /// Returns the TTL to set by control message, if any, for a datagram that must leave with `wanted`, by default the system default.
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
        self.streak.store(streak % STREAK, relaxed);
        if streak == STREAK && ttl >= MIN_TTL && self.set(socket, ttl).is_ok() {
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
            let control = |wanted| hop_limit.to_set(&socket, wanted);
            assert_eq!((control(None), control(Some(default))), (None, None));
            for _ in 0..STREAK {
                assert_eq!(control(Some(57)), Some(57));
            }
            assert_eq!(control(Some(57)), None);
            assert_eq!((control(None), control(Some(9)), control(Some(57))), (Some(default), Some(9), None));
            for _ in 0..3 * STREAK as usize {
                assert_eq!(control(Some(9)), Some(9), "too small to become the socket's");
            }
            // Alternating TTLs change nothing.
            for _ in 0..3 * STREAK as usize {
                assert_eq!((control(Some(40)), control(Some(41))), (Some(40), Some(41)));
            }
        }
    }
}
