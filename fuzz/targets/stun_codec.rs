//! The STUN codec: no bytes make it panic, what it reads it writes again, and it believes nothing it must not.

use ginnel::stun::{Attributes, Builder, HEADER_LEN, Key, MAGIC_COOKIE, Message, attr, long_term_digest};

/// Longer input has no room left for what is added to it.
const MAX_INPUT: usize = 60_000;

/// Reads `data` as it is, and again with a header that is mended to fit.
pub(crate) fn run(data: &[u8]) {
    if data.len() > MAX_INPUT {
        return;
    }
    check(data);
    if data.len() >= HEADER_LEN {
        let mut mended = data[..data.len() / 4 * 4].to_vec();
        let body = u16::try_from(mended.len() - HEADER_LEN).unwrap();
        mended[0] &= 0x3F;
        mended[2..4].copy_from_slice(&body.to_be_bytes());
        mended[4..8].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
        check(&mended);
    }
}

fn check(bytes: &[u8]) {
    let Ok(message) = Message::parse(bytes) else { return };
    let attributes = message.unverified();
    getters(&message, &attributes);
    let keys = [Key::short_term("secret"), Key::from_bytes(&long_term_digest("user", "realm", "secret"))];
    for key in &keys {
        let verified = message.verify(key);
        assert!(verified.is_none() || message.has_integrity());
        assert!(verified.is_none_or(|verified| verified.iter().eq(attributes.iter())));
    }
    let plain = rebuild(&message).finish();
    assert_eq!(plain, rebuild(&message).finish(), "the same attributes make the same bytes");
    assert_same(&plain, &message);
    assert!(padding(&plain).all(|byte| *byte == 0));
    assert!(plain.len() <= bytes.len());
    if plain.len() == bytes.len() && padding(bytes).all(|byte| *byte == 0) {
        assert_eq!(plain, bytes);
    }
    signed(&message, &keys);
}

/// Calls everything that reads.
fn getters(message: &Message<'_>, attributes: &Attributes<'_>) {
    let _ = (message.username(), message.realm(), message.nonce(), attributes.error_code());
    assert!(attributes.unknown(&[attr::SOFTWARE]).iter().all(|kind| *kind < 0x8000));
    for (kind, value) in attributes.iter() {
        assert!(attributes.get(kind).is_some());
        assert!(attributes.u32(kind).is_none() || attributes.get(kind).is_some_and(|first| first.len() == 4));
        if let Ok(Some(address)) = attributes.xor_address(kind) {
            let bytes = Builder::new(message.class(), message.method(), message.transaction())
                .xor_address(kind, address)
                .finish();
            // Some types mean something to the parser itself.
            let again =
                Message::parse(&bytes).ok().and_then(|again| again.unverified().xor_address(kind).ok()?);
            assert!(again.is_none_or(|again| again == address));
        }
        assert!(value.len() <= usize::from(u16::MAX));
    }
}

fn rebuild(message: &Message<'_>) -> Builder {
    let builder = Builder::new(message.class(), message.method(), message.transaction());
    message.unverified().iter().fold(builder, |builder, (kind, value)| builder.attribute(kind, value))
}

fn assert_same(bytes: &[u8], as_message: &Message<'_>) {
    let again = Message::parse(bytes).expect("what is built can be read");
    assert_eq!(again.class(), as_message.class());
    assert_eq!(again.method(), as_message.method());
    assert_eq!(again.transaction(), as_message.transaction());
    assert!(
        again.unverified().iter().eq(as_message.unverified().iter()),
        "attributes and their order are kept"
    );
}

/// The bytes between an attribute's value and the next attribute, of a sound message.
fn padding(bytes: &[u8]) -> impl Iterator<Item = &u8> {
    let mut rest = &bytes[HEADER_LEN..];
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_be_bytes([*rest.get(2)?, *rest.get(3)?]));
        let (attribute, tail) = rest.split_at(4 + len.next_multiple_of(4));
        rest = tail;
        Some(&attribute[4 + len..])
    })
    .flatten()
}

/// The same message under each key is believed by that key alone, and not when a bit of it has changed.
fn signed(message: &Message<'_>, keys: &[Key; 2]) {
    for (key, other) in [(&keys[0], &keys[1]), (&keys[1], &keys[0])] {
        let mut bytes = rebuild(message).integrity(key).finish();
        assert_same(&bytes, message);
        let again = Message::parse(&bytes).unwrap();
        assert!(again.verify(key).is_some() && again.verify(other).is_none());
        let sealed = rebuild(message).integrity(key).fingerprint().finish();
        assert_same(&sealed, message);
        let again = Message::parse(&sealed).unwrap();
        assert!(again.has_fingerprint() && again.verify(key).is_some());
        let at = usize::from(bytes[HEADER_LEN - 1]) % (bytes.len() - 4) + 4;
        bytes[at] ^= 1;
        assert!(Message::parse(&bytes).ok().and_then(|changed| changed.verify(key)).is_none());
    }
}
