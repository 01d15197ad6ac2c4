//! Asks a proxy for a connection: HTTP CONNECT, and SOCKS 5 with or without a password (RFC 1928, RFC 1929).

use super::proxy_settings::{Proxy, ProxyProtocol};
use data_encoding::BASE64;
use std::io;
use std::net::IpAddr;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest header of an HTTP answer.
const MAX_HEADER: usize = 8 << 10;
/// The longest part of a status line that an error quotes.
const MAX_QUOTED: usize = 80;

/// Why a proxy did not connect to the host.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyError {
    #[error("is not reachable: {0}")]
    Unreachable(#[source] io::Error),
    #[error("refused: {0}")]
    Refused(String),
    #[error("requires a user and a password")]
    CredentialsRequired,
    #[error("does not accept the user or the password")]
    CredentialsRejected,
    #[error("does not complete the TLS handshake: {0}")]
    Tls(#[source] io::Error),
    #[error("closed the connection")]
    Closed(#[source] io::Error),
    #[error("does not answer as a proxy of this kind")]
    InvalidAnswer,
}

/// Maps an error of an open connection to a proxy.
impl From<io::Error> for ProxyError {
    fn from(error: io::Error) -> Self {
        Self::Closed(error)
    }
}

/// Asks the proxy at the other end of `stream` for a connection to `host`. Reads no byte behind the answer. Has no timeout.
pub(super) async fn connect_through<S>(
    proxy: &Proxy,
    stream: &mut S,
    host: &str,
    port: u16,
) -> Result<(), ProxyError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let credentials = proxy.credentials.as_ref().map(|(user, password)| (user.as_str(), password.as_str()));
    match proxy.protocol {
        ProxyProtocol::Http | ProxyProtocol::Https => http_connect(stream, host, port, credentials).await,
        ProxyProtocol::Socks5 => {
            socks_authenticate(stream, credentials).await?;
            socks_connect(stream, host, port).await
        }
    }
}

async fn http_connect<S>(
    stream: &mut S,
    host: &str,
    port: u16,
    credentials: Option<(&str, &str)>,
) -> Result<(), ProxyError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let authorization = credentials.map_or_else(String::new, |(user, password)| {
        let basic = BASE64.encode(format!("{user}:{password}").as_bytes());
        format!("Proxy-Authorization: Basic {basic}\r\n")
    });
    let request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{authorization}\r\n");
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut header = Vec::new();
    // One byte at a time: what follows the header belongs to the connection.
    while !header.ends_with(b"\r\n\r\n") {
        if header.len() == MAX_HEADER {
            return Err(ProxyError::InvalidAnswer);
        }
        header.push(stream.read_u8().await?);
        let start = &header[..header.len().min(5)];
        if start != &b"HTTP/"[..start.len()] {
            return Err(ProxyError::InvalidAnswer);
        }
    }
    let line = header.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let (_, status) = line.split_once(' ').ok_or(ProxyError::InvalidAnswer)?;
    let code = status.trim_start().get(..3).and_then(|code| code.parse::<u16>().ok());
    match (code, credentials) {
        (Some(200..=299), _) => Ok(()),
        (Some(407), None) => Err(ProxyError::CredentialsRequired),
        (Some(407), Some(_)) => Err(ProxyError::CredentialsRejected),
        (Some(_), _) => Err(ProxyError::Refused(
            status.trim().chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(MAX_QUOTED).collect(),
        )),
        (None, _) => Err(ProxyError::InvalidAnswer),
    }
}

const SOCKS_VERSION: u8 = 5;
const METHOD_NONE: u8 = 0;
const METHOD_PASSWORD: u8 = 2;
const METHOD_REFUSED: u8 = 0xFF;
const COMMAND_CONNECT: u8 = 1;
const ADDRESS_V4: u8 = 1;
const ADDRESS_NAME: u8 = 3;
const ADDRESS_V6: u8 = 4;

async fn socks_authenticate<S>(stream: &mut S, credentials: Option<(&str, &str)>) -> Result<(), ProxyError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let methods: &[u8] = match credentials {
        Some(_) => &[METHOD_NONE, METHOD_PASSWORD],
        None => &[METHOD_NONE],
    };
    let mut greeting = vec![SOCKS_VERSION];
    push_counted(&mut greeting, methods);
    stream.write_all(&greeting).await?;
    stream.flush().await?;
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).await?;
    match (answer, credentials) {
        ([SOCKS_VERSION, METHOD_NONE], _) => Ok(()),
        ([SOCKS_VERSION, METHOD_PASSWORD], Some((user, password))) => {
            let mut request = vec![1];
            push_counted(&mut request, user.as_bytes());
            push_counted(&mut request, password.as_bytes());
            stream.write_all(&request).await?;
            stream.flush().await?;
            stream.read_exact(&mut answer).await?;
            if answer[1] == 0 { Ok(()) } else { Err(ProxyError::CredentialsRejected) }
        }
        ([SOCKS_VERSION, METHOD_REFUSED], _) => Err(ProxyError::CredentialsRequired),
        _ => Err(ProxyError::InvalidAnswer),
    }
}

/// Appends a length of one byte and as many bytes.
fn push_counted(message: &mut Vec<u8>, bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(255)];
    message.push(u8::try_from(bytes.len()).unwrap_or(u8::MAX));
    message.extend_from_slice(bytes);
}

async fn socks_connect<S>(stream: &mut S, host: &str, port: u16) -> Result<(), ProxyError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut request = vec![SOCKS_VERSION, COMMAND_CONNECT, 0];
    match host.parse() {
        Ok(IpAddr::V4(ip)) => {
            request.push(ADDRESS_V4);
            request.extend_from_slice(&ip.octets());
        }
        Ok(IpAddr::V6(ip)) => {
            request.push(ADDRESS_V6);
            request.extend_from_slice(&ip.octets());
        }
        Err(_) => {
            request.push(ADDRESS_NAME);
            push_counted(&mut request, host.as_bytes());
        }
    }
    request.extend_from_slice(&port.to_be_bytes());
    stream.write_all(&request).await?;
    stream.flush().await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await?;
    let [SOCKS_VERSION, reply, _, kind] = answer else { return Err(ProxyError::InvalidAnswer) };
    if reply != 0 {
        return Err(ProxyError::Refused(socks_reason(reply)));
    }
    let bound = match kind {
        ADDRESS_V4 => 4,
        ADDRESS_V6 => 16,
        ADDRESS_NAME => usize::from(stream.read_u8().await?),
        _ => return Err(ProxyError::InvalidAnswer),
    };
    let mut address = [0; 255 + 2];
    stream.read_exact(&mut address[..bound + 2]).await?;
    Ok(())
}

/// The replies of RFC 1928 section 6.
fn socks_reason(reply: u8) -> String {
    match reply {
        1 => "general failure",
        2 => "connection not allowed by its rules",
        3 => "network unreachable",
        4 => "host unreachable",
        5 => "connection refused",
        6 => "TTL expired",
        7 => "command not supported",
        8 => "address type not supported",
        other => return format!("reply {other}"),
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::proxy_settings::ProxySettings;
    use tokio::io::duplex;

    /// Runs the handshake with a proxy that sends `answers`; returns its result, what it has sent, and what is left to read.
    async fn run(url: &str, host: &str, answers: &[u8]) -> (Result<(), String>, Vec<u8>, Vec<u8>) {
        let settings = ProxySettings::new(url, "").unwrap();
        let proxy = settings.select("turn.example", 1).unwrap();
        let (mut client, mut server) = duplex(64 << 10);
        server.write_all(answers).await.unwrap();
        server.shutdown().await.unwrap();
        let result = connect_through(proxy, &mut client, host, 3478).await;
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        drop(client);
        let mut sent = Vec::new();
        server.read_to_end(&mut sent).await.unwrap();
        (result.map_err(|error| error.to_string()), sent, rest)
    }

    #[tokio::test]
    async fn http_connect_names_the_host_and_leaves_what_follows_the_header() {
        let answer = b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n\x01\x02";
        let (result, sent, rest) = run("http://a:b@p", "turn.example", answer).await;
        assert_eq!((result, &rest[..]), (Ok(()), &b"\x01\x02"[..]));
        let expected = "CONNECT turn.example:3478 HTTP/1.1\r\nHost: turn.example:3478\r\nProxy-Authorization: Basic YTpi\r\n\r\n";
        assert_eq!(String::from_utf8(sent).unwrap(), expected);
        let (_, sent, _) = run("http://p", "2001:db8::1", answer).await;
        assert!(sent.starts_with(b"CONNECT [2001:db8::1]:3478 HTTP/1.1\r\n"));
        assert!(!sent.windows(5).any(|part| part == b"Proxy"));
    }

    #[tokio::test]
    async fn the_refusal_of_an_http_proxy_is_stated() {
        let endless = [&b"HTTP/1.1 200 OK\r\nA: "[..], &[b'a'; MAX_HEADER]].concat();
        let long = format!("HTTP/1.1 500 {}\r\n\r\n", "x".repeat(2000));
        let quoted = format!("refused: 500 {}", "x".repeat(MAX_QUOTED - 4));
        for (url, answer, expected) in [
            ("http://p", &b"HTTP/1.1 403 Forbidden\r\n\r\n"[..], "refused: 403 Forbidden"),
            ("http://p", b"HTTP/1.1 403 \x1b[31mNo\r\n\r\n", "refused: 403 [31mNo"),
            ("http://p", b"HTTP/1.1 407 Auth\r\n\r\n", "requires a user and a password"),
            ("http://a:b@p", b"HTTP/1.1 407 Auth\r\n\r\n", "does not accept the user or the password"),
            ("http://p", long.as_bytes(), &quoted),
            ("http://p", b"HTTP/1.1 twohundred\r\n\r\n", "does not answer as a proxy of this kind"),
            ("http://p", b"\x05\xff", "does not answer as a proxy of this kind"),
            ("http://p", &endless, "does not answer as a proxy of this kind"),
            ("http://p", b"HTTP/1.1 20", "closed the connection"),
        ] {
            assert_eq!(run(url, "turn.example", answer).await.0, Err(expected.to_owned()), "{answer:?}");
        }
    }

    #[tokio::test]
    async fn socks_5_sends_names_and_addresses_and_reads_exactly_the_answer() {
        let answers = b"\x05\x00\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00\x16";
        let (result, sent, rest) = run("socks5://p", "turn.example", answers).await;
        assert_eq!((result, &rest[..]), (Ok(()), &b"\x16"[..]));
        assert_eq!(sent, b"\x05\x01\x00\x05\x01\x00\x03\x0cturn.example\x0d\x96");
        let (result, sent, _) =
            run("socks5://p", "192.0.2.1", b"\x05\x00\x05\x00\x00\x03\x01x\x00\x00").await;
        assert_eq!(result, Ok(()));
        assert_eq!(sent, b"\x05\x01\x00\x05\x01\x00\x01\xc0\x00\x02\x01\x0d\x96");
        let with_password = b"\x05\x02\x01\x00\x05\x00\x00\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let (result, sent, _) = run("socks5://u:pw@p", "192.0.2.1", with_password).await;
        assert_eq!(result, Ok(()));
        assert!(sent.starts_with(b"\x05\x02\x00\x02\x01\x01u\x02pw\x05\x01"), "{sent:?}");
    }

    #[tokio::test]
    async fn the_refusal_of_a_socks_proxy_is_stated() {
        for (url, answers, expected) in [
            ("socks5://p", &b"\x05\xff"[..], "requires a user and a password"),
            ("socks5://u:p@p", b"\x05\x02\x01\x01", "does not accept the user or the password"),
            ("socks5://p", b"\x05\x00\x05\x02\x00\x01", "refused: connection not allowed by its rules"),
            ("socks5://p", b"\x05\x00\x05\x63\x00\x01", "refused: reply 99"),
            ("socks5://p", b"\x05\x02", "does not answer as a proxy of this kind"),
            ("socks5://p", b"HTTP/1.1 400", "does not answer as a proxy of this kind"),
            ("socks5://p", b"\x05\x00\x05\x00\x00\x07", "does not answer as a proxy of this kind"),
            ("socks5://p", b"\x05\x00\x05\x00\x00\x03\xff", "closed the connection"),
        ] {
            assert_eq!(run(url, "turn.example", answers).await.0, Err(expected.to_owned()), "{answers:?}");
        }
    }
}
