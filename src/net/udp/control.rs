//! Socket addresses and control messages in the system's layout.

use super::Route;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsFd;

/// Size of the largest `sockaddr`, that of IPv6.
const NAME: usize = size_of::<libc::sockaddr_in6>();
/// Size of a `cmsghdr`, and the alignment of control messages.
const HEAD: usize = size_of::<libc::cmsghdr>();
const ALIGNMENT: usize = align_of::<libc::cmsghdr>();
/// Size of all control messages that [`ask_for`] enables or a [`Route`] needs.
const ROOM: usize = room_for(size_of::<libc::in6_pktinfo>()) + 3 * room_for(size_of::<libc::c_int>());

const fn room_for(value: usize) -> usize {
    (HEAD + value).next_multiple_of(ALIGNMENT)
}

/// A socket address in the system's layout.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(8))]
pub(super) struct Name {
    bytes: [u8; NAME],
    len: u8,
}

impl Name {
    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    pub(super) fn set_len(&mut self, len: usize) {
        self.len = len.min(NAME) as u8;
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Reads the address; `None` for one that is neither IPv4 nor IPv6.
    pub(super) fn socket_address(&self) -> Option<SocketAddr> {
        let bytes = self.as_bytes();
        let family = i32::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let port = u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]);
        match family {
            libc::AF_INET => {
                let ip: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
                Some(SocketAddr::from((ip, port)))
            }
            libc::AF_INET6 => {
                let ip: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
                let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
                Some(SocketAddrV6::new(ip.into(), port, word(4)?, word(24)?).into())
            }
            _ => None,
        }
    }
}

impl From<SocketAddr> for Name {
    fn from(address: SocketAddr) -> Self {
        let mut bytes = [0; NAME];
        let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        bytes[..2].copy_from_slice(&(family as u16).to_ne_bytes());
        bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        let len = match address {
            SocketAddr::V4(v4) => {
                bytes[4..8].copy_from_slice(&v4.ip().octets());
                size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(v6) => {
                bytes[4..8].copy_from_slice(&v6.flowinfo().to_ne_bytes());
                bytes[8..24].copy_from_slice(&v6.ip().octets());
                bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                NAME
            }
        };
        Self { bytes, len: len as u8 }
    }
}

/// A sequence of control messages.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Controls {
    bytes: [u8; ROOM],
    len: u8,
}

impl Default for Controls {
    fn default() -> Self {
        Self { bytes: [0; ROOM], len: 0 }
    }
}

impl Controls {
    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    pub(super) fn set_len(&mut self, len: usize) {
        self.len = len.min(ROOM) as u8;
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Appends one; there is room for one of each kind.
    fn add(&mut self, (level, kind): (i32, i32), value: &[u8]) {
        let (at, len) = (usize::from(self.len), HEAD + value.len());
        let Some(place) = self.bytes.get_mut(at..at + room_for(value.len())) else { return };
        let (head, rest) = place.split_at_mut(HEAD);
        // `cmsghdr`: length as a `size_t`, level, type.
        let size = size_of::<usize>();
        head[..size].copy_from_slice(&len.to_ne_bytes());
        head[size..size + 4].copy_from_slice(&level.to_ne_bytes());
        head[size + 4..size + 8].copy_from_slice(&kind.to_ne_bytes());
        rest[..value.len()].copy_from_slice(value);
        self.len += room_for(value.len()) as u8;
    }

    /// Iterates over level, type and value.
    fn iter(&self) -> impl Iterator<Item = ((i32, i32), &[u8])> {
        let mut rest = self.as_bytes();
        std::iter::from_fn(move || {
            let size = size_of::<usize>();
            let len = usize::from_ne_bytes(*rest.first_chunk()?);
            let word = |at: usize| Some(i32::from_ne_bytes(rest.get(at..at + 4)?.try_into().ok()?));
            let kind = (word(size)?, word(size + 4)?);
            let value = rest.get(HEAD..len)?;
            rest = rest.get(len.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
            Some((kind, value))
        })
    }

    /// Writes the fields of `route` except the destination.
    ///
    /// # Errors
    /// `InvalidInput` for a source of another family than the destination.
    pub(super) fn of(route: &Route) -> io::Result<Self> {
        let mut controls = Self::default();
        let is_ipv4 = route.to.is_ipv4();
        match route.source {
            None => {}
            Some(IpAddr::V4(source)) if is_ipv4 => {
                // `in_pktinfo`: interface, source, and a field of received datagrams.
                let mut info = [0; size_of::<libc::in_pktinfo>()];
                info[4..8].copy_from_slice(&source.octets());
                controls.add((libc::IPPROTO_IP, libc::IP_PKTINFO), &info);
            }
            Some(IpAddr::V6(source)) if !is_ipv4 => {
                // `in6_pktinfo`: source, interface.
                let mut info = [0; size_of::<libc::in6_pktinfo>()];
                info[..16].copy_from_slice(&source.octets());
                controls.add((libc::IPPROTO_IPV6, libc::IPV6_PKTINFO), &info);
            }
            Some(_) => return Err(io::ErrorKind::InvalidInput.into()),
        }
        if let Some(ttl) = route.ttl {
            controls.add(if is_ipv4 { V4_TTL } else { V6_HOP_LIMIT }, &i32::from(ttl).to_ne_bytes());
        }
        if route.tos != 0 {
            controls.add(if is_ipv4 { V4_TOS } else { V6_CLASS }, &i32::from(route.tos).to_ne_bytes());
        }
        Ok(controls)
    }

    /// Marks the message as a run of datagrams of `size` bytes (UDP_SEGMENT).
    pub(super) fn segmented(mut self, size: u16) -> Self {
        self.add((libc::SOL_UDP, libc::UDP_SEGMENT), &size.to_ne_bytes());
        self
    }
}

const V4_TTL: (i32, i32) = (libc::IPPROTO_IP, libc::IP_TTL);
const V4_TOS: (i32, i32) = (libc::IPPROTO_IP, libc::IP_TOS);
const V6_HOP_LIMIT: (i32, i32) = (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT);
const V6_CLASS: (i32, i32) = (libc::IPPROTO_IPV6, libc::IPV6_TCLASS);

/// Enables the control messages of an [`RxMeta`].
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

/// The control messages of one received buffer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RxMeta {
    pub(super) local_ip: Option<IpAddr>,
    pub(super) ttl: u8,
    pub(super) tos: u8,
    /// Size of each datagram of a GRO run except the last, which may be shorter.
    pub(super) stride: Option<usize>,
}

impl RxMeta {
    pub(super) fn of(controls: &Controls) -> Self {
        let mut arrival = Self::default();
        for (kind, value) in controls.iter() {
            let number = || value.first_chunk().map(|value| i32::from_ne_bytes(*value));
            let octet = || number().and_then(|number| u8::try_from(number).ok()).unwrap_or_default();
            match kind {
                V4_TTL | V6_HOP_LIMIT => arrival.ttl = octet(),
                V4_TOS => arrival.tos = value.first().copied().unwrap_or_default(),
                V6_CLASS => arrival.tos = octet(),
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    arrival.stride = number().and_then(|size| usize::try_from(size).ok());
                }
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let ip = value.get(8..12).and_then(|ip| <[u8; 4]>::try_from(ip).ok());
                    arrival.local_ip = ip.map(|ip| Ipv4Addr::from(ip).into());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    arrival.local_ip = value.first_chunk::<16>().map(|ip| Ipv6Addr::from(*ip).into());
                }
                _ => {}
            }
        }
        arrival
    }
}
