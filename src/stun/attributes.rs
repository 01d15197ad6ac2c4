//! Attribute types and the attributes of a message.

use super::{HEADER_LEN, MAGIC_COOKIE, TransactionId};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Registered attribute types ([IANA](https://www.iana.org/assignments/stun-parameters)).
pub mod attr {
    #![expect(missing_docs, reason = "the names are those of the registry")]
    pub const MAPPED_ADDRESS: u16 = 0x0001;
    pub const CHANGE_REQUEST: u16 = 0x0003;
    pub const SOURCE_ADDRESS: u16 = 0x0004;
    pub const CHANGED_ADDRESS: u16 = 0x0005;
    pub const USERNAME: u16 = 0x0006;
    pub const PASSWORD: u16 = 0x0007;
    pub const MESSAGE_INTEGRITY: u16 = 0x0008;
    pub const ERROR_CODE: u16 = 0x0009;
    pub const UNKNOWN_ATTRIBUTES: u16 = 0x000A;
    pub const CHANNEL_NUMBER: u16 = 0x000C;
    pub const LIFETIME: u16 = 0x000D;
    pub const XOR_PEER_ADDRESS: u16 = 0x0012;
    pub const DATA: u16 = 0x0013;
    pub const REALM: u16 = 0x0014;
    pub const NONCE: u16 = 0x0015;
    pub const XOR_RELAYED_ADDRESS: u16 = 0x0016;
    pub const REQUESTED_ADDRESS_FAMILY: u16 = 0x0017;
    pub const EVEN_PORT: u16 = 0x0018;
    pub const REQUESTED_TRANSPORT: u16 = 0x0019;
    pub const DONT_FRAGMENT: u16 = 0x001A;
    pub const ACCESS_TOKEN: u16 = 0x001B;
    pub const MESSAGE_INTEGRITY_SHA256: u16 = 0x001C;
    pub const PASSWORD_ALGORITHM: u16 = 0x001D;
    pub const USERHASH: u16 = 0x001E;
    pub const XOR_MAPPED_ADDRESS: u16 = 0x0020;
    pub const RESERVATION_TOKEN: u16 = 0x0022;
    pub const PADDING: u16 = 0x0026;
    pub const RESPONSE_PORT: u16 = 0x0027;
    pub const CONNECTION_ID: u16 = 0x002A;
    pub const ADDITIONAL_ADDRESS_FAMILY: u16 = 0x8000;
    pub const ADDRESS_ERROR_CODE: u16 = 0x8001;
    pub const PASSWORD_ALGORITHMS: u16 = 0x8002;
    pub const ALTERNATE_DOMAIN: u16 = 0x8003;
    pub const ICMP: u16 = 0x8004;
    pub const SOFTWARE: u16 = 0x8022;
    pub const ALTERNATE_SERVER: u16 = 0x8023;
    pub const CACHE_TIMEOUT: u16 = 0x8027;
    pub const FINGERPRINT: u16 = 0x8028;
    pub const RESPONSE_ORIGIN: u16 = 0x802B;
    pub const OTHER_ADDRESS: u16 = 0x802C;
    pub const THIRD_PARTY_AUTHORIZATION: u16 = 0x802E;
    pub const MOBILITY_TICKET: u16 = 0x8030;
}

/// The first comprehension-optional type (RFC 8489 section 14).
pub(crate) const COMPREHENSION_OPTIONAL: u16 = 0x8000;
/// Most unknown types that a 420 response lists, so that it is not longer than the request.
const MAX_UNKNOWN: usize = 8;

/// An address attribute has the wrong length or an unknown family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed address attribute")]
pub struct AddressError;

/// The attributes of one message up to its integrity attribute, in order.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a> {
    body: &'a [u8],
    transaction: TransactionId,
}

impl<'a> Attributes<'a> {
    /// Wraps a body whose attributes were checked to lie within it.
    pub(super) fn new(body: &'a [u8], transaction: TransactionId) -> Self {
        Self { body, transaction }
    }

    /// Iterates over (type, value).
    pub fn iter(&self) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        self.entries().map(|(kind, _, value)| (kind, value))
    }

    /// Iterates over (type, where the value begins in the message, value).
    pub(crate) fn entries(&self) -> impl Iterator<Item = (u16, usize, &'a [u8])> + use<'a> {
        let end = HEADER_LEN + self.body.len();
        let mut rest = self.body;
        std::iter::from_fn(move || {
            let (head, tail) = rest.split_first_chunk::<4>()?;
            let kind = u16::from_be_bytes([head[0], head[1]]);
            let len = usize::from(u16::from_be_bytes([head[2], head[3]]));
            let value = tail.get(..len)?;
            rest = tail.get(len.next_multiple_of(4)..)?;
            Some((kind, end - tail.len(), value))
        })
    }

    /// Decodes the value of an XOR address attribute of this message.
    pub(crate) fn decode_xor_address(&self, value: &[u8]) -> Result<SocketAddr, AddressError> {
        read_address(value, mask(&self.transaction))
    }

    /// Returns the first value of type `kind`; later ones are ignored (RFC 8489 section 14).
    #[must_use]
    pub fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.iter().find(|(k, _)| *k == kind).map(|(_, value)| value)
    }

    /// Returns a 32-bit value such as LIFETIME, if it is present and four bytes long.
    #[must_use]
    pub fn u32(&self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }

    /// Returns all XOR addresses of type `kind`.
    pub fn xor_addresses(
        &self,
        kind: u16,
    ) -> impl Iterator<Item = Result<SocketAddr, AddressError>> + use<'a> {
        let transaction = self.transaction;
        self.iter()
            .filter(move |(k, _)| *k == kind)
            .map(move |(_, value)| read_address(value, mask(&transaction)))
    }

    /// Returns the first XOR address of type `kind`.
    ///
    /// # Errors
    /// [`AddressError`] when it is malformed.
    pub fn xor_address(&self, kind: u16) -> Result<Option<SocketAddr>, AddressError> {
        self.xor_addresses(kind).next().transpose()
    }

    /// Returns the first address of type `kind` without XOR, such as ALTERNATE-SERVER.
    ///
    /// # Errors
    /// [`AddressError`] when it is malformed.
    pub fn plain_address(&self, kind: u16) -> Result<Option<SocketAddr>, AddressError> {
        self.get(kind).map(|value| read_address(value, [0; 16])).transpose()
    }

    /// Returns the code of ERROR-CODE.
    #[must_use]
    pub fn error_code(&self) -> Option<u16> {
        match self.get(attr::ERROR_CODE)? {
            [_, _, class, number, ..] => Some(u16::from(class & 7) * 100 + u16::from(*number)),
            _ => None,
        }
    }

    /// Returns the comprehension-required types that are not in `known`, for a 420 response.
    #[must_use]
    pub fn unknown(&self, known: &[u16]) -> Vec<u16> {
        let unknown = |kind: &u16| *kind < COMPREHENSION_OPTIONAL && !known.contains(kind);
        self.iter().map(|(kind, _)| kind).filter(unknown).take(MAX_UNKNOWN).collect()
    }
}

/// Returns the value of an XOR address attribute (RFC 8489 section 14.2), and its length.
#[must_use]
pub fn xor_address_value(address: SocketAddr, transaction: &TransactionId) -> ([u8; 20], usize) {
    let mut value = [0; 20];
    let len = write_address(&mut value, address, transaction, false);
    (value, len)
}

/// Writes an address value, XORed with the cookie and the transaction unless `plain`
/// ([RFC 8489 section 14.2](https://www.rfc-editor.org/rfc/rfc8489#section-14.2)); returns its length.
pub(super) fn write_address(
    out: &mut [u8; 20],
    address: SocketAddr,
    transaction: &TransactionId,
    plain: bool,
) -> usize {
    let mask = if plain { [0; 16] } else { mask(transaction) };
    let port = address.port().to_be_bytes();
    out[0] = 0;
    out[2..4].copy_from_slice(&[port[0] ^ mask[0], port[1] ^ mask[1]]);
    let mut put = |family: u8, octets: &[u8]| {
        out[1] = family;
        for (to, (octet, m)) in out[4..].iter_mut().zip(octets.iter().zip(mask)) {
            *to = octet ^ m;
        }
        4 + octets.len()
    };
    match address.ip() {
        IpAddr::V4(ip) => put(1, &ip.octets()),
        IpAddr::V6(ip) => put(2, &ip.octets()),
    }
}

fn read_address(value: &[u8], mask: [u8; 16]) -> Result<SocketAddr, AddressError> {
    let &[_, family, p0, p1, ref address @ ..] = value else { return Err(AddressError) };
    let port = u16::from_be_bytes([p0 ^ mask[0], p1 ^ mask[1]]);
    let ip = match family {
        1 => {
            let octets: [u8; 4] = address.try_into().map_err(|_| AddressError)?;
            IpAddr::V4(Ipv4Addr::from(std::array::from_fn(|i| octets[i] ^ mask[i])))
        }
        2 => {
            let octets: [u8; 16] = address.try_into().map_err(|_| AddressError)?;
            IpAddr::V6(Ipv6Addr::from(std::array::from_fn::<u8, 16, _>(|i| octets[i] ^ mask[i])))
        }
        _ => return Err(AddressError),
    };
    Ok(SocketAddr::new(ip, port))
}

fn mask(transaction: &TransactionId) -> [u8; 16] {
    let mut mask = transaction.0;
    mask[..4].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
    mask
}
