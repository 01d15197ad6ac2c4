//! Foreign judges: programs of others that use the server as their STUN, TURN and signalling server.

mod chromium;
mod client_module;
mod devtools;
mod longterm;
mod natdiscovery;
mod node;
mod office;
mod pages;
mod recovery;
mod relaying;
mod stunclient;
mod uclient;
mod webrtc_turn;
