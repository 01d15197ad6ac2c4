//! What a router reads and rewrites of an IP packet: addresses, ports, hop limit. Checksums change incrementally (RFC 1624).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

/// The protocols with ports, and the ICMP errors about them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Protocol {
    Udp,
    Tcp,
    /// An ICMPv4 error; the packet inside begins 8 bytes behind the ICMP header.
    IcmpError,
    Other,
}

/// The fields of a packet that decide about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) protocol: Protocol,
    /// Port 0 where the protocol has none.
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    /// Where the transport header begins.
    transport: usize,
}

/// Which end of a packet an address belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Source,
    Destination,
}

const UDP: u8 = 17;
const TCP: u8 = 6;
const ICMP: u8 = 1;
/// Destination unreachable and time exceeded.
const ICMP_ERRORS: [u8; 2] = [3, 11];
const ICMP_HEADER: usize = 8;

/// Reads the header of an IPv4 or IPv6 packet; `None` for fragments behind the first, truncated packets and foreign ones.
pub(crate) fn parse(packet: &[u8]) -> Option<Header> {
    match packet.first()? >> 4 {
        4 => parse_v4(packet),
        6 => parse_v6(packet),
        _ => None,
    }
}

fn parse_v4(packet: &[u8]) -> Option<Header> {
    let transport = usize::from(packet[0] & 15) * 4;
    let fixed = packet.get(..20)?;
    let is_later_fragment = u16::from_be_bytes([fixed[6], fixed[7]]) & 0x1fff != 0;
    if is_later_fragment || transport < 20 || packet.len() < transport + ICMP_HEADER {
        return None;
    }
    let address =
        |at: usize| IpAddr::V4(Ipv4Addr::new(fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]));
    let protocol = match fixed[9] {
        UDP => Protocol::Udp,
        TCP if packet.len() >= transport + 20 => Protocol::Tcp,
        ICMP if ICMP_ERRORS.contains(&packet[transport]) => Protocol::IcmpError,
        _ => Protocol::Other,
    };
    Some(with_ports(packet, protocol, [address(12), address(16)], transport))
}

fn parse_v6(packet: &[u8]) -> Option<Header> {
    let transport = 40;
    if packet.len() < transport + ICMP_HEADER {
        return None;
    }
    let address = |at: usize| {
        let bytes: [u8; 16] = packet[at..at + 16].try_into().ok()?;
        Some(IpAddr::V6(Ipv6Addr::from(bytes)))
    };
    let protocol = match packet[6] {
        UDP => Protocol::Udp,
        TCP if packet.len() >= transport + 20 => Protocol::Tcp,
        _ => Protocol::Other,
    };
    Some(with_ports(packet, protocol, [address(8)?, address(24)?], transport))
}

fn with_ports(packet: &[u8], protocol: Protocol, [from, to]: [IpAddr; 2], transport: usize) -> Header {
    let port = |at: usize| match protocol {
        Protocol::Udp | Protocol::Tcp => {
            u16::from_be_bytes([packet[transport + at], packet[transport + at + 1]])
        }
        Protocol::IcmpError | Protocol::Other => 0,
    };
    let (source, destination) = (SocketAddr::new(from, port(0)), SocketAddr::new(to, port(2)));
    Header { protocol, source, destination, transport }
}

/// Writes another address into one end of an IPv4 packet of UDP or TCP.
pub(crate) fn rewrite(packet: &mut [u8], header: &Header, end: End, address: SocketAddrV4) {
    let (ip_at, port_at) = match end {
        End::Source => (12, header.transport),
        End::Destination => (16, header.transport + 2),
    };
    let old = [&packet[ip_at..ip_at + 4], &packet[port_at..port_at + 2]].concat();
    let new = [&address.ip().octets()[..], &address.port().to_be_bytes()].concat();
    update_checksum(packet, 10, &old[..4], &new[..4]);
    let sum_at = header.transport + if header.protocol == Protocol::Udp { 6 } else { 16 };
    // A UDP checksum of zero means that there is none.
    if header.protocol == Protocol::Tcp || packet[sum_at..sum_at + 2] != [0, 0] {
        update_checksum(packet, sum_at, &old, &new);
    }
    packet[ip_at..ip_at + 4].copy_from_slice(&new[..4]);
    packet[port_at..port_at + 2].copy_from_slice(&new[4..]);
}

/// Reads the header of the packet that an ICMP error is about.
pub(crate) fn parse_quoted(packet: &[u8], header: &Header) -> Option<Header> {
    if header.protocol != Protocol::IcmpError {
        return None;
    }
    let quoted = packet.get(header.transport + ICMP_HEADER..)?;
    let length = usize::from(quoted.first()? & 15) * 4;
    // Only the first eight bytes behind the quoted IP header are promised, which for TCP have no checksum.
    if quoted[0] >> 4 != 4 || length < 20 || quoted.len() < length + 8 {
        return None;
    }
    let protocol = match quoted[9] {
        UDP => Protocol::Udp,
        TCP => Protocol::Tcp,
        _ => return None,
    };
    let address =
        |at: usize| IpAddr::V4(Ipv4Addr::new(quoted[at], quoted[at + 1], quoted[at + 2], quoted[at + 3]));
    Some(with_ports(quoted, protocol, [address(12), address(16)], length))
}

/// Writes another address into one end of the packet that an ICMP error is about, and into the error's own `outer` end, if any.
pub(crate) fn rewrite_quoted(
    packet: &mut [u8],
    header: &Header,
    (end, address): (End, SocketAddrV4),
    outer: (End, Ipv4Addr),
) {
    let start = header.transport + ICMP_HEADER;
    let Some(quoted) = parse_quoted(packet, header) else { return };
    let (ip_at, port_at) = match end {
        End::Source => (12, quoted.transport),
        End::Destination => (16, quoted.transport + 2),
    };
    let old = packet[start + ip_at..start + ip_at + 4].to_vec();
    update_checksum(&mut packet[start..], 10, &old, &address.ip().octets());
    packet[start + ip_at..start + ip_at + 4].copy_from_slice(&address.ip().octets());
    packet[start + port_at..start + port_at + 2].copy_from_slice(&address.port().to_be_bytes());
    let sum_at = header.transport + 2;
    packet[sum_at..sum_at + 2].fill(0);
    let sum = checksum(&packet[header.transport..]);
    packet[sum_at..sum_at + 2].copy_from_slice(&sum.to_be_bytes());

    let outer_at = if outer.0 == End::Source { 12 } else { 16 };
    let old = packet[outer_at..outer_at + 4].to_vec();
    update_checksum(packet, 10, &old, &outer.1.octets());
    packet[outer_at..outer_at + 4].copy_from_slice(&outer.1.octets());
}

/// Takes `hops` from the hop limit; returns whether the packet survives.
pub(crate) fn travel(packet: &mut [u8], hops: u8) -> bool {
    let is_v4 = packet[0] >> 4 == 4;
    let at = if is_v4 { 8 } else { 7 };
    let Some(left) = packet[at].checked_sub(hops).filter(|left| *left > 0) else { return false };
    if is_v4 {
        let (old, new) = ([packet[8], packet[9]], [left, packet[9]]);
        update_checksum(packet, 10, &old, &new);
    }
    packet[at] = left;
    true
}

/// Corrects the checksum at `at` for bytes that change from `old` to `new`.
fn update_checksum(packet: &mut [u8], at: usize, old: &[u8], new: &[u8]) {
    let mut sum = u32::from(!u16::from_be_bytes([packet[at], packet[at + 1]]));
    for (old, new) in old.chunks_exact(2).zip(new.chunks_exact(2)) {
        sum += u32::from(!u16::from_be_bytes([old[0], old[1]]))
            + u32::from(u16::from_be_bytes([new[0], new[1]]));
    }
    packet[at..at + 2].copy_from_slice(&(!fold(sum)).to_be_bytes());
}

/// The checksum of RFC 1071 over whole bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let sum =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    !fold(sum)
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Makes an IPv4 packet of UDP or TCP with right checksums.
#[cfg(test)]
pub(crate) fn packet_v4(protocol: Protocol, source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
    let [from, to]: [SocketAddrV4; 2] = [source.parse().unwrap(), destination.parse().unwrap()];
    let is_udp = protocol == Protocol::Udp;
    let length = if is_udp { 8 } else { 20 } + payload.len();
    let mut transport = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    if is_udp {
        transport.extend(u16::try_from(length).unwrap().to_be_bytes());
        transport.extend([0, 0]);
    } else {
        transport.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    }
    transport.extend(payload);
    let number = if is_udp { UDP } else { TCP };
    let mut packet = vec![0x45, 0];
    packet.extend(u16::try_from(20 + length).unwrap().to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, number, 0, 0]);
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let sum = transport_checksum(&packet, &transport);
    let at = if is_udp { 6 } else { 16 };
    transport[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    packet.extend(transport);
    packet
}

/// The checksum over the pseudo header of `packet` and a transport part; 0 where the part has its right checksum.
#[cfg(test)]
fn transport_checksum(packet: &[u8], transport: &[u8]) -> u16 {
    let mut bytes = packet[12..20].to_vec();
    bytes.extend([0, packet[9]]);
    bytes.extend(u16::try_from(transport.len()).unwrap().to_be_bytes());
    bytes.extend(transport);
    checksum(&bytes)
}

/// Asserts that the checksums of an IPv4 packet, and of an ICMP error's quoted IP header, are right.
#[cfg(test)]
#[track_caller]
pub(crate) fn assert_checksums(packet: &[u8]) {
    assert_eq!(checksum(&packet[..20]), 0, "IP");
    if packet[9] == ICMP {
        assert_eq!(checksum(&packet[20..]), 0, "ICMP");
        assert_eq!(checksum(&packet[28..48]), 0, "quoted IP");
    } else {
        assert_eq!(transport_checksum(packet, &packet[20..]), 0, "transport");
    }
}

/// Makes a port unreachable error about `packet`, from its destination.
#[cfg(test)]
pub(crate) fn unreachable(packet: &[u8]) -> Vec<u8> {
    let quoted = &packet[..28];
    let mut icmp = vec![3, 3, 0, 0, 0, 0, 0, 0];
    icmp.extend(quoted);
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut error = vec![0x45, 0, 0, 56, 0, 0, 0, 0, 64, ICMP, 0, 0];
    error.extend(&packet[16..20]);
    error.extend(&packet[12..16]);
    let sum = checksum(&error);
    error[10..12].copy_from_slice(&sum.to_be_bytes());
    error.extend(icmp);
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rewritten_packet_has_the_new_addresses_and_right_checksums() {
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            let mut packet = packet_v4(protocol, "10.21.0.2:5000", "203.0.113.10:3478", b"odd");
            assert_checksums(&packet);
            let header = parse(&packet).unwrap();
            assert_eq!(header.source, "10.21.0.2:5000".parse().unwrap());
            rewrite(&mut packet, &header, End::Source, "203.0.113.21:61000".parse().unwrap());
            rewrite(&mut packet, &header, End::Destination, "10.22.0.2:1".parse().unwrap());
            assert!(travel(&mut packet, 5));
            assert_checksums(&packet);
            let header = parse(&packet).unwrap();
            assert_eq!((header.protocol, header.source), (protocol, "203.0.113.21:61000".parse().unwrap()));
            assert_eq!(header.destination, "10.22.0.2:1".parse().unwrap());
        }
    }

    #[test]
    fn a_udp_packet_without_a_checksum_stays_without() {
        let mut packet = packet_v4(Protocol::Udp, "10.21.0.2:5000", "203.0.113.10:3478", b"odd");
        packet[26..28].fill(0);
        let header = parse(&packet).unwrap();
        rewrite(&mut packet, &header, End::Source, "203.0.113.21:61000".parse().unwrap());
        assert_eq!(packet[26..28], [0, 0]);
    }

    #[test]
    fn a_packet_whose_hop_limit_ends_on_the_way_is_lost() {
        let mut packet = packet_v4(Protocol::Udp, "10.21.0.2:5000", "203.0.113.10:3478", b"");
        packet[8] = 7;
        assert!(!travel(&mut packet.clone(), 7));
        assert!(travel(&mut packet, 6));
    }

    #[test]
    fn garbage_and_later_fragments_have_no_header() {
        let packet = packet_v4(Protocol::Udp, "10.21.0.2:5000", "203.0.113.10:3478", b"text");
        for length in 0..28 {
            assert_eq!(parse(&packet[..length]), None, "{length}");
        }
        let mut fragment = packet;
        fragment[7] = 1;
        assert_eq!(parse(&fragment), None);
        assert_eq!(parse(&[0; 60]), None);
        assert_eq!(parse(&[0x60; 47]), None);
    }
}
