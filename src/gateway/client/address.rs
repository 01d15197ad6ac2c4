//! Addresses of gateways, and what an endpoint proves when it connects.

use super::error::ConnectError;
use super::transport::{FrameTransport, Io, NOT_A_FRAME};
use crate::gateway::handshake::{CHALLENGE, Key};
use crate::gateway::token::GatewayToken;
use crate::net::dialer::{ALPN_HTTP, DialError, DialTarget, DialedStream, Dialer};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha20Rng;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::timeout;
use tokio_tungstenite::client_async_with_config;
use tokio_tungstenite::tungstenite::Error as WebSocketError;
use tokio_tungstenite::tungstenite::http::Uri;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// What an endpoint proves.
#[derive(Debug, Clone)]
pub(super) enum EndpointCredentials {
    Client(Option<GatewayToken>),
    Md5 { id: u32, key: Key },
    Hmac { id: u32, key: Key },
}

impl EndpointCredentials {
    /// Returns whether both sides grant credit (command 7).
    pub(super) fn credit(&self) -> bool {
        matches!(self, Self::Hmac { .. })
    }

    pub(super) fn is_server(&self) -> bool {
        !matches!(self, Self::Client(_))
    }

    pub(super) fn token(&self) -> Option<&[u8]> {
        match self {
            Self::Client(Some(token)) => Some(&token.0),
            _ => None,
        }
    }

    fn port(&self) -> u16 {
        match self {
            Self::Client(_) => 3478,
            Self::Md5 { .. } => 3480,
            Self::Hmac { .. } => 3481,
        }
    }

    /// Performs the handshake, where there is one.
    pub(super) async fn authenticate(&self, transport: &mut FrameTransport) -> Result<(), ConnectError> {
        match self {
            Self::Client(_) => Ok(()),
            Self::Md5 { id, key } => {
                let challenge = transport.read_handshake().await.map_err(refused)?;
                transport.write_handshake(&key.md5_answer(&challenge, *id)).await.map_err(refused)
            }
            Self::Hmac { id, key } => {
                let challenge = transport.read_handshake().await.map_err(refused)?;
                let mut nonce = [0; CHALLENGE];
                ChaCha20Rng::from_os_rng().fill_bytes(&mut nonce);
                transport.write_handshake(&key.answer(&challenge, &nonce, *id)).await.map_err(refused)?;
                let proof = transport.read_handshake().await.map_err(refused)?;
                let is_valid = key.verify_proof(&challenge, &nonce, *id, &proof);
                if is_valid { Ok(()) } else { Err(ConnectError::NotAuthenticated) }
            }
        }
    }
}

/// Maps an I/O error before the gateway has accepted this endpoint.
pub(super) fn refused(error: io::Error) -> ConnectError {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::UnexpectedEof | Kind::ConnectionReset | Kind::BrokenPipe => ConnectError::Refused,
        NOT_A_FRAME => ConnectError::NotAuthenticated,
        Kind::InvalidData => ConnectError::Tls(error),
        _ => ConnectError::Unreachable(error),
    }
}

/// The protocol that carries frames.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Protocol {
    Plain,
    WebSocket { url: String },
}

/// A parsed address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    host: String,
    port: u16,
    tls: bool,
    protocol: Protocol,
}

impl Address {
    /// Parses `HOST[:PORT]`, `tls://HOST[:PORT]`, or a WebSocket URL. Without a path the URL gets the gateway's.
    pub(super) fn parse(text: &str, credentials: &EndpointCredentials) -> Result<Self, ConnectError> {
        let invalid = || ConnectError::Address(text.to_owned());
        let whole = if text.contains("://") { text.to_owned() } else { format!("tcp://{}", bracketed(text)) };
        let uri: Uri = whole.parse().map_err(|_| invalid())?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(invalid)?;
        let (tls, web) = match uri.scheme_str() {
            Some("tcp") => (false, false),
            Some("tls") => (true, false),
            Some("ws" | "http") => (false, true),
            Some("wss" | "https") => (true, true),
            _ => return Err(invalid()),
        };
        let path = uri.path();
        if web && matches!(credentials, EndpointCredentials::Md5 { .. }) || !web && path.len() > 1 {
            return Err(invalid());
        }
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let port = match authority.rsplit_once(host).map(|(_, rest)| rest) {
            Some("") => {
                if web {
                    3478
                } else {
                    credentials.port()
                }
            }
            Some(rest) => rest
                .strip_prefix(':')
                .and_then(|port| port.parse().ok())
                .filter(|port| *port != 0)
                .ok_or_else(invalid)?,
            None => return Err(invalid()),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let protocol = if web {
            let path = match (path, credentials) {
                ("" | "/", EndpointCredentials::Client(_)) => "/gateway",
                ("" | "/", _) => "/gateway/servers",
                (path, _) => path,
            };
            let scheme = if tls { "wss" } else { "ws" };
            Protocol::WebSocket { url: format!("{scheme}://{}:{port}{path}", bracketed(&host)) }
        } else {
            Protocol::Plain
        };
        Ok(Self { host, port, tls, protocol })
    }

    /// Connects within `limit`; also returns the local address.
    pub(super) async fn open(
        &self,
        dialer: &Dialer,
        max_packet: usize,
        limit: Duration,
    ) -> Result<(FrameTransport, Option<SocketAddr>), ConnectError> {
        let opening = async {
            let alpn: &[&[u8]] = if self.protocol == Protocol::Plain { &[] } else { &[ALPN_HTTP] };
            let target = DialTarget {
                host: &self.host,
                port: self.port,
                address: None,
                tls: self.tls.then_some(alpn),
                send_buffer: None,
                silence_limit: None,
            };
            let DialedStream { stream, local, .. } =
                dialer.dial(target, limit).await.map_err(|error| match error {
                    DialError::Tls(error) => ConnectError::Tls(error),
                    error => ConnectError::Unreachable(error.into()),
                })?;
            Ok((self.open_protocol(stream, max_packet).await?, local))
        };
        timeout(limit, opening).await.unwrap_or(Err(ConnectError::TimedOut(limit)))
    }

    async fn open_protocol(&self, io: Io, max_packet: usize) -> Result<FrameTransport, ConnectError> {
        let Protocol::WebSocket { url } = &self.protocol else { return Ok(FrameTransport::Stream(io)) };
        let longest = Some(max_packet.saturating_add(4));
        let config = WebSocketConfig::default().max_message_size(longest).max_frame_size(longest);
        match client_async_with_config(url, io, Some(config)).await {
            Ok((socket, _)) => Ok(FrameTransport::WebSocket(Box::new(socket))),
            Err(WebSocketError::Io(error)) => Err(refused(error)),
            Err(WebSocketError::Http(answer)) => match answer.status().as_u16() {
                401 | 403 | 429 => Err(ConnectError::Refused),
                502..=504 => {
                    Err(ConnectError::Unreachable(io::Error::other(format!("HTTP {}", answer.status()))))
                }
                404 => Err(ConnectError::WebSocket(io::Error::other("no gateway at this path (HTTP 404)"))),
                status => Err(ConnectError::WebSocket(io::Error::other(format!("HTTP {status}")))),
            },
            Err(error) => Err(ConnectError::WebSocket(io::Error::other(error))),
        }
    }
}

/// Puts an IPv6 address into brackets.
fn bracketed(host: &str) -> String {
    let colons = host.bytes().filter(|byte| *byte == b':').count();
    if colons > 1 && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, credentials: &EndpointCredentials) -> Option<(String, u16, bool, Option<String>)> {
        let address = Address::parse(text, credentials).ok()?;
        let url = match address.protocol {
            Protocol::Plain => None,
            Protocol::WebSocket { url } => Some(url),
        };
        Some((address.host, address.port, address.tls, url))
    }

    #[test]
    fn an_address_is_a_host_or_a_url_with_a_default_port_per_handshake() {
        let key = Key::new(*b"sixteen bytes !!").unwrap();
        let client = EndpointCredentials::Client(None);
        let (md5, hmac) =
            (EndpointCredentials::Md5 { id: 1, key: key.clone() }, EndpointCredentials::Hmac { id: 1, key });
        let plain = |host: &str, port, tls| Some((host.to_owned(), port, tls, None));
        let web = |host: &str, port, tls, url: &str| Some((host.to_owned(), port, tls, Some(url.to_owned())));
        for (text, credentials, expected) in [
            ("gw.example", &client, plain("gw.example", 3478, false)),
            ("gw.example", &md5, plain("gw.example", 3480, false)),
            ("192.0.2.1", &hmac, plain("192.0.2.1", 3481, false)),
            ("2001:db8::1", &client, plain("2001:db8::1", 3478, false)),
            ("[2001:db8::1]:9", &client, plain("2001:db8::1", 9, false)),
            ("tls://gw.example:5349", &md5, plain("gw.example", 5349, true)),
            ("ws://gw.example", &client, web("gw.example", 3478, false, "ws://gw.example:3478/gateway")),
            ("wss://[::1]:443/", &hmac, web("::1", 443, true, "wss://[::1]:443/gateway/servers")),
            (
                "ws://gw.example:80/elsewhere",
                &client,
                web("gw.example", 80, false, "ws://gw.example:80/elsewhere"),
            ),
            ("ws://gw.example", &md5, None),
            ("gw.example/gateway", &client, None),
            ("ftp://gw.example", &client, None),
            ("https://gw.example", &client, web("gw.example", 3478, true, "wss://gw.example:3478/gateway")),
            ("http://gw.example:80", &client, web("gw.example", 80, false, "ws://gw.example:80/gateway")),
            ("gw.example:", &client, None),
            ("gw.example:0", &client, None),
            ("gw.example:70000", &client, None),
            ("", &client, None),
        ] {
            assert_eq!(read(text, credentials), expected, "{text}");
        }
    }
}
