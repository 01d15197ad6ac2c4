//! The relay: [RFC 8656](https://www.rfc-editor.org/rfc/rfc8656).

pub mod auth;
