//! Settings of a TURN client.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A user's name and password ([RFC 8489 section 9.2](https://www.rfc-editor.org/rfc/rfc8489#section-9.2)).
#[derive(Clone, PartialEq, Eq)]
pub struct LongTermCredentials {
    pub(crate) user: String,
    pub(crate) password: String,
}

impl LongTermCredentials {
    /// Takes the value of USERNAME and the password.
    #[must_use]
    pub fn new(user: &str, password: &str) -> Self {
        Self { user: user.to_owned(), password: password.to_owned() }
    }
}

impl fmt::Debug for LongTermCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LongTermCredentials").finish_non_exhaustive()
    }
}

/// How messages reach the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ClientTransport {
    /// In datagrams (UDP, DTLS), which can be lost: requests are retransmitted.
    #[default]
    Datagram,
    /// On a stream (TCP, TLS, WebSocket): nothing is retransmitted, ChannelData is padded.
    Stream,
}

/// The address families of the relayed transport addresses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AddressFamilies {
    /// IPv4.
    #[default]
    V4,
    /// IPv6.
    V6,
    /// Both, of which the server may refuse one ([RFC 8656 section 7.1](https://www.rfc-editor.org/rfc/rfc8656#section-7.1)).
    Both,
}

/// The settings of a [`TurnClient`](super::TurnClient).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TurnClientConfig {
    /// The credentials; clients may share them.
    pub credentials: Arc<LongTermCredentials>,
    /// How messages reach the server. Default: datagrams.
    pub transport: ClientTransport,
    /// Which relayed transport addresses are requested. Default: IPv4.
    pub families: AddressFamilies,
    /// The lifetime that is requested. Default: the server's, 600 s.
    pub lifetime: Option<Duration>,
    /// Whether a mobility ticket is requested, for [`TurnClient::migrate`](super::TurnClient::migrate). Default: no.
    pub mobility: bool,
    /// The time before the first retransmission; each later one takes twice as long. Default: 500 ms (RFC 8489 section 6.2.1).
    pub first_wait: Duration,
    /// How often a request is sent over datagrams. Default: 7.
    pub transmissions: u32,
    /// How long a request may take on a stream. Default: 39.5 s (RFC 8489 section 6.2.2).
    pub stream_wait: Duration,
    /// The largest number of addresses with a permission, and of channels. Default: 128.
    pub max_peers: usize,
}

impl TurnClientConfig {
    /// Takes the credentials, and the defaults for everything else.
    #[must_use]
    pub fn new(credentials: Arc<LongTermCredentials>) -> Self {
        Self {
            credentials,
            transport: ClientTransport::default(),
            families: AddressFamilies::default(),
            lifetime: None,
            mobility: false,
            first_wait: Duration::from_millis(500),
            transmissions: 7,
            stream_wait: Duration::from_millis(39_500),
            max_peers: 128,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_holds_neither_name_nor_password() {
        let text =
            format!("{:?}", TurnClientConfig::new(Arc::new(LongTermCredentials::new("alice", "secret"))));
        assert!(!text.contains("alice") && !text.contains("secret"), "{text}");
    }
}
