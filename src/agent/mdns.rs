//! Names of host candidates that browsers hide behind multicast DNS: `UUID.local`, resolved by one query
//! ([RFC 6762 section 5.1](https://www.rfc-editor.org/rfc/rfc6762#section-5.1)).
//!
//! Only names of this form are asked for. Whoever is on the link can answer, so that an address is no more than a candidate.

use crate::net::interfaces::{self, AddressScope, scope};
use crate::net::time;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

const GROUP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(224, 0, 0, 251)), 5353);
/// Waits after each query.
const WAITS: [Duration; 3] = [Duration::from_millis(250), Duration::from_millis(750), Duration::from_secs(1)];
const TIMEOUT: Duration = Duration::from_secs(2);
/// Most interfaces that are asked on.
const MAX_INTERFACES: usize = 8;
/// Longest response that is read.
const MAX_RESPONSE: usize = 1500;
/// Most records of a response that are looked at.
const MAX_RECORDS: usize = 16;
/// Most labels of a name, and pointers within it, that are followed.
const MAX_LABELS: usize = 16;
/// Lengths of the parts of a UUID.
const UUID_PARTS: [usize; 5] = [8, 4, 4, 4, 12];
const DOMAIN: &str = "local";
const HEADER_LEN: usize = 12;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const CLASS_IN: u16 = 1;
/// The place of the address in a candidate.
const ADDRESS_WORD: usize = 4;

/// Returns the name in place of the address of a candidate, if it is one that is resolved.
pub(super) fn name_of(candidate: &str) -> Option<&str> {
    let candidate = candidate.trim();
    let name = candidate.split_ascii_whitespace().nth(ADDRESS_WORD)?;
    let (id, domain) = name.split_once('.')?;
    let parts: Vec<&str> = id.split('-').collect();
    let is_uuid = parts.iter().map(|part| part.len()).eq(UUID_PARTS)
        && parts.iter().all(|part| part.bytes().all(|byte| byte.is_ascii_hexdigit()));
    (is_uuid && domain.eq_ignore_ascii_case(DOMAIN)).then_some(name)
}

/// Returns a candidate with an address in place of its name.
pub(super) fn with_address(candidate: &str, address: IpAddr) -> String {
    let address = address.to_string();
    let words = candidate.split_ascii_whitespace().enumerate();
    words
        .map(|(index, word)| if index == ADDRESS_WORD { address.as_str() } else { word })
        .collect::<Vec<_>>()
        .join(" ")
}

/// Asks for the address of a name on every interface; the first answer counts.
pub(super) async fn resolve(name: String) -> Option<IpAddr> {
    let own = interfaces::addresses().unwrap_or_default().into_iter();
    let usable = own.filter(|ip| matches!(scope(*ip), AddressScope::Global | AddressScope::Private));
    let v4 = usable.filter_map(|ip| match ip {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    });
    let mut queries = JoinSet::new();
    for local in v4.take(MAX_INTERFACES) {
        let name = name.clone();
        queries.spawn(async move { resolve_at(socket(local).ok()?, GROUP, &name).await });
    }
    timeout(TIMEOUT, async {
        while let Some(found) = queries.join_next().await {
            if let Ok(Some(address)) = found {
                return Some(address);
            }
        }
        None
    })
    .await
    .ok()
    .flatten()
}

/// Opens a socket whose queries leave by the interface with this address. Responses come to its own port.
fn socket(local: Ipv4Addr) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind((local, 0))?;
    socket2::SockRef::from(&socket).set_multicast_if_v4(&local)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

async fn resolve_at(socket: UdpSocket, group: SocketAddr, name: &str) -> Option<IpAddr> {
    let id = rand::random();
    let query = query(id, name);
    let mut buffer = [0; MAX_RESPONSE];
    for wait in WAITS {
        socket.send_to(&query, group).await.ok()?;
        let end = time::now().mono + wait;
        loop {
            let (len, _) = tokio::select! {
                received = socket.recv_from(&mut buffer) => received.ok()?,
                () = sleep_until(end.into()) => break,
            };
            if let Some(address) = parse_response(&buffer[..len], id, name) {
                return Some(address);
            }
        }
    }
    None
}

/// Makes a query for both families.
fn query(id: u16, name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [id, 0, 2, 0, 0, 0] {
        bytes.extend_from_slice(&word.to_be_bytes());
    }
    for kind in [TYPE_A, TYPE_AAAA] {
        for label in name.split('.') {
            bytes.push(u8::try_from(label.len()).unwrap_or(0));
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.push(0);
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&CLASS_IN.to_be_bytes());
    }
    bytes
}

/// Reads the first usable address of the name from a response to the query with this id.
fn parse_response(bytes: &[u8], id: u16, name: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let is_response = word(2)? & 0x8000 != 0;
    if word(0)? != id || !is_response {
        return None;
    }
    let mut at = HEADER_LEN;
    for _ in 0..usize::from(word(4)?).min(MAX_RECORDS) {
        at = read_name(bytes, at)?.1 + 4;
    }
    for _ in 0..usize::from(word(6)?).min(MAX_RECORDS) {
        let (owner, after) = read_name(bytes, at)?;
        let (kind, class, length) = (word(after)?, word(after + 2)?, usize::from(word(after + 8)?));
        let data = bytes.get(after + 10..after + 10 + length)?;
        at = after + 10 + length;
        // The upper bit of the class tells caches to flush.
        if class & 0x7FFF != CLASS_IN || !owner.eq_ignore_ascii_case(name) {
            continue;
        }
        let address = match kind {
            TYPE_A => <[u8; 4]>::try_from(data).ok().map(IpAddr::from),
            TYPE_AAAA => <[u8; 16]>::try_from(data).ok().map(IpAddr::from),
            _ => None,
        };
        let usable =
            address.filter(|ip| !ip.is_multicast() && !ip.is_loopback() && scope(*ip) != AddressScope::Link);
        if usable.is_some() {
            return usable;
        }
    }
    None
}

/// Reads a name that may be compressed; returns it and where what follows it begins.
fn read_name(bytes: &[u8], start: usize) -> Option<(String, usize)> {
    let (mut name, mut at, mut end) = (String::new(), start, None);
    for _ in 0..MAX_LABELS {
        let length = usize::from(*bytes.get(at)?);
        match length {
            0 => return Some((name, end.unwrap_or(at + 1))),
            1..=63 => {
                let label = std::str::from_utf8(bytes.get(at + 1..at + 1 + length)?).ok()?;
                if !name.is_empty() {
                    name.push('.');
                }
                name.push_str(label);
                at += 1 + length;
            }
            192.. => {
                end = end.or(Some(at + 2));
                at = (length & 0x3F) << 8 | usize::from(*bytes.get(at + 1)?);
            }
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NAME: &str = "1f4712db-ea17-4bcf-a596-105139dfd8bf.local";

    fn response(id: u16, name: &str, addresses: &[IpAddr]) -> Vec<u8> {
        let mut bytes = query(id, name);
        bytes[2] = 0x84;
        bytes[7] = u8::try_from(addresses.len()).unwrap();
        for address in addresses {
            let data = match address {
                IpAddr::V4(v4) => v4.octets().to_vec(),
                IpAddr::V6(v6) => v6.octets().to_vec(),
            };
            let kind = if data.len() == 4 { TYPE_A } else { TYPE_AAAA };
            // The name is a pointer to the question.
            bytes.extend_from_slice(&[192, 12]);
            bytes.extend_from_slice(&kind.to_be_bytes());
            bytes.extend_from_slice(&[0x80, 1, 0, 0, 0, 120, 0, u8::try_from(data.len()).unwrap()]);
            bytes.extend_from_slice(&data);
        }
        bytes
    }

    #[test]
    fn only_a_uuid_below_local_is_a_name() {
        let candidate = |address: &str| format!("candidate:1 1 udp 2122260223 {address} 4000 typ host");
        assert_eq!(name_of(&candidate(NAME)), Some(NAME));
        for other in [
            "192.0.2.1",
            "printer.local",
            "1f4712db-ea17-4bcf-a596-105139dfd8bf.example",
            "1f4712db-ea17-4bcf-a596-105139dfd8bf.a.local",
            "1f4712db-ea17-4bcf-a596-105139dfd8bg.local",
            "1f4712db-ea17-4bcf-a596.local",
        ] {
            assert_eq!(name_of(&candidate(other)), None, "{other}");
        }
        let address = IpAddr::from([10, 0, 0, 7]);
        assert_eq!(with_address(&candidate(NAME), address), candidate("10.0.0.7"));
    }

    #[test]
    fn a_response_has_the_id_the_name_and_a_usable_address() {
        let addresses = ["fe80::7", "127.0.0.1", "10.0.0.7"].map(|address| address.parse().unwrap());
        let answer = response(7, NAME, &addresses);
        assert_eq!(parse_response(&answer, 7, &NAME.to_uppercase()), Some(addresses[2]));
        assert_eq!(parse_response(&answer, 8, NAME), None);
        assert_eq!(parse_response(&answer, 7, "other.local"), None);
        assert_eq!(parse_response(&query(7, NAME), 7, NAME), None, "no response");
        assert_eq!(parse_response(&answer[..answer.len() - 1], 7, NAME), None);
    }

    #[tokio::test]
    async fn a_name_is_asked_for_again_until_it_is_answered() {
        let responder = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let group = responder.local_addr().unwrap();
        let answering = async {
            let mut buffer = [0; MAX_RESPONSE];
            let (len, from) = responder.recv_from(&mut buffer).await.unwrap();
            let first = buffer[..len].to_vec();
            let (len, _) = responder.recv_from(&mut buffer).await.unwrap();
            assert_eq!(buffer[..len], first);
            let id = u16::from_be_bytes([first[0], first[1]]);
            responder.send_to(&response(id, NAME, &[[10, 0, 0, 7].into()]), from).await.unwrap();
        };
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (found, ()) = tokio::join!(resolve_at(socket, group, NAME), answering);
        assert_eq!(found, Some([10, 0, 0, 7].into()));
    }

    proptest! {
        #[test]
        fn no_response_makes_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = parse_response(&[&[0, 7, 0x84, 0, 0, 1, 0, 3, 0, 0, 0, 0], &bytes[..]].concat(), 7, NAME);
        }
    }
}
