//! What the probes of a diagnosis have seen.

use super::http_answer::HttpAnswer;
use super::nat_behavior::NatObservations;
use crate::agent::ServerName;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The result of one probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It works; the round-trip time.
    Works(Duration),
    Failed(Failure),
    /// It was not tried, for this reason.
    NotTested(&'static str),
}

impl Outcome {
    pub(crate) fn works(&self) -> bool {
        matches!(self, Self::Works(_))
    }

    pub(super) fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Failed(failure) => Some(failure),
            Self::Works(_) | Self::NotTested(_) => None,
        }
    }

    pub(super) fn round_trip(&self) -> Option<Duration> {
        match self {
            Self::Works(time) => Some(*time),
            Self::Failed(_) | Self::NotTested(_) => None,
        }
    }
}

impl From<Result<Duration, Failure>> for Outcome {
    fn from(result: Result<Duration, Failure>) -> Self {
        result.map_or_else(Self::Failed, Self::Works)
    }
}

/// What is there in place of the WebSocket of a ginnel server.
pub(super) const NO_WEBSOCKET: &str = "no WebSocket of ginnel answers";

/// Why a probe failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    #[error("refused")]
    Refused,
    #[error("no answer")]
    TimedOut,
    #[error("no route")]
    NoRoute,
    #[error("name not found")]
    NameNotFound,
    #[error("certificate not trusted")]
    Certificate(String),
    #[error("{0}")]
    Proxy(String),
    /// The server answers, but does not accept the key, or needs one.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// Something answers that is no such server, or the connection broke.
    #[error("{0}")]
    Answer(String),
}

impl Failure {
    /// Returns its name in JSON.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::NoRoute => "no_route",
            Self::NameNotFound => "name_not_found",
            Self::Certificate(_) => "certificate",
            Self::Proxy(_) => "proxy",
            Self::Unauthorized(_) => "unauthorized",
            Self::Answer(_) => "answer",
        }
    }
}

/// One server by each transport.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerObservations {
    pub(crate) name: ServerName,
    /// Its addresses; none if its name cannot be resolved here.
    pub(super) addresses: Vec<SocketAddr>,
    /// The proxy of its TCP connections.
    pub(super) proxy: Option<String>,
    pub(super) stun_v4: Outcome,
    pub(super) stun_v6: Outcome,
    /// This host as the server sees it.
    pub(super) mapped: Vec<IpAddr>,
    pub(super) tcp: Outcome,
    /// TLS on port 443.
    pub(super) tls: Outcome,
    pub(super) turn_udp: Outcome,
    pub(super) turn_tcp: Outcome,
    pub(super) turn_tls: Outcome,
    pub(super) turn_websocket: Outcome,
    pub(super) signaling: Outcome,
    /// The answer to a request for the server's health.
    pub(super) http: Option<HttpAnswer>,
    /// The answer of port 80, if the port of the server is not reached.
    pub(super) port_80: Option<HttpAnswer>,
    /// Seconds by which this host's clock is ahead of the server's.
    pub(super) clock_ahead: Option<i64>,
}

impl ServerObservations {
    pub(super) fn stun_works(&self) -> bool {
        self.stun_v4.works() || self.stun_v6.works()
    }

    /// Returns whether a relayed address can be had.
    pub(super) fn relay_works(&self) -> bool {
        [&self.turn_udp, &self.turn_tcp, &self.turn_tls, &self.turn_websocket].into_iter().any(Outcome::works)
    }

    /// Returns whether the relay was reached but needs credentials.
    pub(super) fn relay_needs_key(&self) -> bool {
        !self.relay_works()
            && [&self.turn_udp, &self.turn_tcp, &self.turn_tls, &self.turn_websocket]
                .into_iter()
                .any(|outcome| matches!(outcome, Outcome::Failed(Failure::Unauthorized(_))))
    }

    /// Returns whether anything of the server was reached.
    pub(super) fn is_reached(&self) -> bool {
        let is_http = self.http.as_ref().is_some_and(HttpAnswer::is_healthy);
        let is_refused = matches!(self.signaling, Outcome::Failed(Failure::Unauthorized(_)));
        let has_signaling = self.signaling.works() || is_refused;
        is_http || has_signaling || self.stun_works() || self.relay_works() || self.relay_needs_key()
    }
}

/// What the router of the default route offers by one protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PortMappingSupport {
    /// No router is known, or this host needs none.
    NotTested,
    NoAnswer,
    /// It answers, but maps no port.
    Refuses,
    /// Its own outer address is one that the internet does not reach: another NAT is in front of it.
    BehindNat(IpAddr),
    Maps {
        external: SocketAddr,
        lifetime: Duration,
    },
}

impl PortMappingSupport {
    pub(super) fn maps(self) -> bool {
        matches!(self, Self::Maps { .. })
    }
}

/// Port mapping by each protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PortMappingObservations {
    pub(crate) upnp: PortMappingSupport,
    pub(crate) pcp: PortMappingSupport,
    pub(crate) nat_pmp: PortMappingSupport,
}

impl PortMappingObservations {
    pub(crate) const NOT_TESTED: Self = Self {
        upnp: PortMappingSupport::NotTested,
        pcp: PortMappingSupport::NotTested,
        nat_pmp: PortMappingSupport::NotTested,
    };

    pub(super) fn all(&self) -> [PortMappingSupport; 3] {
        [self.pcp, self.nat_pmp, self.upnp]
    }
}

/// How long a mapping of UDP lives without packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MappingLifetime {
    /// It was alive after the first time, and gone after the second.
    Between(Duration, Duration),
    /// It was alive after the longest time that was measured.
    AtLeast(Duration),
    /// The NAT or the server does not allow to measure it.
    Unknown,
}

impl fmt::Display for MappingLifetime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Between(alive, gone) => write!(f, "{} to {} s", alive.as_secs(), gone.as_secs()),
            Self::AtLeast(alive) => write!(f, "at least {} s", alive.as_secs()),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

/// Everything that the probes have seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Observations {
    /// The addresses of this host's interfaces, without those of its loopback interface and its links.
    pub(crate) local: Vec<IpAddr>,
    /// The network has a NAT64.
    pub(super) nat64: bool,
    pub(super) nat: NatObservations,
    pub(super) port_mapping: PortMappingObservations,
    pub(crate) servers: Vec<ServerObservations>,
    /// Only if it was asked for.
    pub(crate) mapping_lifetime: Option<MappingLifetime>,
}

impl Observations {
    pub(super) fn any_server(&self, is_so: impl Fn(&ServerObservations) -> bool) -> bool {
        self.servers.iter().any(is_so)
    }

    /// Returns the address of one family as a server sees it.
    pub(super) fn mapped(&self, is_v4: bool) -> Option<IpAddr> {
        self.servers.iter().flat_map(|server| &server.mapped).copied().find(|ip| ip.is_ipv4() == is_v4)
    }

    /// Returns the answer of something that stands in the place of a server.
    pub(super) fn captive_portal(&self) -> Option<&HttpAnswer> {
        let replaced = |server: &ServerObservations| !server.is_reached();
        let answers = self
            .servers
            .iter()
            .filter(|server| replaced(server))
            .flat_map(|server| [&server.http, &server.port_80]);
        answers.flatten().find(|answer| !answer.is_healthy())
    }
}
