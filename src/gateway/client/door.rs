//! How to get in at the gateway: the way there, and what is said at the door.

use super::carrier::{Carrier, Io, NOT_A_FRAME};
use super::error::ConnectError;
use super::tls::Tls;
use crate::gateway::handshake::{CHALLENGE, Key};
use crate::gateway::token::GatewayToken;
use crate::net::connect::connect;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha20Rng;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::lookup_host;
use tokio::time::timeout;
use tokio_tungstenite::client_async_with_config;
use tokio_tungstenite::tungstenite::Error as WebSocketError;
use tokio_tungstenite::tungstenite::http::Uri;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// What is said at the door.
#[derive(Debug, Clone)]
pub(super) enum Pass {
    Client(Option<GatewayToken>),
    Md5 { id: u32, key: Key },
    Hmac { id: u32, key: Key },
}

impl Pass {
    /// Says whether command 7 is spoken behind this door.
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

    /// Shakes hands where that is asked for.
    pub(super) async fn shake(&self, carrier: &mut Carrier) -> Result<(), ConnectError> {
        match self {
            Self::Client(_) => Ok(()),
            Self::Md5 { id, key } => {
                let challenge = carrier.piece().await.map_err(refused)?;
                carrier.put(&key.md5_answer(&challenge, *id)).await.map_err(refused)
            }
            Self::Hmac { id, key } => {
                let challenge = carrier.piece().await.map_err(refused)?;
                let mut nonce = [0; CHALLENGE];
                ChaCha20Rng::from_os_rng().fill_bytes(&mut nonce);
                carrier.put(&key.answer(&challenge, &nonce, *id)).await.map_err(refused)?;
                let proof = carrier.piece().await.map_err(refused)?;
                let honest = key.verify_proof(&challenge, &nonce, *id, &proof);
                if honest { Ok(()) } else { Err(ConnectError::Impostor) }
            }
        }
    }
}

/// What a broken connection means before the gateway has let anybody in.
pub(super) fn refused(error: io::Error) -> ConnectError {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::UnexpectedEof | Kind::ConnectionReset | Kind::BrokenPipe => ConnectError::Refused,
        NOT_A_FRAME => ConnectError::Impostor,
        Kind::InvalidData => ConnectError::Tls(error),
        _ => ConnectError::Unreachable(error),
    }
}

/// What is spoken on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Manner {
    Plain,
    WebSocket { url: String },
}

/// A gateway's address as it was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    host: String,
    port: u16,
    tls: bool,
    manner: Manner,
}

impl Address {
    /// Reads `HOST[:PORT]`, `tls://HOST[:PORT]`, or a WebSocket's URL, whose path is the gateway's where it has none.
    pub(super) fn parse(text: &str, pass: &Pass) -> Result<Self, ConnectError> {
        let wrong = || ConnectError::Address(text.to_owned());
        let whole = if text.contains("://") { text.to_owned() } else { format!("tcp://{}", bracketed(text)) };
        let uri: Uri = whole.parse().map_err(|_| wrong())?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(wrong)?;
        let (tls, web) = match uri.scheme_str() {
            Some("tcp") => (false, false),
            Some("tls") => (true, false),
            Some("ws" | "http") => (false, true),
            Some("wss" | "https") => (true, true),
            _ => return Err(wrong()),
        };
        let path = uri.path();
        if web && matches!(pass, Pass::Md5 { .. }) || !web && path.len() > 1 {
            return Err(wrong());
        }
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let port = match authority.rsplit_once(host).map(|(_, rest)| rest) {
            Some("") => {
                if web {
                    3478
                } else {
                    pass.port()
                }
            }
            Some(rest) => rest
                .strip_prefix(':')
                .and_then(|port| port.parse().ok())
                .filter(|port| *port != 0)
                .ok_or_else(wrong)?,
            None => return Err(wrong()),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let manner = if web {
            let path = match (path, pass) {
                ("" | "/", Pass::Client(_)) => "/gateway",
                ("" | "/", _) => "/gateway/servers",
                (path, _) => path,
            };
            let scheme = if tls { "wss" } else { "ws" };
            Manner::WebSocket { url: format!("{scheme}://{}:{port}{path}", bracketed(&host)) }
        } else {
            Manner::Plain
        };
        Ok(Self { host, port, tls, manner })
    }

    /// Goes there, within `limit`; also returns this side's address.
    pub(super) async fn open(
        &self,
        tls: &Tls,
        max_packet: usize,
        limit: Duration,
    ) -> Result<(Carrier, Option<SocketAddr>), ConnectError> {
        let going = async {
            let addresses = lookup_host((self.host.as_str(), self.port)).await;
            let addresses: Vec<SocketAddr> = addresses.map_err(ConnectError::Unreachable)?.collect();
            let (stream, _) = connect(&addresses).await.map_err(ConnectError::Unreachable)?;
            let _ = stream.set_nodelay(true);
            let local = stream.local_addr().ok();
            let alpn: &[&[u8]] = if self.manner == Manner::Plain { &[] } else { &[b"http/1.1"] };
            let io: Io = if self.tls {
                Box::new(tls.connect(stream, &self.host, alpn).await.map_err(ConnectError::Tls)?)
            } else {
                Box::new(stream)
            };
            Ok((self.speak(io, max_packet).await?, local))
        };
        timeout(limit, going).await.unwrap_or(Err(ConnectError::TimedOut(limit)))
    }

    async fn speak(&self, io: Io, max_packet: usize) -> Result<Carrier, ConnectError> {
        let Manner::WebSocket { url } = &self.manner else { return Ok(Carrier::Stream(io)) };
        let longest = Some(max_packet.saturating_add(4));
        let config = WebSocketConfig::default().max_message_size(longest).max_frame_size(longest);
        match client_async_with_config(url, io, Some(config)).await {
            Ok((socket, _)) => Ok(Carrier::WebSocket(Box::new(socket))),
            Err(WebSocketError::Io(error)) => Err(refused(error)),
            Err(WebSocketError::Http(answer)) => match answer.status().as_u16() {
                401 | 403 | 429 => Err(ConnectError::Refused),
                502..=504 => {
                    Err(ConnectError::Unreachable(io::Error::other(format!("HTTP {}", answer.status()))))
                }
                404 => Err(ConnectError::WebSocket("no gateway is there (HTTP 404)".to_owned())),
                status => Err(ConnectError::WebSocket(format!("HTTP {status}"))),
            },
            Err(error) => Err(ConnectError::WebSocket(error.to_string())),
        }
    }
}

/// An IPv6 address without brackets gets some.
fn bracketed(host: &str) -> String {
    let colons = host.bytes().filter(|byte| *byte == b':').count();
    if colons > 1 && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, pass: &Pass) -> Option<(String, u16, bool, Option<String>)> {
        let address = Address::parse(text, pass).ok()?;
        let url = match address.manner {
            Manner::Plain => None,
            Manner::WebSocket { url } => Some(url),
        };
        Some((address.host, address.port, address.tls, url))
    }

    #[test]
    fn an_address_is_a_host_or_a_url_and_the_door_knows_its_port() {
        let key = Key::new(*b"sixteen bytes !!").unwrap();
        let client = Pass::Client(None);
        let (md5, hmac) = (Pass::Md5 { id: 1, key: key.clone() }, Pass::Hmac { id: 1, key });
        let plain = |host: &str, port, tls| Some((host.to_owned(), port, tls, None));
        let web = |host: &str, port, tls, url: &str| Some((host.to_owned(), port, tls, Some(url.to_owned())));
        for (text, pass, expected) in [
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
            assert_eq!(read(text, pass), expected, "{text}");
        }
    }
}
