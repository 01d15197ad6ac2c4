//! What coturn 4.6 or 4.17 gets wrong and this server must not.

use std::net::Ipv4Addr;

use ginnel::stun::{Builder, Class, Message, Method, attr};

use crate::house::House;
use crate::turn_client::TurnClient;

const METHODS: [Method; 5] =
    [Method::BINDING, Method::ALLOCATE, Method::REFRESH, Method::CREATE_PERMISSION, Method::CHANNEL_BIND];

fn house_and_client() -> (House, TurnClient) {
    let house = House::on_loopback("allow_peers = [\"127.0.0.1/32\"]");
    let client = TurnClient::allocate(Ipv4Addr::LOCALHOST, house.address);
    (house, client)
}

/// What every one of [`METHODS`] needs, so that nothing else is wrong with the request.
fn complete(request: Builder) -> Builder {
    request
        .attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
        .attribute(attr::CHANNEL_NUMBER, &[0x40, 0, 0, 0])
        .xor_address(attr::XOR_PEER_ADDRESS, ([127, 0, 0, 1], 9).into())
}

fn error_code(answer: &[u8]) -> Option<u16> {
    Message::parse(answer).unwrap().unverified().error_code()
}

#[test]
fn an_attribute_that_runs_past_the_message_is_no_success() {
    let (_house, mut client) = house_and_client();
    for method in METHODS {
        let sound = match method {
            Method::BINDING => client.begin(method),
            _ => complete(client.begin(method)),
        };
        // The last attribute says that it is longer than the message, with and without credentials behind what it covers.
        let mut unsigned = sound.clone().attribute(attr::LIFETIME, &[0, 0, 2, 88]).finish();
        let length_at = unsigned.len() - 5;
        unsigned[length_at] = 200;
        let mut signed = client.sign(sound.attribute(attr::LIFETIME, &[0, 0, 2, 88])).finish();
        let integrity_length_at = signed.len() - 21;
        assert_eq!(signed[integrity_length_at], 20);
        signed[integrity_length_at] = 24;
        for message in [unsigned, signed] {
            let answer = client.ask_once(&message);
            let class = answer.as_deref().map(|answer| Message::parse(answer).unwrap().class());
            assert_ne!(class, Some(Class::Success), "{method:?}");
        }
    }
    // It was not silent for another reason.
    let refreshed = client.ask_signed(Method::REFRESH, |request| request);
    assert_eq!(Message::parse(&refreshed).unwrap().class(), Class::Success);
}

#[test]
fn an_empty_or_odd_peer_address_is_a_bad_request() {
    let (_house, mut client) = house_and_client();
    let whole = [0, 1, 0x12, 0x12, 0x5e, 0x12, 0xa4, 0x43];
    for method in [Method::CREATE_PERMISSION, Method::CHANNEL_BIND] {
        for value in
            [&[][..], &whole[..4], &whole[..7], &[&whole[..], &[0; 4]].concat(), &[0, 3, 0, 9, 127, 0, 0, 1]]
        {
            let answer = client.ask_signed(method, |request| {
                request
                    .attribute(attr::CHANNEL_NUMBER, &[0x40, 0, 0, 0])
                    .attribute(attr::XOR_PEER_ADDRESS, value)
            });
            assert_eq!(error_code(&answer), Some(400), "{method:?} {value:?}");
        }
        // A sound one beside it does not make it better.
        if method == Method::CREATE_PERMISSION {
            let answer =
                client.ask_signed(method, |request| complete(request).attribute(attr::XOR_PEER_ADDRESS, &[]));
            assert_eq!(error_code(&answer), Some(400));
        }
        let answer = client.ask_signed(method, complete);
        assert_eq!(Message::parse(&answer).unwrap().class(), Class::Success, "{method:?}");
    }
}
