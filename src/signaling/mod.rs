//! Signalling: a server that introduces two clients to each other, over JSON in UDP datagrams or WebSocket texts.

mod envelope;
mod message;
pub mod wire;
