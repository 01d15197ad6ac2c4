//! Control messages: what the system tells beside a received datagram, and is told beside one to send.

use super::Route;
use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, RecvMsg, SockaddrStorage, setsockopt, sockopt};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsFd;

/// How one received buffer arrived.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Arrival {
    pub(super) from: Option<SocketAddr>,
    pub(super) local_ip: Option<IpAddr>,
    pub(super) ttl: u8,
    pub(super) tos: u8,
    /// Bytes in the buffer, and bytes of each of its datagrams; the last may be shorter.
    pub(super) len: usize,
    pub(super) stride: usize,
}

/// Turns on what an [`Arrival`] tells.
pub(super) fn ask_for(socket: &impl AsFd, address: SocketAddr) -> io::Result<()> {
    let any = address.ip().is_unspecified();
    if address.is_ipv6() {
        setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &any)?;
        setsockopt(socket, sockopt::Ipv6RecvHopLimit, &true)?;
        setsockopt(socket, sockopt::Ipv6RecvTClass, &true)?;
    } else {
        setsockopt(socket, sockopt::Ipv4PacketInfo, &any)?;
        setsockopt(socket, sockopt::Ipv4RecvTtl, &true)?;
        setsockopt(socket, sockopt::IpRecvTos, &true)?;
    }
    if let Err(error) = setsockopt(socket, sockopt::UdpGroSegment, &true) {
        tracing::debug!(%error, "no GRO");
    }
    Ok(())
}

/// Makes room for all that [`ask_for`] asks for.
pub(super) fn room() -> Vec<u8> {
    nix::cmsg_space!(in6_pktinfo, i32, i32, i32)
}

impl Arrival {
    pub(super) fn of(message: &RecvMsg<'_, '_, SockaddrStorage>, local_ip: Option<IpAddr>) -> Self {
        let mut arrival = Self {
            local_ip,
            from: message.address.as_ref().and_then(socket_address),
            len: message.bytes,
            stride: message.bytes,
            ..Self::default()
        };
        for control in message.cmsgs().into_iter().flatten() {
            match control {
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    arrival.local_ip = Some(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes()).into());
                }
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    arrival.local_ip = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
                }
                ControlMessageOwned::Ipv4Ttl(ttl) | ControlMessageOwned::Ipv6HopLimit(ttl) => {
                    arrival.ttl = u8::try_from(ttl).unwrap_or(0);
                }
                ControlMessageOwned::Ipv4Tos(tos) => arrival.tos = tos,
                ControlMessageOwned::Ipv6TClass(tos) => arrival.tos = u8::try_from(tos).unwrap_or(0),
                ControlMessageOwned::UdpGroSegments(size) => {
                    arrival.stride = usize::try_from(size).unwrap_or(message.bytes);
                }
                _ => {}
            }
        }
        arrival
    }
}

/// Calls `send` with the control messages that `route`, and a run of datagrams of `segment` bytes, need.
pub(super) fn with_departure<T>(
    route: &Route,
    segment: Option<u16>,
    send: impl FnOnce(&[ControlMessage<'_>]) -> io::Result<T>,
) -> io::Result<T> {
    let (ttl, tos) = (route.ttl.map(i32::from), route.tos);
    let wide_tos = i32::from(tos);
    let (mut v4, mut v6) = (ANY_V4, ANY_V6);
    // A slot that is not filled is not sent.
    let mut controls = [ControlMessage::Ipv4Tos(&tos); 4];
    let mut count = 0;
    let mut add = |control| {
        controls[count] = control;
        count += 1;
    };
    match (route.to, route.source) {
        (_, None) => {}
        (SocketAddr::V4(_), Some(IpAddr::V4(source))) => {
            v4.ipi_spec_dst.s_addr = u32::from_ne_bytes(source.octets());
            add(ControlMessage::Ipv4PacketInfo(&v4));
        }
        (SocketAddr::V6(_), Some(IpAddr::V6(source))) => {
            v6.ipi6_addr.s6_addr = source.octets();
            add(ControlMessage::Ipv6PacketInfo(&v6));
        }
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    }
    match (route.to, &ttl) {
        (_, None) => {}
        (SocketAddr::V4(_), Some(ttl)) => add(ControlMessage::Ipv4Ttl(ttl)),
        (SocketAddr::V6(_), Some(ttl)) => add(ControlMessage::Ipv6HopLimit(ttl)),
    }
    match (route.to, tos) {
        (_, 0) => {}
        (SocketAddr::V4(_), _) => add(ControlMessage::Ipv4Tos(&tos)),
        (SocketAddr::V6(_), _) => add(ControlMessage::Ipv6TClass(&wide_tos)),
    }
    if let Some(segment) = &segment {
        add(ControlMessage::UdpGsoSegments(segment));
    }
    send(&controls[..count])
}

const ANY_V4: in_pktinfo =
    in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: in_addr { s_addr: 0 }, ipi_addr: in_addr { s_addr: 0 } };
const ANY_V6: in6_pktinfo = in6_pktinfo { ipi6_addr: in6_addr { s6_addr: [0; 16] }, ipi6_ifindex: 0 };

pub(super) fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = || address.as_sockaddr_in().map(|v4| SocketAddrV4::from(*v4).into());
    v4().or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddrV6::from(*v6).into()))
}
