//! The stateless cookie exchange of DTLS: a ClientHello without a valid cookie gets a HelloVerifyRequest and no state
//! ([RFC 6347 section 4.2.1](https://www.rfc-editor.org/rfc/rfc6347#section-4.2.1)).

use crate::clock::Now;
use rand::RngCore;
use rand_chacha::ChaCha20Rng;
use ring::hmac;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::{Duration, Instant};
use subtle::ConstantTimeEq;

/// How long one key makes cookies; the previous key still verifies them.
const KEY_LIFETIME: Duration = Duration::from_secs(60);
/// Bytes of a record's and of a handshake message's header.
const RECORD_HEADER: usize = 13;
const HANDSHAKE_HEADER: usize = 12;
const BODY: usize = RECORD_HEADER + HANDSHAKE_HEADER;
/// Content type of handshake records, and the handshake types of both messages of the exchange.
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const HELLO_VERIFY_REQUEST: u8 = 3;
/// Content type, level and description of the alert for those who speak too old a version.
const ALERT: u8 = 21;
const FATAL: u8 = 2;
const PROTOCOL_VERSION: u8 = 70;
/// DTLS 1.0, which HelloVerifyRequest names whatever is negotiated later.
const DTLS_1_0: [u8; 2] = [0xFE, 0xFF];
/// DTLS 1.2; what 1.3 puts there too.
const DTLS_1_2: [u8; 2] = [0xFE, 0xFD];

/// The cookie.
pub(crate) type Cookie = [u8; 32];

/// Returns whether a datagram begins with a ClientHello outside any session, whole or not.
#[must_use]
pub fn is_client_hello(datagram: &[u8]) -> bool {
    datagram.first() == Some(&HANDSHAKE)
        && datagram.get(3..5) == Some(&[0, 0])
        && datagram.get(RECORD_HEADER) == Some(&CLIENT_HELLO)
}

/// One ClientHello that fills its datagram.
#[derive(Debug, Clone)]
pub struct ClientHello<'a> {
    datagram: &'a [u8],
    cookie: Range<usize>,
    /// Behind the compression methods, where extensions begin.
    parameters_end: usize,
}

impl<'a> ClientHello<'a> {
    /// Reads a datagram; `None` unless it is one whole, unfragmented ClientHello of some DTLS version.
    #[must_use]
    pub fn parse(datagram: &'a [u8]) -> Option<Self> {
        let length = |at: usize| {
            Some(u32::from_be_bytes([0, *datagram.get(at)?, *datagram.get(at + 1)?, *datagram.get(at + 2)?]))
        };
        let size = u32::try_from(datagram.len().checked_sub(BODY)?).ok()?;
        let whole = is_client_hello(datagram)
            && datagram[1] == DTLS_1_0[0]
            && usize::from(u16::from_be_bytes([datagram[11], datagram[12]]))
                == datagram.len() - RECORD_HEADER
            && [length(14)?, length(19)?, length(22)?] == [size, 0, size];
        if !whole || datagram.get(BODY)? != &DTLS_1_0[0] {
            return None;
        }
        // Version and random, then four fields with a length each.
        let session = field(datagram, BODY + 34, 1)?;
        let cookie = field(datagram, session.end, 1)?;
        let suites = field(datagram, cookie.end, 2)?;
        let compression = field(datagram, suites.end, 1)?;
        let sound =
            session.len() <= 32 && suites.len() >= 2 && suites.len() % 2 == 0 && !compression.is_empty();
        sound.then_some(Self { datagram, cookie, parameters_end: compression.end })
    }

    /// Returns the client's random bytes, which are the same in both ClientHellos of one handshake and in no other.
    #[must_use]
    pub fn random(&self) -> &[u8] {
        &self.datagram[BODY + 2..BODY + 34]
    }

    /// Returns the number of the record it came in.
    #[must_use]
    pub fn record_number(&self) -> u64 {
        self.datagram[5..11].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// Returns the cookie it carries, if it has the length of ours.
    #[must_use]
    pub fn cookie(&self) -> Option<Cookie> {
        self.datagram[self.cookie.clone()].try_into().ok()
    }

    /// Makes the ClientHello that must have come first: the same without a cookie.
    #[must_use]
    pub fn first(&self) -> Vec<u8> {
        let mut first = self.datagram.to_vec();
        first.drain(self.cookie.clone());
        first[self.cookie.start - 1] = 0;
        // Record and message are the first of their kind: numbers zero.
        first[5..11].fill(0);
        first[17..19].fill(0);
        set_lengths(&mut first);
        first
    }
}

/// Returns the range of a field whose length is in `prefix` bytes at `at`.
fn field(datagram: &[u8], at: usize, prefix: usize) -> Option<Range<usize>> {
    let length =
        datagram.get(at..at + prefix)?.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    let range = at + prefix..at + prefix + length;
    (range.end <= datagram.len()).then_some(range)
}

/// Writes the three lengths of a record with one whole handshake message.
fn set_lengths(record: &mut [u8]) {
    let fragment = u16::try_from(record.len() - RECORD_HEADER).unwrap_or(u16::MAX);
    record[11..13].copy_from_slice(&fragment.to_be_bytes());
    let body = u32::from(fragment) - HANDSHAKE_HEADER as u32;
    record[14..17].copy_from_slice(&body.to_be_bytes()[1..]);
    record[22..25].copy_from_slice(&body.to_be_bytes()[1..]);
}

/// The keys that cookies are made with; they change every minute, and a cookie is good for one to two.
#[derive(Debug)]
pub struct CookieExchange {
    current: hmac::Key,
    previous: hmac::Key,
    since: Instant,
    rng: ChaCha20Rng,
}

/// What to do with a ClientHello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HelloVerdict {
    /// Send this HelloVerifyRequest and keep nothing.
    Verify(Vec<u8>),
    /// Send this alert: the client supports only DTLS 1.0.
    Refuse(Vec<u8>),
    /// Begin the handshake: the client receives at its address, it has returned this cookie.
    Accept(Cookie),
}

impl CookieExchange {
    /// Draws the first keys from `rng`.
    #[must_use]
    pub fn new(now: Now, mut rng: ChaCha20Rng) -> Self {
        let (current, previous) = (key(&mut rng), key(&mut rng));
        Self { current, previous, since: now.mono, rng }
    }

    /// Checks the cookie of one ClientHello from `client`.
    pub fn check(&mut self, now: Now, client: SocketAddr, hello: &ClientHello<'_>) -> HelloVerdict {
        if hello.datagram[BODY..BODY + 2] != DTLS_1_2 {
            return HelloVerdict::Refuse(refusal(hello));
        }
        self.rotate(now);
        let good = |key, cookie: &Cookie| bool::from(mac(key, client, hello).ct_eq(cookie));
        match hello.cookie() {
            Some(cookie) if good(&self.current, &cookie) | good(&self.previous, &cookie) => {
                HelloVerdict::Accept(cookie)
            }
            _ => HelloVerdict::Verify(verify_request(hello, &mac(&self.current, client, hello))),
        }
    }

    fn rotate(&mut self, now: Now) {
        let age = now.mono.saturating_duration_since(self.since);
        if age < KEY_LIFETIME {
            return;
        }
        let fresh = key(&mut self.rng);
        self.previous = if age < 2 * KEY_LIFETIME {
            std::mem::replace(&mut self.current, fresh)
        } else {
            self.current = fresh;
            key(&mut self.rng)
        };
        self.since = now.mono;
    }
}

fn key(rng: &mut ChaCha20Rng) -> hmac::Key {
    let mut bytes = [0; 32];
    rng.fill_bytes(&mut bytes);
    hmac::Key::new(hmac::HMAC_SHA256, &bytes)
}

/// Binds a cookie to the client's address and to everything it offered but the cookie and the extensions.
fn mac(key: &hmac::Key, client: SocketAddr, hello: &ClientHello<'_>) -> Cookie {
    let mut context = hmac::Context::with_key(key);
    match client.ip() {
        IpAddr::V4(ip) => context.update(&ip.to_ipv6_mapped().octets()),
        IpAddr::V6(ip) => context.update(&ip.octets()),
    }
    context.update(&client.port().to_be_bytes());
    context.update(&hello.datagram[BODY..hello.cookie.start - 1]);
    context.update(&hello.datagram[hello.cookie.end..hello.parameters_end]);
    let mut cookie = [0; 32];
    cookie.copy_from_slice(context.sign().as_ref());
    cookie
}

/// Makes a HelloVerifyRequest: 60 bytes, fewer than any ClientHello has, in a record with the ClientHello's number.
fn verify_request(hello: &ClientHello<'_>, cookie: &Cookie) -> Vec<u8> {
    let mut record = vec![HANDSHAKE, DTLS_1_0[0], DTLS_1_0[1], 0, 0];
    record.extend_from_slice(&hello.datagram[5..11]);
    record.extend_from_slice(&[0, 0, HELLO_VERIFY_REQUEST, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    record.extend_from_slice(&DTLS_1_0);
    record.push(32);
    record.extend_from_slice(cookie);
    set_lengths(&mut record);
    record
}

/// Makes the alert protocol_version: 15 bytes.
fn refusal(hello: &ClientHello<'_>) -> Vec<u8> {
    let mut record = vec![ALERT, DTLS_1_0[0], DTLS_1_0[1], 0, 0];
    record.extend_from_slice(&hello.datagram[5..11]);
    record.extend_from_slice(&[0, 2, FATAL, PROTOCOL_VERSION]);
    record
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::time::now;
    use proptest::prelude::*;
    use rand::SeedableRng;

    fn client() -> SocketAddr {
        "192.0.2.9:50000".parse().unwrap()
    }

    fn cookies(now: Now) -> CookieExchange {
        CookieExchange::new(now, ChaCha20Rng::from_seed([7; 32]))
    }

    /// The shortest ClientHello there is, but for its cookie.
    fn hello(random: u8, cookie: &[u8]) -> Vec<u8> {
        let mut datagram = vec![22, 0xFE, 0xFD, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0];
        datagram.extend_from_slice(&[
            1,
            0,
            0,
            0,
            0,
            u8::from(!cookie.is_empty()),
            0,
            0,
            0,
            0,
            0,
            0,
            0xFE,
            0xFD,
        ]);
        datagram.extend_from_slice(&[random; 32]);
        datagram.push(0);
        datagram.push(u8::try_from(cookie.len()).unwrap());
        datagram.extend_from_slice(cookie);
        datagram.extend_from_slice(&[0, 2, 0xC0, 0x2B, 1, 0]);
        set_lengths(&mut datagram);
        datagram
    }

    fn judge(cookies: &mut CookieExchange, now: Now, client: SocketAddr, datagram: &[u8]) -> HelloVerdict {
        cookies.check(now, client, &ClientHello::parse(datagram).unwrap())
    }

    fn cookie_for(cookies: &mut CookieExchange, now: Now) -> Cookie {
        match judge(cookies, now, client(), &hello(1, &[])) {
            HelloVerdict::Verify(request) => request[request.len() - 32..].try_into().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_first_hello_is_told_to_come_back_with_fewer_bytes_than_it_had() {
        let (now, first) = (now(), hello(1, &[]));
        let HelloVerdict::Verify(request) = judge(&mut cookies(now), now, client(), &first) else {
            panic!("admitted without a cookie")
        };
        assert_eq!(
            request[..25],
            [22, 254, 255, 0, 0, 0, 0, 0, 0, 0, 5, 0, 47, 3, 0, 0, 35, 0, 0, 0, 0, 0, 0, 0, 35]
        );
        assert_eq!(request[25..28], [254, 255, 32]);
        assert!(request.len() == 60 && request.len() < first.len(), "{}", first.len());
    }

    #[test]
    fn a_cookie_is_good_for_its_address_its_offer_and_its_time() {
        let now = now();
        let mut cookies = cookies(now);
        let cookie = cookie_for(&mut cookies, now);
        let second = hello(1, &cookie);
        assert_eq!(judge(&mut cookies, now, client(), &second), HelloVerdict::Accept(cookie));
        let elsewhere: SocketAddr = "192.0.2.9:50001".parse().unwrap();
        assert!(matches!(judge(&mut cookies, now, elsewhere, &second), HelloVerdict::Verify(_)));
        assert!(matches!(judge(&mut cookies, now, client(), &hello(2, &cookie)), HelloVerdict::Verify(_)));
        let later = now.after(KEY_LIFETIME);
        assert_eq!(judge(&mut cookies, later, client(), &second), HelloVerdict::Accept(cookie));
        let too_late = later.after(KEY_LIFETIME);
        assert!(matches!(judge(&mut cookies, too_late, client(), &second), HelloVerdict::Verify(_)));
        assert_ne!(cookie_for(&mut cookies, too_late), cookie);
        let cookie = cookie_for(&mut cookies, too_late);
        let much_later = too_late.after(3 * KEY_LIFETIME);
        assert!(matches!(
            judge(&mut cookies, much_later, client(), &hello(1, &cookie)),
            HelloVerdict::Verify(_)
        ));
    }

    #[test]
    fn the_hello_that_must_have_come_first_is_the_same_without_cookie_and_numbers() {
        let second = hello(1, &[9; 32]);
        let mut expected = hello(1, &[]);
        expected[5..11].fill(0);
        assert_eq!(ClientHello::parse(&second).unwrap().first(), expected);
    }

    #[test]
    fn what_is_not_one_whole_hello_is_not_read() {
        let good = hello(1, &[9; 32]);
        assert!(ClientHello::parse(&good).is_some());
        for cut in 0..good.len() {
            assert!(ClientHello::parse(&good[..cut]).is_none(), "cut at {cut}");
        }
        assert!(ClientHello::parse(&[&good[..], &[0]].concat()).is_none(), "a second record");
        for (at, byte) in [(0, 23), (1, 3), (3, 1), (4, 1), (13, 2), (21, 1), (24, 1), (25, 3), (59, 33)] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert!(ClientHello::parse(&bad).is_none(), "byte {at}");
        }
    }

    #[test]
    fn a_client_that_speaks_too_old_a_version_is_told_so_and_gets_no_cookie() {
        let mut old = hello(1, &[]);
        old[26] = 0xFF;
        let now = now();
        let refused = HelloVerdict::Refuse(vec![21, 254, 255, 0, 0, 0, 0, 0, 0, 0, 5, 0, 2, 2, 70]);
        assert_eq!(judge(&mut cookies(now), now, client(), &old), refused);
    }

    proptest! {
        #[test]
        fn decoding_does_not_panic_on_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0..98_usize, byte: u8) {
            let _ = ClientHello::parse(&bytes);
            let mut nearly = hello(1, &[9; 32]);
            let at = at.min(nearly.len() - 1);
            nearly[at] = byte;
            if let Some(hello) = ClientHello::parse(&nearly) {
                prop_assert!(hello.first().len() <= nearly.len());
                let now = now();
                cookies(now).check(now, client(), &hello);
            }
        }
    }
}
