//! The address of a messaging server, and connections to it.

use super::error::ClientError;
use crate::net::dialer::{ALPN_HTTP, DialTarget, Dialer, Duplex};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Duration;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Error as WebSocketError;
use tokio_tungstenite::tungstenite::http::Uri;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

const DEFAULT_PORT: u16 = 3478;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest frame of a server: a page of its mailbox.
const MAX_FRAME: usize = 4 * 1024 * 1024;

/// The address of a messaging server: `HOST[:PORT]` or `wss://HOST[:PORT]` with TLS, `ws://HOST[:PORT]` without it. The default port is 3478.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServerUrl {
    host: String,
    port: u16,
    has_tls: bool,
}

/// A text that is no address of a messaging server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a server is HOST[:PORT], wss://HOST[:PORT] or ws://HOST[:PORT]")]
pub struct ServerUrlError;

pub(super) type Socket = WebSocketStream<Box<dyn Duplex>>;

impl ServerUrl {
    /// Returns whether connections are inside TLS.
    #[must_use]
    pub fn has_tls(&self) -> bool {
        self.has_tls
    }

    /// Returns host and port.
    #[must_use]
    pub fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// Returns host and port apart.
    #[cfg(feature = "cli")]
    pub(crate) fn host_and_port(&self) -> (&str, u16) {
        (&self.host, self.port)
    }

    /// Opens a WebSocket to the server.
    pub(super) async fn connect(&self, dialer: &Dialer) -> Result<Socket, ClientError> {
        let connected = timeout(CONNECT_TIMEOUT, self.open(dialer)).await;
        let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        connected.map_err(|source| ClientError::Unreachable { server: self.to_string(), source })
    }

    async fn open(&self, dialer: &Dialer) -> io::Result<Socket> {
        let alpn: &[&[u8]] = &[ALPN_HTTP];
        let target = DialTarget {
            host: &self.host,
            port: self.port,
            address: None,
            tls: self.has_tls.then_some(alpn),
            send_buffer: None,
            silence_limit: None,
        };
        let stream = dialer.dial(target, CONNECT_TIMEOUT).await?.stream;
        let config =
            WebSocketConfig::default().max_message_size(Some(MAX_FRAME)).max_frame_size(Some(MAX_FRAME));
        let scheme = if self.has_tls { "wss" } else { "ws" };
        let url = format!("{scheme}://{}/messages", self.authority());
        match client_async_with_config(url, stream, Some(config)).await {
            Ok((socket, _)) => Ok(socket),
            Err(WebSocketError::Io(error)) => Err(error),
            Err(WebSocketError::Http(answer)) if answer.status().as_u16() == 404 => {
                Err(io::Error::new(io::ErrorKind::Unsupported, "messaging is not enabled there"))
            }
            Err(WebSocketError::Http(answer)) => {
                Err(io::Error::other(format!("HTTP {}", answer.status().as_u16())))
            }
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

impl FromStr for ServerUrl {
    type Err = ServerUrlError;

    fn from_str(text: &str) -> Result<Self, ServerUrlError> {
        let text = text.trim();
        let is_bare_v6 = !text.contains(['/', '[']) && text.bytes().filter(|byte| *byte == b':').count() > 1;
        let whole = match (text.contains("://"), is_bare_v6) {
            (true, _) => text.to_owned(),
            (false, true) => format!("wss://[{text}]"),
            (false, false) => format!("wss://{text}"),
        };
        let uri: Uri = whole.parse().map_err(|_| ServerUrlError)?;
        let has_tls = match uri.scheme_str() {
            Some("wss" | "https") => true,
            Some("ws" | "http") => false,
            _ => return Err(ServerUrlError),
        };
        let authority = uri.authority().ok_or(ServerUrlError)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let has_port = authority.port().is_some();
        let is_plain = authority.as_str().ends_with(authority.host()) || has_port;
        let port = authority.port_u16().unwrap_or(DEFAULT_PORT);
        let is_valid = !host.is_empty()
            && port != 0
            && is_plain
            && !authority.as_str().contains('@')
            && uri.path().len() <= 1
            && uri.query().is_none();
        if is_valid { Ok(Self { host, port, has_tls }) } else { Err(ServerUrlError) }
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.has_tls { "wss" } else { "ws" };
        write!(f, "{scheme}://{}", self.authority())
    }
}

impl TryFrom<String> for ServerUrl {
    type Error = ServerUrlError;

    fn try_from(text: String) -> Result<Self, ServerUrlError> {
        text.parse()
    }
}

impl From<ServerUrl> for String {
    fn from(address: ServerUrl) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_has_tls_unless_its_address_says_otherwise() {
        for (text, expected) in [
            ("im.example", Some("wss://im.example:3478")),
            ("im.example:99", Some("wss://im.example:99")),
            ("2001:db8::1", Some("wss://[2001:db8::1]:3478")),
            ("[2001:db8::1]:9", Some("wss://[2001:db8::1]:9")),
            ("https://im.example/", Some("wss://im.example:3478")),
            ("ws://im.example:80", Some("ws://im.example:80")),
            ("http://127.0.0.1", Some("ws://127.0.0.1:3478")),
            ("tcp://im.example", None),
            ("im.example:0", None),
            ("im.example:70000", None),
            ("im.example:", None),
            ("ws://im.example/elsewhere", None),
            ("wss://user@im.example", None),
            ("", None),
        ] {
            let parsed = text.parse::<ServerUrl>().ok();
            assert_eq!(parsed.as_ref().map(ToString::to_string).as_deref(), expected, "{text}");
            if let Some(address) = parsed {
                assert_eq!(address.to_string().parse(), Ok(address));
            }
        }
    }
}
