//! stun_server.
