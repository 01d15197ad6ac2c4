//! The beginning of a WebSocket on the server's side: the handshake of RFC 6455 section 4.2, and reading without a buffer.

use super::websocket::Reader;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use data_encoding::BASE64;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::ready;
use tokio::io::{AsyncRead, ReadBuf};

/// Bytes read at a time.
const READ_ROOM: usize = 8 * 1024;
/// What the server appends to a client's key (RFC 6455 section 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Bytes of a key before it is encoded.
const KEY: usize = 16;

/// Returns what accepts a client's handshake (section 4.2.1); none where it is no such thing.
pub(crate) fn accept(headers: &HeaderMap) -> Option<String> {
    let asks = has(headers, header::CONNECTION, "upgrade")
        && is_websocket(headers)
        && has(headers, header::SEC_WEBSOCKET_VERSION, "13");
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| asks && has_key(headers))?;
    let hashed = [key.as_bytes(), GUID].concat();
    Some(BASE64.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &hashed).as_ref()))
}

/// Says whether a request asks for a WebSocket.
pub(crate) fn is_websocket(headers: &HeaderMap) -> bool {
    has(headers, header::UPGRADE, "websocket")
}

/// Says whether there is one key, of 16 bytes in base64.
pub(crate) fn has_key(headers: &HeaderMap) -> bool {
    let mut keys = headers.get_all(header::SEC_WEBSOCKET_KEY).iter();
    let is_whole = |key: &HeaderValue| BASE64.decode(key.as_bytes()).is_ok_and(|key| key.len() == KEY);
    keys.next().is_some_and(is_whole) && keys.next().is_none()
}

/// Says whether a list in a header holds `token`.
pub(crate) fn has(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    let mut values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.any(|value| value.split(',').any(|word| word.trim().eq_ignore_ascii_case(token)))
}

/// Says yes to a client, with the subprotocol that was chosen.
pub(crate) fn switching(accept: String, protocol: Option<&'static str>) -> Response {
    let headers = [
        (header::CONNECTION, "upgrade".to_owned()),
        (header::UPGRADE, "websocket".to_owned()),
        (header::SEC_WEBSOCKET_ACCEPT, accept),
    ];
    let mut response = (StatusCode::SWITCHING_PROTOCOLS, headers, Body::empty()).into_response();
    if let Some(protocol) = protocol {
        response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    response
}

/// Says no to what is no handshake.
pub(crate) fn refusal() -> Response {
    let what = "this is a WebSocket: connect with version 13 (RFC 6455)\n";
    (StatusCode::BAD_REQUEST, [(header::SEC_WEBSOCKET_VERSION, "13")], what).into_response()
}

/// Reads once, into room that is there for the moment alone.
pub(crate) async fn receive(stream: &mut (impl AsyncRead + Unpin), reader: &mut Reader) -> io::Result<usize> {
    poll_fn(|context| {
        let mut room = [const { MaybeUninit::uninit() }; READ_ROOM];
        let mut room = ReadBuf::uninit(&mut room);
        ready!(Pin::new(&mut *stream).poll_read(context, &mut room))?;
        reader.push(room.filled());
        Ok(room.filled().len()).into()
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
        let accepted = accept(&asked("dGhlIHNhbXBsZSBub25jZQ=="));
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
            assert_eq!(accept(&asked(key)), None, "{key:?}");
        }
        let mut twice = asked("dGhlIHNhbXBsZSBub25jZQ==");
        twice.append(header::SEC_WEBSOCKET_KEY, HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
        assert_eq!(accept(&twice), None);
    }
}
