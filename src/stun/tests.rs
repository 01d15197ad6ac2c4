use super::*;
use proptest::prelude::*;
use std::net::SocketAddr;

/// RFC 5769 section 2.1: sample request, short-term password "VOkJxbRl1RmTxUk/WvJxBt".
const SAMPLE_REQUEST: &str = "000100582112a442b7e7a701bc34d686fa87dfae802200105354554e207465737420636c69656e74002400046e0001ff80290008932ff9b151263b36000600096576746a3a68367659202020000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a280280004e57a3bcf";
/// RFC 5769 section 2.2: sample IPv4 response, same password, mapped address 192.0.2.1:32853.
const SAMPLE_RESPONSE_V4: &str = "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000080001a147e112a643000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96";
/// RFC 5769 section 2.3: sample IPv6 response, mapped address [2001:db8:1234:5678:11:2233:4455:6677]:32853.
const SAMPLE_RESPONSE_V6: &str = "010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d900080014a382954e4be67bf11784c97c8292c275bfe3ed4180280004c8fb0b4c";
/// RFC 5769 section 2.4: sample request with long-term credentials.
const SAMPLE_LONG_TERM: &str = "000100602112a44278ad3433c6ad72c029da412e00060012e3839ee38388e383aae38383e382afe382b900000015001c662f2f3439396b39353464364f4c33346f4c394653547679363473410014000b6578616d706c652e6f72670000080014f67024656dd64a3e02b8e0712e85c9a28ca89666";
/// RFC 8489 appendix B.1 as erratum 6268 corrects it: USERHASH, PASSWORD-ALGORITHM SHA-256, MESSAGE-INTEGRITY-SHA256.
const SAMPLE_SHA256: &str = "000100902112a44278ad3433c6ad72c029da412e001e00204a3cf38fef6992bda952c6780417da0f24819415569e60b205c46e41407f1704001500296f624d61744a6f733241414143662f2f3439396b39353464364f4c33346f4c394653547679363473410000000014000b6578616d706c652e6f726700001d000400020000001c0020b5c7bf005b6c52a21c51c5e892f81924136296cb927c43149309278cc6518e65";
const MATRIX: &str = "\u{30DE}\u{30C8}\u{30EA}\u{30C3}\u{30AF}\u{30B9}";
const PASSWORD: &str = "VOkJxbRl1RmTxUk/WvJxBt";

fn hex(text: &str) -> Vec<u8> {
    data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap()
}

#[test]
fn the_request_of_rfc_5769_verifies_and_a_changed_bit_does_not() {
    let bytes = hex(SAMPLE_REQUEST);
    let message = Message::parse(&bytes).unwrap();
    assert_eq!((message.class(), message.method()), (Class::Request, Method::BINDING));
    assert_eq!(message.username(), Some("evtj:h6vY"));
    assert!(message.has_fingerprint());
    assert!(message.verify(&Key::short_term(PASSWORD)).is_some());
    assert!(message.verify(&Key::short_term("other")).is_none());
    let mut changed = bytes.clone();
    changed[30] ^= 1;
    assert_eq!(Message::parse(&changed).err(), Some(ParseError::Fingerprint));
}

#[test]
fn the_responses_of_rfc_5769_contain_their_mapped_addresses() {
    for (sample, expected) in [
        (SAMPLE_RESPONSE_V4, "192.0.2.1:32853"),
        (SAMPLE_RESPONSE_V6, "[2001:db8:1234:5678:11:2233:4455:6677]:32853"),
    ] {
        let bytes = hex(sample);
        let attributes = Message::parse(&bytes).unwrap().verify(&Key::short_term(PASSWORD)).unwrap();
        let expected: SocketAddr = expected.parse().unwrap();
        assert_eq!(attributes.xor_address(attr::XOR_MAPPED_ADDRESS), Ok(Some(expected)));
    }
}

#[test]
fn the_long_term_request_of_rfc_5769_verifies_under_its_digest() {
    let bytes = hex(SAMPLE_LONG_TERM);
    let message = Message::parse(&bytes).unwrap();
    let user = MATRIX;
    assert_eq!(message.username(), Some(user));
    assert_eq!(
        (message.realm(), message.nonce()),
        (Some("example.org"), Some("f//499k954d6OL34oL9FSTvy64sA"))
    );
    assert!(message.verify(&Key::from_bytes(&long_term_digest(user, "example.org", "TheMatrIX"))).is_some());
}

#[test]
fn the_sha_256_request_of_rfc_8489_verifies_under_its_digest_and_names_its_user_by_hash() {
    let bytes = hex(SAMPLE_SHA256);
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.identity(attr::USERHASH), Some(&userhash(MATRIX, "example.org")[..]));
    let algorithm = message.identity(attr::PASSWORD_ALGORITHM).and_then(PasswordAlgorithm::read);
    assert_eq!(algorithm, Some(PasswordAlgorithm::Sha256));
    assert_eq!(message.nonce(), Some("obMatJos2AAACf//499k954d6OL34oL9FSTvy64sA"));
    let digest = long_term_digest_sha256(MATRIX, "example.org", "TheMatrIX");
    assert!(message.verify(&Key::new(Integrity::Sha256, &digest)).is_some());
    assert!(
        message.verify(&Key::new(Integrity::Sha1, &digest)).is_none(),
        "the other attribute is not there"
    );
    let mut changed = bytes.clone();
    changed[30] ^= 1;
    assert!(Message::parse(&changed).unwrap().verify(&Key::new(Integrity::Sha256, &digest)).is_none());
}

#[test]
fn own_sha_256_test_vectors_verify() {
    // Made with Python's hashlib and hmac, so that a mistake of ours cannot prove itself.
    assert_eq!(long_term_digest_sha256("alice", "ginnel", "wonderland")[..8], hex("e8f47d14a51638a3"));
    assert_eq!(userhash("alice", "ginnel")[..8], hex("5ee71042c096824e"));
    let key = Key::new(Integrity::Sha256, &long_term_digest_sha256("alice", "ginnel", "wonderland"));
    let bytes = Builder::new(Class::Request, Method::REFRESH, TransactionId::new([7; 12]))
        .attribute(attr::USERHASH, &userhash("alice", "ginnel"))
        .attribute(attr::PASSWORD_ALGORITHM, &PasswordAlgorithm::Sha256.value())
        .integrity(&key)
        .finish();
    assert_eq!(
        bytes[bytes.len() - 32..],
        hex("4f265d2dade85adf8694077d4575a80d778f84dbf49d90d18c8449ecc572dc4d")
    );
}

#[test]
fn each_key_verifies_its_own_integrity_attribute_of_two() {
    let (sha1, sha256) = (Key::short_term("k"), Key::new(Integrity::Sha256, b"k"));
    let begin = || Builder::new(Class::Request, Method::REFRESH, TransactionId::new([7; 12]));
    let bytes = begin().integrity(&sha1).attribute(attr::LIFETIME, &[0; 4]).integrity(&sha256).finish();
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.strongest_integrity(), Some(Integrity::Sha256));
    for key in [&sha1, &sha256] {
        let attributes = message.verify(key).unwrap();
        assert_eq!(attributes.get(attr::LIFETIME), None, "the boundary is the first of the two");
    }
    let turned = begin().integrity(&sha256).integrity(&sha1).finish();
    let turned = Message::parse(&turned).unwrap();
    assert!(turned.verify(&sha256).is_some() && turned.verify(&sha1).is_none());
}

#[test]
fn a_truncated_sha_256_value_is_accepted_only_if_the_usage_allows_it() {
    let key = Key::new(Integrity::Sha256, b"k");
    for (kept, whole, cut) in [
        (32, true, true),
        (28, false, true),
        (16, false, true),
        (12, false, false),
        (18, false, false),
        (36, false, false),
    ] {
        let begin = Builder::new(Class::Request, Method::REFRESH, TransactionId::new([7; 12]));
        let mut tag = integrity(&key, &begin.clone().finish(), kept).as_ref().to_vec();
        tag.resize(kept, 0);
        let bytes = begin.attribute(attr::MESSAGE_INTEGRITY_SHA256, &tag).finish();
        let message = Message::parse(&bytes).unwrap();
        let verified = (message.verify(&key).is_some(), message.verify_truncated(&key, 16).is_some());
        assert_eq!(verified, (whole, cut), "{kept} bytes");
    }
}

#[test]
fn a_mapped_address_is_decoded_as_it_was_encoded() {
    for address in ["192.0.2.9:3478", "[2001:db8::9]:5349"] {
        let address: SocketAddr = address.parse().unwrap();
        let bytes = Builder::new(Class::Error, Method::ALLOCATE, TransactionId::new([7; 12]))
            .plain_address(attr::ALTERNATE_SERVER, address)
            .finish();
        let attributes = Message::parse(&bytes).unwrap().unverified();
        assert_eq!(attributes.plain_address(attr::ALTERNATE_SERVER), Ok(Some(address)));
    }
}

#[test]
fn attributes_after_the_integrity_attribute_are_ignored() {
    let key = Key::short_term("k");
    let bytes = Builder::new(Class::Request, Method::REFRESH, TransactionId::new([7; 12]))
        .integrity(&key)
        .attribute(attr::LIFETIME, &600_u32.to_be_bytes())
        .finish();
    let attributes = Message::parse(&bytes).unwrap().verify(&key).unwrap();
    assert_eq!(attributes.u32(attr::LIFETIME), None);
}

#[test]
fn an_attribute_that_exceeds_the_message_is_refused() {
    let mut bytes = Builder::new(Class::Request, Method::BINDING, TransactionId::new([1; 12]))
        .attribute(attr::SOFTWARE, b"four")
        .finish();
    bytes[23] = 9;
    assert_eq!(Message::parse(&bytes).err(), Some(ParseError::Attribute));
}

#[test]
fn unknown_comprehension_required_attributes_are_listed_up_to_a_limit() {
    let mut builder = Builder::new(Class::Request, Method::BINDING, TransactionId::new([1; 12]));
    for kind in 0x7000..0x7020 {
        builder = builder.attribute(kind, b"");
    }
    let bytes = builder.attribute(0x8F00, b"").finish();
    let unknown = Message::parse(&bytes).unwrap().unverified().unknown(&[0x7001]);
    assert_eq!(unknown.len(), 8);
    assert_eq!(unknown[..2], [0x7000, 0x7002]);
}

fn any_class() -> impl Strategy<Value = Class> {
    prop_oneof![Just(Class::Request), Just(Class::Indication), Just(Class::Success), Just(Class::Error)]
}

proptest! {
    #[test]
    fn the_parser_does_not_panic_on_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(message) = Message::parse(&bytes) {
            let attributes = message.unverified();
            let _ = (attributes.iter().count(), attributes.error_code(), message.username());
            let _ = attributes.xor_addresses(attr::XOR_PEER_ADDRESS).count();
            let _ = message.verify(&Key::short_term("x"));
        }
    }

    #[test]
    fn a_built_message_is_parsed_as_it_was_built(
        class in any_class(), method in 0_u16..0x1000, id in any::<[u8; 12]>(), address in any::<SocketAddr>(),
        value in proptest::collection::vec(any::<u8>(), 0..40), fingerprinted in any::<bool>(),
    ) {
        let key = Key::short_term("secret");
        let mut builder = Builder::new(class, Method(method), TransactionId::new(id))
            .xor_address(attr::XOR_PEER_ADDRESS, address)
            .attribute(attr::DATA, &value)
            .integrity(&key);
        if fingerprinted {
            builder = builder.fingerprint();
        }
        let bytes = builder.finish();
        let message = Message::parse(&bytes).unwrap();
        prop_assert_eq!((message.class(), message.method().0), (class, method));
        prop_assert_eq!(message.transaction(), TransactionId::new(id));
        prop_assert_eq!(message.has_fingerprint(), fingerprinted);
        let attributes = message.verify(&key).unwrap();
        let read = attributes.xor_address(attr::XOR_PEER_ADDRESS).unwrap().unwrap();
        prop_assert_eq!((read.ip(), read.port()), (address.ip(), address.port()));
        prop_assert_eq!(attributes.get(attr::DATA), Some(&value[..]));
    }

    #[test]
    fn the_stun_crate_parses_built_messages(id in any::<[u8; 12]>(), port in any::<u16>(), ip in any::<[u8; 4]>()) {
        use ::stun::message::Getter;
        let address = SocketAddr::from((ip, port));
        let bytes = Builder::new(Class::Success, Method::BINDING, TransactionId::new(id))
            .xor_address(attr::XOR_MAPPED_ADDRESS, address)
            .integrity(&Key::short_term("pass"))
            .fingerprint()
            .finish();
        let mut foreign = ::stun::message::Message::new();
        foreign.unmarshal_binary(&bytes).unwrap();
        let mut mapped = ::stun::xoraddr::XorMappedAddress::default();
        mapped.get_from(&foreign).unwrap();
        prop_assert_eq!(SocketAddr::new(mapped.ip, mapped.port), address);
        ::stun::integrity::MessageIntegrity::new_short_term_integrity("pass".to_owned()).check(&mut foreign).unwrap();
        ::stun::fingerprint::FINGERPRINT.check(&foreign).unwrap();
    }
}
