//! Judges: programs of others that use the server for STUN, TURN and signalling.

mod chromium;
mod client_module;
mod devtools;
mod ice;
mod longterm;
mod messages;
mod natdiscovery;
mod node;
mod pages;
mod port_443;
mod recovery;
mod relaying;
mod stunclient;
mod uclient;
mod webrtc_turn;
