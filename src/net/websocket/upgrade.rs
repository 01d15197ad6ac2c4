//! The opening handshake ([RFC 6455 section 4.2](https://www.rfc-editor.org/rfc/rfc6455#section-4.2)), and reads without a buffer.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use data_encoding::BASE64;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use ring::digest;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Poll, ready};
use tokio::io::{AsyncRead, ReadBuf};

/// Bytes read at a time.
const READ_SIZE: usize = 8 * 1024;
/// Bytes of a decoded key.
const KEY_LEN: usize = 16;
/// [Section 1.3](https://www.rfc-editor.org/rfc/rfc6455#section-1.3): appended to a key before it is hashed.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A client's connection after the handshake.
pub(crate) type WebSocketStream = TokioIo<Upgraded>;

/// Answers a client's handshake (section 4.2.2), then runs `serve` in a task of its own. Selects `subprotocol` where the client offers it.
pub(crate) fn accept<F: Future<Output = ()> + Send + 'static>(
    mut request: Request,
    subprotocol: Option<&'static str>,
    serve: impl FnOnce(WebSocketStream) -> F + Send + 'static,
) -> Response {
    let Some(accept) = accept_value(request.headers()) else { return refusal() };
    let offers = |name: &&str| has(request.headers(), header::SEC_WEBSOCKET_PROTOCOL, name);
    let selected = subprotocol.filter(offers);
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(stream) = upgraded.await {
            serve(TokioIo::new(stream)).await;
        }
    });
    let headers = [
        (header::CONNECTION, "upgrade".to_owned()),
        (header::UPGRADE, "websocket".to_owned()),
        (header::SEC_WEBSOCKET_ACCEPT, accept),
    ];
    let mut response = (StatusCode::SWITCHING_PROTOCOLS, headers, Body::empty()).into_response();
    if let Some(selected) = selected {
        response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(selected));
    }
    response
}

/// Returns the `Sec-WebSocket-Accept` of a valid handshake (section 4.2.1).
fn accept_value(headers: &HeaderMap) -> Option<String> {
    let is_handshake = has(headers, header::CONNECTION, "upgrade")
        && is_websocket(headers)
        && has(headers, header::SEC_WEBSOCKET_VERSION, "13")
        && has_key(headers);
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| is_handshake)?;
    let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &[key.as_bytes(), GUID].concat());
    Some(BASE64.encode(hash.as_ref()))
}

/// Returns whether a request asks for a WebSocket.
pub(crate) fn is_websocket(headers: &HeaderMap) -> bool {
    has(headers, header::UPGRADE, "websocket")
}

/// Returns whether there is one key, of 16 bytes in base64.
pub(crate) fn has_key(headers: &HeaderMap) -> bool {
    let mut keys = headers.get_all(header::SEC_WEBSOCKET_KEY).iter();
    let is_valid = |key: &HeaderValue| BASE64.decode(key.as_bytes()).is_ok_and(|key| key.len() == KEY_LEN);
    keys.next().is_some_and(is_valid) && keys.next().is_none()
}

/// Returns whether a comma-separated header contains `token`.
fn has(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    let mut values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.any(|value| value.split(',').any(|word| word.trim().eq_ignore_ascii_case(token)))
}

/// Refuses a request that is not a valid handshake.
pub(crate) fn refusal() -> Response {
    let text = "this is a WebSocket: connect with version 13 (RFC 6455)\n";
    (StatusCode::BAD_REQUEST, [(header::SEC_WEBSOCKET_VERSION, "13")], text).into_response()
}

/// Reads once, into a buffer on the stack, and returns what `handle` makes of the bytes; `None` at the end of the stream.
pub(crate) async fn read<T>(
    stream: &mut (impl AsyncRead + Unpin),
    mut handle: impl FnMut(&[u8]) -> T,
) -> io::Result<Option<T>> {
    poll_fn(|context| {
        let mut buffer = [const { MaybeUninit::uninit() }; READ_SIZE];
        let mut buffer = ReadBuf::uninit(&mut buffer);
        ready!(Pin::new(&mut *stream).poll_read(context, &mut buffer))?;
        let filled = buffer.filled();
        Poll::Ready(Ok(if filled.is_empty() { None } else { Some(handle(filled)) }))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(key: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            (header::CONNECTION, "keep-alive, Upgrade"),
            (header::UPGRADE, "websocket"),
            (header::SEC_WEBSOCKET_VERSION, "13"),
            (header::SEC_WEBSOCKET_KEY, key),
        ] {
            headers.insert(name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn the_rfcs_own_key_is_accepted() {
        let accepted = accept_value(&asked("dGhlIHNhbXBsZSBub25jZQ=="));
        assert_eq!(accepted.as_deref(), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    }

    #[test]
    fn a_key_that_is_not_16_bytes_of_base64_is_refused() {
        for key in [
            "",
            "x",
            "dGhlIHNhbXBsZSBub25jZQ",
            "dGhlIHNhbXBsZSBub25jZTE=",
            "dGhlIHNhbXBsZSBub25jZ!==",
            "AAAA",
        ] {
            assert_eq!(accept_value(&asked(key)), None, "{key:?}");
        }
        let mut twice = asked("dGhlIHNhbXBsZSBub25jZQ==");
        twice.append(header::SEC_WEBSOCKET_KEY, HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
        assert_eq!(accept_value(&twice), None);
    }
}
