//! The server side of WebSocket ([RFC 6455](https://www.rfc-editor.org/rfc/rfc6455)) without extensions, for `/ws`, `/turn` and `/gateway`.
//!
//! | module | content | |
//! | --- | --- | --- |
//! | `frame` | frames in both directions; passes payload on as it arrives | pure |
//! | `message` | collects whole messages | pure |
//! | [`upgrade`] | the opening handshake, and reads without a buffer | tokio |
//!
//! A connection between two messages owns no buffer: nearly all connections are idle.

mod frame;
mod message;
pub(crate) mod upgrade;

pub(crate) use frame::{
    CloseCode, Event, FrameReader, MessageType, write_binary, write_binary_header, write_close,
    write_close_reason, write_ping, write_pong, write_text,
};
pub(crate) use message::{Message, MessageReader};
