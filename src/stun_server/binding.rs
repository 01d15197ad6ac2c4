//! Binding without the attributes of RFC 5780.

use crate::stun::{Builder, Class, Message, Method, attr};
use std::net::SocketAddr;

/// Comprehension-required attributes that a Binding request may have: ICE and other clients send credentials, which a public server
/// ignores.
pub(super) const KNOWN: [u16; 5] =
    [attr::USERNAME, attr::REALM, attr::NONCE, attr::PASSWORD_ALGORITHM, attr::USERHASH];

/// Makes the response to a Binding request from `client`; `None` for other messages.
///
/// A client of RFC 3489, without the magic cookie, gets MAPPED-ADDRESS, any other XOR-MAPPED-ADDRESS. Unknown comprehension-required
/// attributes, among them those of RFC 5780 and RESPONSE-ADDRESS (S1-A2), get 420.
#[must_use]
pub fn respond(message: &Message<'_>, client: SocketAddr) -> Option<Vec<u8>> {
    is_request(message).then(|| {
        let unknown = message.unverified().unknown(&KNOWN);
        let answer = if unknown.is_empty() {
            mapped(message, client, Vec::new())
        } else {
            unknown_attributes(message, &unknown)
        };
        finish(message, answer)
    })
}

pub(super) fn is_request(message: &Message<'_>) -> bool {
    (message.class(), message.method()) == (Class::Request, Method::BINDING)
}

/// Begins a success response in `buffer` with the client's address in the form that it supports.
pub(super) fn mapped(message: &Message<'_>, client: SocketAddr, buffer: Vec<u8>) -> Builder {
    let success = Builder::reuse(buffer, Class::Success, Method::BINDING, message.transaction());
    if message.transaction().is_classic() {
        success.plain_address(attr::MAPPED_ADDRESS, client)
    } else {
        success.xor_address(attr::XOR_MAPPED_ADDRESS, client)
    }
}

/// Begins an error response without a reason phrase: with one it would be longer than 1.3 times the request, whose source may be
/// forged.
pub(super) fn error(message: &Message<'_>, code: u16) -> Builder {
    Builder::new(Class::Error, Method::BINDING, message.transaction()).error(code, "")
}

pub(super) fn unknown_attributes(message: &Message<'_>, kinds: &[u16]) -> Builder {
    error(message, 420).unknown_attributes(kinds)
}

/// Completes the response, with FINGERPRINT if the request has it.
pub(super) fn finish(message: &Message<'_>, answer: Builder) -> Vec<u8> {
    if message.has_fingerprint() { answer.fingerprint().finish() } else { answer.finish() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stun::TransactionId;

    const CLIENT: &str = "192.0.2.5:4000";

    fn respond(request: Builder) -> Option<Vec<u8>> {
        super::respond(&Message::parse(&request.finish()).unwrap(), CLIENT.parse().unwrap())
    }

    fn binding() -> Builder {
        Builder::new(Class::Request, Method::BINDING, TransactionId::new([4; 12]))
    }

    #[test]
    fn a_client_learns_its_address_and_nothing_more() {
        let bytes = respond(binding()).unwrap();
        assert_eq!(bytes.len(), 32);
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(message.class(), Class::Success);
        assert_eq!(
            message.unverified().xor_address(attr::XOR_MAPPED_ADDRESS),
            Ok(Some(CLIENT.parse().unwrap()))
        );
    }

    #[test]
    fn a_fingerprint_is_answered_with_one() {
        let bytes = respond(binding().fingerprint()).unwrap();
        assert!(Message::parse(&bytes).unwrap().has_fingerprint());
    }

    #[test]
    fn a_classic_client_gets_the_plain_address() {
        let bytes = respond(Builder::new(Class::Request, Method::BINDING, TransactionId([8; 16]))).unwrap();
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(message.transaction(), TransactionId([8; 16]));
        assert_eq!(
            message.unverified().get(attr::MAPPED_ADDRESS),
            Some(&[0, 1, 0x0F, 0xA0, 192, 0, 2, 5][..])
        );
    }

    #[test]
    fn the_answer_is_never_sent_elsewhere() {
        let bytes = respond(binding().attribute(0x0002, &[0, 1, 0, 80, 8, 8, 8, 8])).unwrap();
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(message.unverified().error_code(), Some(420));
        assert_eq!(message.unverified().get(attr::UNKNOWN_ATTRIBUTES), Some(&[0, 2][..]));
    }

    #[test]
    fn over_a_connection_the_wishes_are_unknown_attributes() {
        for kind in [attr::CHANGE_REQUEST, attr::PADDING, attr::RESPONSE_PORT] {
            let bytes = respond(binding().attribute(kind, &[0; 4])).unwrap();
            let message = Message::parse(&bytes).unwrap();
            assert_eq!(message.unverified().error_code(), Some(420));
            assert_eq!(message.unverified().get(attr::UNKNOWN_ATTRIBUTES), Some(&kind.to_be_bytes()[..]));
        }
    }

    #[test]
    fn indications_and_responses_get_no_answer() {
        for class in [Class::Indication, Class::Success, Class::Error] {
            assert_eq!(respond(Builder::new(class, Method::BINDING, TransactionId::new([4; 12]))), None);
        }
    }
}
