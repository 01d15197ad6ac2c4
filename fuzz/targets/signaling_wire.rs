//! The signalling codec: no bytes make it panic, what it reads it writes, and reads again the same.

use ginnel::internals::signaling::wire::{self, Message};

/// Reads `data` as a datagram or a text.
pub(crate) fn run(data: &[u8]) {
    let Ok(message) = wire::decode(data) else { return };
    let text = encode(&message);
    let again = wire::decode(text.as_bytes()).expect("what is written can be read");
    assert_eq!(again, message, "{text}");
    assert_eq!(encode(&again), text, "the same message makes the same text");
}

fn encode(message: &Message) -> String {
    match message {
        Message::Request(request) => request.encode(),
        Message::Response(response) => response.encode(),
    }
}
