//! The PROXY protocol, versions 1 and 2: the header in which a proxy in front of the server names the client.
//!
//! The text: <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>. The header proves nothing:
//! the caller decides by the real source of the connection whether to accept one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest header of version 1, with its line end.
const MAX_V1: usize = 107;
/// The longest header of version 2 that is accepted, with its addresses and extensions.
const MAX_V2: usize = 536;
const V1: &[u8] = b"PROXY ";
const V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes of version 2 in front of the addresses.
const V2_HEAD: usize = 16;

/// The start of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Something else: the protocol itself.
    Absent,
    /// A header of `len` bytes, and the client it names; none for health checks and for families other than TCP over IP.
    Header {
        /// Bytes to take off the stream.
        len: usize,
        /// The client's address, where the header has it.
        client: Option<SocketAddr>,
    },
}

/// A header with a valid start is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed PROXY header")]
pub struct ProxyError;

/// Reads the start of a connection; `None` while more bytes are needed.
///
/// # Errors
/// [`ProxyError`] for a header that is malformed or longer than 107 (version 1) or 536 bytes (version 2).
pub fn parse(start: &[u8]) -> Result<Option<Start>, ProxyError> {
    let agrees = |pattern: &[u8]| pattern.iter().zip(start).all(|(a, b)| a == b);
    if start.is_empty() {
        return Ok(None);
    }
    if agrees(V1) {
        return if start.len() < V1.len() { Ok(None) } else { version_1(start) };
    }
    if agrees(V2) {
        return if start.len() < V2_HEAD { Ok(None) } else { version_2(start) };
    }
    Ok(Some(Start::Absent))
}

fn version_1(start: &[u8]) -> Result<Option<Start>, ProxyError> {
    let window = &start[..start.len().min(MAX_V1)];
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return if start.len() < MAX_V1 { Ok(None) } else { Err(ProxyError) };
    };
    let line = std::str::from_utf8(&window[V1.len()..end]).map_err(|_| ProxyError)?;
    let words: Vec<&str> = line.split(' ').collect();
    let client = match words[..] {
        ["TCP4", source, destination, from, to] => {
            let both: Result<[Ipv4Addr; 2], _> = both(source, destination);
            Some((both?[0].into(), from, to))
        }
        ["TCP6", source, destination, from, to] => {
            let both: Result<[Ipv6Addr; 2], _> = both(source, destination);
            Some((both?[0].into(), from, to))
        }
        ["UNKNOWN", ..] => None,
        _ => return Err(ProxyError),
    };
    let client = match client {
        Some((ip, from, to)) => {
            port(to)?;
            Some(SocketAddr::new(canonical(ip), port(from)?))
        }
        None => None,
    };
    Ok(Some(Start::Header { len: end + 2, client }))
}

fn both<T: std::str::FromStr>(source: &str, destination: &str) -> Result<[T; 2], ProxyError> {
    let read = |text: &str| text.parse().map_err(|_| ProxyError);
    Ok([read(source)?, read(destination)?])
}

fn port(text: &str) -> Result<u16, ProxyError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ProxyError);
    }
    text.parse().map_err(|_| ProxyError)
}

fn version_2(start: &[u8]) -> Result<Option<Start>, ProxyError> {
    let len = V2_HEAD + usize::from(u16::from_be_bytes([start[14], start[15]]));
    let command = start[12];
    if len > MAX_V2 || !matches!(command, 0x20 | 0x21) {
        return Err(ProxyError);
    }
    let Some(body) = start.get(V2_HEAD..len) else { return Ok(None) };
    let client = match (command, start[13]) {
        (0x21, 0x11) => {
            let [a, b, c, d] = *body.first_chunk::<4>().ok_or(ProxyError)?;
            Some((IpAddr::from([a, b, c, d]), body.get(8..12).ok_or(ProxyError)?))
        }
        (0x21, 0x21) => {
            let source = *body.first_chunk::<16>().ok_or(ProxyError)?;
            Some((IpAddr::from(source), body.get(32..36).ok_or(ProxyError)?))
        }
        _ => None,
    };
    let client =
        client.map(|(ip, ports)| SocketAddr::new(canonical(ip), u16::from_be_bytes([ports[0], ports[1]])));
    Ok(Some(Start::Header { len, client }))
}

fn canonical(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&V2[..], &[command, family], &length, body].concat()
    }

    fn tcp4() -> Vec<u8> {
        v2(0x21, 0x11, &[192, 0, 2, 9, 198, 51, 100, 1, 0xC3, 0x50, 0x0D, 0x96, 0x04, 0, 1, 7])
    }

    #[test]
    fn both_versions_name_the_client() {
        let client = Some("192.0.2.9:50000".parse().unwrap());
        let text = b"PROXY TCP4 192.0.2.9 198.51.100.1 50000 3478\r\n";
        let stream = [&text[..], b"GET /"].concat();
        assert_eq!(parse(&stream), Ok(Some(Start::Header { len: text.len(), client })));
        assert_eq!(parse(&tcp4()), Ok(Some(Start::Header { len: tcp4().len(), client })));
        let client = Some("[2001:db8::9]:50000".parse().unwrap());
        let text = b"PROXY TCP6 2001:db8::9 2001:db8::1 50000 3478\r\n";
        assert_eq!(parse(text), Ok(Some(Start::Header { len: text.len(), client })));
        let source: Ipv6Addr = "2001:db8::9".parse().unwrap();
        let body = [&source.octets()[..], &[0; 16], &[0xC3, 0x50, 0x0D, 0x96]].concat();
        let header = v2(0x21, 0x21, &body);
        assert_eq!(parse(&header), Ok(Some(Start::Header { len: header.len(), client })));
    }

    #[test]
    fn health_checks_and_unknown_families_keep_the_real_address() {
        for header in [
            b"PROXY UNKNOWN\r\n".to_vec(),
            b"PROXY UNKNOWN ffff:: ffff:: 65535 65535\r\n".to_vec(),
            v2(0x20, 0, &[]),
            v2(0x20, 0x11, &[0; 12]),
            v2(0x21, 0, &[1, 2, 3]),
            v2(0x21, 0x31, &[0; 216]),
        ] {
            assert_eq!(parse(&header), Ok(Some(Start::Header { len: header.len(), client: None })));
        }
    }

    #[test]
    fn a_header_cut_short_anywhere_waits_for_the_rest() {
        for header in [b"PROXY TCP4 192.0.2.9 198.51.100.1 50000 3478\r\n".to_vec(), tcp4()] {
            for cut in 0..header.len() {
                assert_eq!(parse(&header[..cut]), Ok(None), "cut at {cut}");
            }
        }
    }

    #[test]
    fn malformed_and_oversized_headers_are_refused() {
        let long = [&b"PROXY UNKNOWN "[..], &[b'x'; 107]].concat();
        for header in [
            &b"PROXY TCP4 192.0.2.9 198.51.100.1 50000\r\n"[..],
            b"PROXY TCP4 192.0.2.9 198.51.100.1 50000 65536\r\n",
            b"PROXY TCP4 192.0.2.9 198.51.100.1 +1 3478\r\n",
            b"PROXY TCP4 2001:db8::9 2001:db8::1 50000 3478\r\n",
            b"PROXY TCP6 192.0.2.9 198.51.100.1 50000 3478\r\n",
            b"PROXY TCP4  192.0.2.9 198.51.100.1 50000 3478\r\n",
            b"PROXY UDP4 192.0.2.9 198.51.100.1 50000 3478\r\n",
            &long,
            &v2(0x22, 0x11, &[0; 12]),
            &v2(0x11, 0x11, &[0; 12]),
            &v2(0x21, 0x11, &[0; 11]),
            &v2(0x21, 0x21, &[0; 12]),
            &v2(0x21, 0x11, &[0; 521]),
        ] {
            assert_eq!(parse(header), Err(ProxyError), "{header:?}");
        }
    }

    #[test]
    fn other_protocols_are_not_mistaken_for_a_header() {
        for start in
            [&b"\x16\x03\x01"[..], b"GET / HT", b"POST / H", b"\0\x01\0\0\x21\x12", b"PRI * HT", b"\r\nX"]
        {
            assert_eq!(parse(start), Ok(Some(Start::Absent)), "{start:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_take_more_than_it_got(bytes in proptest::collection::vec(any::<u8>(), 0..600), version in 0..3) {
            let start = match version { 0 => bytes, 1 => [V1, &bytes[..]].concat(), _ => [&V2[..], &bytes[..]].concat() };
            if let Ok(Some(Start::Header { len, .. })) = parse(&start) {
                prop_assert!(len <= start.len() && len <= MAX_V2);
            }
        }
    }
}
