//! Stateless nonces: the nonce cookie, the time, and an HMAC over both, the client's address and the offered features. A nonce for a
//! stream also contains the client's port, for a data connection of RFC 6062 that uses its control connection's nonce.

use super::super::FiveTuple;
use crate::clock::Now;
use crate::stun::PasswordAlgorithm;
use data_encoding::{BASE64, BASE64URL_NOPAD};
use ring::hmac;
use std::net::IpAddr;
use std::sync::{PoisonError, RwLock};
use subtle::ConstantTimeEq;

/// The nonce cookie, the start of each nonce of an RFC 8489 server ([section 9.2](https://www.rfc-editor.org/rfc/rfc8489#section-9.2)).
const COOKIE: &str = "obMatJos2";
/// Seconds that a nonce is valid.
const LIFETIME: i32 = 3600;
/// Seconds that the clock of another server may be ahead.
const CLOCK_SKEW: i32 = 60;
/// Seconds after which the key changes.
const ROTATION: u32 = 24 * 3600;
/// Bytes of the truncated HMAC: a guessed one is valid for one address and an hour and grants nothing, and each byte lengthens the
/// response to a forged address.
const TAG_LEN: usize = 10;
/// The end of the tag, and of the port that follows in nonces for streams.
const TAG_END: usize = 4 + TAG_LEN;
const PORT_END: usize = TAG_END + 2;

/// Feature bits ([RFC 8489 section 18.1](https://www.rfc-editor.org/rfc/rfc8489#section-18.1)), in the first of three bytes.
const PASSWORD_ALGORITHMS: u8 = 0x80;
const USERNAME_ANONYMITY: u8 = 0x40;

/// The features that the server offers with a nonce. The nonce contains them, so that removing them on the path is detected
/// ([RFC 8489 section 9.2.1](https://www.rfc-editor.org/rfc/rfc8489#section-9.2.1)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OfferedFeatures {
    /// PASSWORD-ALGORITHMS, the preferred one first.
    pub(super) algorithms: &'static [PasswordAlgorithm],
    /// Whether clients send USERHASH in place of USERNAME.
    pub(super) anonymity: bool,
}

impl OfferedFeatures {
    fn features(self) -> [u8; 3] {
        let anonymity = if self.anonymity { USERNAME_ANONYMITY } else { 0 };
        [PASSWORD_ALGORITHMS | anonymity, 0, 0]
    }
}

/// Makes and verifies nonces.
#[derive(Debug)]
pub(super) struct Nonces {
    master: hmac::Key,
    /// The key of the last nonce, and its epoch.
    current: RwLock<(u32, hmac::Key)>,
}

impl Nonces {
    pub(super) fn new(master: &[u8; 32]) -> Self {
        let master = hmac::Key::new(hmac::HMAC_SHA256, master);
        let current = RwLock::new((0, derived(&master, 0)));
        Self { master, current }
    }

    /// Makes a nonce for `client`; it is not valid for other addresses.
    pub(super) fn make(&self, now: Now, client: &FiveTuple, offer: OfferedFeatures) -> String {
        let made = seconds(now);
        self.rotate_to(made / ROTATION);
        let mut bytes = [0; PORT_END];
        bytes[..4].copy_from_slice(&made.to_be_bytes());
        bytes[4..TAG_END].copy_from_slice(&self.tag(made, client, offer).as_ref()[..TAG_LEN]);
        bytes[TAG_END..].copy_from_slice(&client.client.port().to_be_bytes());
        let mut nonce = COOKIE.to_owned();
        BASE64.encode_append(&offer.features(), &mut nonce);
        BASE64URL_NOPAD.encode_append(&bytes[..length(client)], &mut nonce);
        nonce
    }

    /// Returns whether `nonce` was made for `client` with these features, and is not too old.
    pub(super) fn is_valid(
        &self,
        now: Now,
        client: &FiveTuple,
        offer: OfferedFeatures,
        nonce: &[u8],
    ) -> bool {
        open(client, offer, nonce).is_some_and(|bytes| self.is_genuine(now, client, offer, &bytes))
    }

    /// Returns whether `nonce` was made for any stream of the client's host, and `client` is one too.
    pub(super) fn is_valid_for_data_connection(
        &self,
        now: Now,
        client: &FiveTuple,
        offer: OfferedFeatures,
        nonce: &[u8],
    ) -> bool {
        let Some(bytes) = open(client, offer, nonce).filter(|_| client.transport.is_stream()) else {
            return false;
        };
        let mut other = *client;
        other.client.set_port(u16::from_be_bytes([bytes[TAG_END], bytes[TAG_END + 1]]));
        self.is_genuine(now, &other, offer, &bytes)
    }

    fn is_genuine(
        &self,
        now: Now,
        client: &FiveTuple,
        offer: OfferedFeatures,
        bytes: &[u8; PORT_END],
    ) -> bool {
        let made = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let genuine = self.tag(made, client, offer).as_ref()[..TAG_LEN].ct_eq(&bytes[4..TAG_END]);
        let age = seconds(now).wrapping_sub(made).cast_signed();
        bool::from(genuine) && (-CLOCK_SKEW..=LIFETIME).contains(&age)
    }

    /// Derives the key of `epoch` unless it is the current one.
    fn rotate_to(&self, epoch: u32) {
        let at_hand = self.current.read().unwrap_or_else(PoisonError::into_inner).0;
        if at_hand != epoch {
            let key = derived(&self.master, epoch);
            *self.current.write().unwrap_or_else(PoisonError::into_inner) = (epoch, key);
        }
    }

    fn context(&self, epoch: u32) -> hmac::Context {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        match &*current {
            (at_hand, key) if *at_hand == epoch => hmac::Context::with_key(key),
            _ => hmac::Context::with_key(&derived(&self.master, epoch)),
        }
    }

    fn tag(&self, made: u32, client: &FiveTuple, offer: OfferedFeatures) -> hmac::Tag {
        let mut context = self.context(made / ROTATION);
        context.update(&made.to_be_bytes());
        context.update(&offer.features());
        for algorithm in offer.algorithms {
            context.update(&algorithm.value());
        }
        match client.client.ip() {
            IpAddr::V4(ip) => context.update(&ip.octets()),
            IpAddr::V6(ip) => context.update(&ip.octets()),
        }
        context.update(&client.client.port().to_be_bytes());
        context.update(&[u8::from(client.transport.is_stream())]);
        context.sign()
    }
}

/// Derives the key of an epoch.
fn derived(master: &hmac::Key, epoch: u32) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(master, &epoch.to_be_bytes()).as_ref())
}

/// Returns the length of a client's nonce before encoding: without the port for datagrams, whose source may be forged.
fn length(client: &FiveTuple) -> usize {
    if client.transport.is_stream() { PORT_END } else { TAG_END }
}

/// Decodes a nonce.
fn open(client: &FiveTuple, offer: OfferedFeatures, nonce: &[u8]) -> Option<[u8; PORT_END]> {
    let (features, text) = nonce.strip_prefix(COOKIE.as_bytes())?.split_first_chunk::<4>()?;
    let mut bytes = [0; PORT_END];
    let length = length(client);
    let whole = features[..] == *BASE64.encode(&offer.features()).as_bytes()
        && BASE64URL_NOPAD.decode_len(text.len()) == Ok(length)
        && BASE64URL_NOPAD.decode_mut(text, &mut bytes[..length]) == Ok(length);
    whole.then_some(bytes)
}

/// Returns the Unix time in 32 bits, which is compared modulo 2^32.
fn seconds(now: Now) -> u32 {
    (now.unix & u64::from(u32::MAX)) as u32
}
