//! Opens byte streams to servers: TCP, optionally through a proxy, optionally inside TLS.

use super::client_tls::Tls;
use super::connect::connect;
use super::proxy_handshake::{ProxyError, connect_through};
use super::proxy_settings::{Proxy, ProxyProtocol, ProxySettings};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

/// The application protocol of HTTP and WebSocket servers.
pub(crate) const ALPN_HTTP: &[u8] = b"http/1.1";

/// A stream of bytes in both directions.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// How a client's connections leave this host.
#[derive(Debug, Clone, Default)]
pub(crate) struct Dialer {
    pub(crate) tls: Tls,
    pub(crate) proxies: ProxySettings,
}

/// The server of one connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DialTarget<'a> {
    pub(crate) host: &'a str,
    pub(crate) port: u16,
    /// The server's address, if it is known: without a proxy it replaces the lookup of the name.
    pub(crate) address: Option<SocketAddr>,
    /// The application protocols to offer inside TLS; `None` for a connection without TLS.
    pub(crate) tls: Option<&'a [&'a [u8]]>,
    /// Bytes that the system may hold unsent; its own limit by default.
    pub(crate) send_buffer: Option<usize>,
    /// How long sent bytes may stay unacknowledged, where the system has such a limit; its own by default.
    pub(crate) silence_limit: Option<Duration>,
}

/// An open connection.
pub(crate) struct DialedStream {
    pub(crate) stream: Box<dyn Duplex>,
    pub(crate) local: Option<SocketAddr>,
    /// The server's address; `None` behind a proxy.
    #[cfg_attr(
        not(any(feature = "agent", test)),
        expect(dead_code, reason = "only the agent has ports besides")
    )]
    pub(crate) remote: Option<SocketAddr>,
}

/// Why no connection was opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("cannot resolve the name of the server")]
    Resolve(#[source] io::Error),
    #[error("cannot connect to the server")]
    Connect(#[source] io::Error),
    #[error("the proxy {proxy} {error}")]
    Proxy { proxy: String, error: ProxyError },
    #[error("TLS with the server failed")]
    Tls(#[source] io::Error),
}

impl From<DialError> for io::Error {
    fn from(error: DialError) -> Self {
        match error {
            DialError::Resolve(error) | DialError::Connect(error) | DialError::Tls(error) => error,
            error @ DialError::Proxy { .. } => Self::other(error),
        }
    }
}

impl Dialer {
    /// Opens a connection. The lookup of the name has no time limit; all that follows it has `limit`.
    pub(crate) async fn dial(
        &self,
        target: DialTarget<'_>,
        limit: Duration,
    ) -> Result<DialedStream, DialError> {
        let proxy = self.proxies.select(target.host, target.port);
        let addresses = match (proxy, target.address) {
            (Some(proxy), _) => resolve(&proxy.host, proxy.port)
                .await
                .map_err(|error| proxy_error(proxy, ProxyError::Unreachable(error)))?,
            (None, Some(address)) => vec![address],
            (None, None) => resolve(target.host, target.port).await.map_err(DialError::Resolve)?,
        };
        let opening = self.open(target, proxy, &addresses);
        timeout(limit, opening).await.unwrap_or_else(|elapsed| {
            Err(match proxy {
                Some(proxy) => proxy_error(proxy, ProxyError::Unreachable(elapsed.into())),
                None => DialError::Connect(elapsed.into()),
            })
        })
    }

    async fn open(
        &self,
        target: DialTarget<'_>,
        proxy: Option<&Proxy>,
        addresses: &[SocketAddr],
    ) -> Result<DialedStream, DialError> {
        let (stream, address) = connect(addresses).await.map_err(|error| match proxy {
            Some(proxy) => proxy_error(proxy, ProxyError::Unreachable(error)),
            None => DialError::Connect(error),
        })?;
        configure(&stream, &target);
        let local = stream.local_addr().ok();
        let mut stream: Box<dyn Duplex> = Box::new(stream);
        if let Some(proxy) = proxy {
            if proxy.protocol == ProxyProtocol::Https {
                let secured = self.tls.for_proxy().connect(stream, &proxy.host, &[ALPN_HTTP]).await;
                stream = Box::new(secured.map_err(|error| proxy_error(proxy, ProxyError::Tls(error)))?);
            }
            let asked = connect_through(proxy, &mut stream, target.host, target.port).await;
            asked.map_err(|error| proxy_error(proxy, error))?;
        }
        let stream: Box<dyn Duplex> = match target.tls {
            Some(alpn) => {
                Box::new(self.tls.connect(stream, target.host, alpn).await.map_err(DialError::Tls)?)
            }
            None => stream,
        };
        Ok(DialedStream { stream, local, remote: proxy.is_none().then_some(address) })
    }
}

fn proxy_error(proxy: &Proxy, error: ProxyError) -> DialError {
    DialError::Proxy { proxy: proxy.to_string(), error }
}

/// Sets the options of a socket. The connection works without them.
fn configure(stream: &TcpStream, target: &DialTarget<'_>) {
    let _ = stream.set_nodelay(true);
    if let Some(bytes) = target.send_buffer {
        let _ = socket2::SockRef::from(stream).set_send_buffer_size(bytes);
    }
    #[cfg(target_os = "linux")]
    if let Some(limit) = target.silence_limit {
        let limit = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        let _ = nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::TcpUserTimeout, &limit);
    }
}

/// Resolves a name, IPv4 addresses first because the TURN client of the ICE agent needs them.
pub(crate) async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let mut addresses: Vec<SocketAddr> = lookup_host((host, port)).await?.collect();
    addresses.sort_by_key(SocketAddr::is_ipv6);
    if addresses.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(addresses) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const LIMIT: Duration = Duration::from_secs(10);

    fn target(host: &str) -> DialTarget<'_> {
        DialTarget { host, port: 9, address: None, tls: None, send_buffer: None, silence_limit: None }
    }

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    fn through(address: SocketAddr) -> Dialer {
        let proxies = ProxySettings::new(&format!("http://{address}"), "").unwrap();
        Dialer { proxies, ..Dialer::default() }
    }

    #[tokio::test]
    async fn a_server_is_reached_directly_at_its_known_address() {
        let (listener, address) = listener().await;
        let target = DialTarget { address: Some(address), ..target("name.invalid") };
        let dialed = Dialer::default().dial(target, LIMIT).await.unwrap();
        assert_eq!(dialed.remote, Some(address));
        assert_eq!(dialed.local, Some(listener.accept().await.unwrap().1));
    }

    #[tokio::test]
    async fn a_proxy_resolves_the_name_and_carries_the_bytes() {
        let (listener, address) = listener().await;
        let proxy = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request =
                vec![0; b"CONNECT name.invalid:9 HTTP/1.1\r\nHost: name.invalid:9\r\n\r\n".len()];
            stream.read_exact(&mut request).await.unwrap();
            assert!(request.starts_with(b"CONNECT name.invalid:9 "), "{request:?}");
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nhello").await.unwrap();
        };
        let dialer = through(address);
        let (dialed, ()) = tokio::join!(dialer.dial(target("name.invalid"), LIMIT), proxy);
        let mut dialed = dialed.unwrap();
        assert_eq!(dialed.remote, None);
        let mut text = String::new();
        dialed.stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello");
    }

    #[tokio::test]
    async fn errors_name_the_proxy_and_its_reason() {
        let (listener, address) = listener().await;
        let proxy = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n").await.unwrap();
            stream
        };
        let dialer = through(address);
        let (dialed, _stream) = tokio::join!(dialer.dial(target("name.invalid"), LIMIT), proxy);
        let error = io::Error::from(dialed.err().unwrap()).to_string();
        assert_eq!(error, format!("the proxy http://{address} refused: 403 Forbidden"));
        drop(listener);
        let error = dialer.dial(target("name.invalid"), LIMIT).await.err().unwrap().to_string();
        assert!(error.starts_with(&format!("the proxy http://{address} is not reachable: ")), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_proxy_is_given_up() {
        let (_listener, address) = listener().await;
        let error = through(address).dial(target("name.invalid"), LIMIT).await.err().unwrap();
        assert!(
            matches!(error, DialError::Proxy { error: ProxyError::Unreachable(ref error), .. } if error.kind() == io::ErrorKind::TimedOut),
            "{error:?}"
        );
    }
}
