//! The ICE data that peers exchange through the server: description, NAT type, path in use, ICE servers.

use super::envelope::BoundedString;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// The ICE description of a peer, forwarded by the server (S0-A18); plain clients ignore it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IceDescription {
    /// ICE user name fragment.
    pub ufrag: Option<String>,
    /// ICE password.
    pub pwd: Option<String>,
    /// Candidate attribute values of RFC 8839, `candidate:…`.
    pub cands: Vec<String>,
    /// ICE options (RFC 8839 section 5.6).
    pub opts: Vec<String>,
    /// ICE role.
    pub role: Option<String>,
    /// Local addresses of the sender (S1-2).
    pub laddrs: Vec<String>,
    /// The sender's NAT type.
    pub nat: Option<NatType>,
    /// A listening TCP port (S0-A11): `tport`, in 52 `rtport`.
    pub tport: Option<u16>,
    /// An SDP, which the server does not parse.
    pub sdp: Option<String>,
}

/// The server-reflexive address of a client (S1-2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReflexiveAddress {
    /// The client's server-reflexive address.
    pub addr: SocketAddr,
    /// Whether its IP differs from all local ones (S1-3); `None` if the client has reported none.
    pub nat: Option<bool>,
}

/// A NAT by its mapping behaviour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NatType {
    /// No NAT.
    Open,
    /// One mapping for all destinations.
    Easy,
    /// One mapping per destination.
    Hard,
    /// UDP is blocked.
    Blocked,
}

/// The path that a peer reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportedPath {
    /// Direct.
    Direct,
    /// Relayed.
    Relay,
    /// No path was found.
    Failed,
}

pub(super) const NATS: [(&str, NatType); 4] = [
    ("open", NatType::Open),
    ("easy", NatType::Easy),
    ("hard", NatType::Hard),
    ("blocked", NatType::Blocked),
];
pub(super) const PATHS: [(&str, ReportedPath); 3] =
    [("direct", ReportedPath::Direct), ("relay", ReportedPath::Relay), ("failed", ReportedPath::Failed)];

pub(super) fn word<T: Copy + PartialEq>(
    table: &[(&'static str, T)],
    value: Option<T>,
) -> Option<BoundedString<16>> {
    let row = table.iter().find(|row| Some(row.1) == value)?;
    Some(BoundedString(row.0.to_owned()))
}

/// An unknown name counts as absent, so that a later version may add one.
pub(super) fn meaning<T: Copy>(table: &[(&'static str, T)], word: Option<&BoundedString<16>>) -> Option<T> {
    let word = word?;
    table.iter().find(|row| row.0 == word.0).map(|row| row.1)
}

/// One entry of a browser's `RTCConfiguration.iceServers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IceServer {
    /// `stun:` or `turn:` addresses.
    pub urls: Vec<String>,
    /// The user name of a relay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Its password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
}
