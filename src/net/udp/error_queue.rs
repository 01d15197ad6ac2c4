//! A socket's error queue: ICMP errors about its datagrams (`IP_RECVERR`, ip(7)).

use nix::errno::Errno;
use nix::libc::{
    self, SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6, SO_EE_ORIGIN_LOCAL, in6_pktinfo, sock_extended_err,
};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, RawFd};

/// Errors taken at a time, so that a flood of them does not delay datagrams.
const TURN: usize = 64;
/// ICMP "destination unreachable", "fragmentation needed"; ICMPv6 "packet too big".
const FRAGMENTATION_NEEDED: (u8, u8) = (3, 4);
const PACKET_TOO_BIG: (u8, u8) = (2, 0);

/// An ICMP or ICMPv6 error about a datagram that we sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PeerError {
    /// The datagram's destination.
    pub peer: SocketAddr,
    /// Type, in the numbers of ICMP for an IPv4 peer and of ICMPv6 for an IPv6 peer.
    pub icmp_type: u8,
    /// Code.
    pub icmp_code: u8,
    /// The next hop's MTU in bytes (big-endian) for "fragmentation needed" and "packet too big"; otherwise 0
    /// (RFC 8656 section 18.13).
    pub data: [u8; 4],
}

/// Enables the error queue.
pub(super) fn turn_on(socket: &impl AsFd, is_ipv6: bool) -> io::Result<()> {
    match is_ipv6 {
        false => setsockopt(socket, sockopt::Ipv4RecvErr, &true)?,
        true => setsockopt(socket, sockopt::Ipv6RecvErr, &true)?,
    }
    Ok(())
}

/// Returns whether a send or receive may have failed because of an earlier ICMP error.
pub(super) fn may_be_of_a_peer(error: Errno) -> bool {
    // The errors of icmp(7) (`icmp_err_convert`, `icmpv6_err_convert`).
    use Errno::{EACCES, ECONNREFUSED, EHOSTDOWN, EHOSTUNREACH, EMSGSIZE};
    use Errno::{ENETUNREACH, ENONET, ENOPROTOOPT, EOPNOTSUPP, EPROTO};
    matches!(
        error,
        ECONNREFUSED
            | EHOSTUNREACH
            | ENETUNREACH
            | EMSGSIZE
            | EACCES
            | EHOSTDOWN
            | ENONET
            | ENOPROTOOPT
            | EOPNOTSUPP
            | EPROTO
    )
}

/// Takes errors from the queue; returns whether it is empty.
pub(super) fn drain(socket: RawFd, mut each: impl FnMut(PeerError)) -> bool {
    let mut controls =
        nix::cmsg_space!(in6_pktinfo, i32, i32, i32, [u8; size_of::<libc::sockaddr_in6>() + 16]);
    let mut last = None;
    for _ in 0..TURN {
        // Only the destination of the datagram matters.
        let mut contents = [0; 1];
        let mut slices = [IoSliceMut::new(&mut contents)];
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        match recvmsg::<SockaddrStorage>(socket, &mut slices, Some(&mut controls), flags) {
            Ok(message) => {
                let peer = message.address.as_ref().and_then(socket_address);
                let controls = message.cmsgs().into_iter().flatten();
                let error = controls.filter_map(|control| match control {
                    ControlMessageOwned::Ipv4RecvErr(error, _)
                    | ControlMessageOwned::Ipv6RecvErr(error, _) => Some(error),
                    _ => None,
                });
                let reported = peer.zip(error.last()).and_then(|(peer, error)| PeerError::of(peer, &error));
                // One datagram may appear twice, because its send was retried.
                let news = reported.filter(|reported| last != Some(*reported));
                last = reported;
                news.into_iter().for_each(&mut each);
            }
            Err(Errno::EINTR) => {}
            Err(_) => return true,
        }
    }
    false
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = || address.as_sockaddr_in().map(|v4| SocketAddrV4::from(*v4).into());
    v4().or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddrV6::from(*v6).into()))
}

impl PeerError {
    fn of(peer: SocketAddr, error: &sock_extended_err) -> Option<Self> {
        let too_big = if peer.is_ipv4() { FRAGMENTATION_NEEDED } else { PACKET_TOO_BIG };
        let (icmp_type, icmp_code) = match error.ee_origin {
            SO_EE_ORIGIN_ICMP | SO_EE_ORIGIN_ICMP6 => (error.ee_type, error.ee_code),
            // Our own link is too narrow; a router would report the next one.
            SO_EE_ORIGIN_LOCAL if error.ee_errno == Errno::EMSGSIZE as u32 => too_big,
            _ => return None,
        };
        let data = if (icmp_type, icmp_code) == too_big { error.ee_info.to_be_bytes() } else { [0; 4] };
        Some(Self { peer, icmp_type, icmp_code, data })
    }
}
