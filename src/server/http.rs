//! HTTP on a stream whose protocol was detected: waits for the request's head in little memory, and refuses what is not HTTP/1.1.

use super::request_source::{self, RequestSource};
use super::tcp_accept::ConnectionInfo;
use super::turn_websocket::Origin;
use super::write_timeout::WriteTimeout;
use crate::dataplane::stream_limits::WRITE_TIME;
use crate::limits::NetworkPrefix;
use crate::net::peeked_stream::PeekedStream;
use crate::net::websocket::upgrade;
use crate::turn_server::Transport;
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, Version, header};
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// Time for a request's head.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// The longest head.
const MAX_HEAD: usize = 8000;
/// Bytes that the crate reads ahead: a head, and what follows it.
const READ_AHEAD: usize = 16 * 1024;
/// Memory of a request while it is answered, in bytes.
const MEMORY: usize = 40 * 1024;
/// The response to a longer head.
const TOO_LONG: &[u8] =
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// Answers one request.
pub(super) async fn serve<S>(
    mut stream: PeekedStream<S>,
    (router, trusted): (Router, Arc<[NetworkPrefix]>),
    info: ConnectionInfo,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let is_end = |end: &[u8]| end.starts_with(b"\n\n") || end == b"\n\r\n";
    let whole = |start: &[u8]| {
        let ends = start.ends_with(b"\n\n") || start.windows(3).any(is_end);
        ends.then_some(())
    };
    match timeout(HEAD_TIME, stream.peek_up_to(MAX_HEAD, whole)).await? {
        Ok(Some(())) => {}
        Ok(None) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            timeout(HEAD_TIME, stream.write_all(TOO_LONG)).await??;
            return timeout(HEAD_TIME, stream.shutdown()).await?;
        }
        Err(error) => return Err(error),
    }
    if !info.connection.reserve_memory(MEMORY) {
        return Ok(());
    }
    // Boxed, so that tasks that wait for a head stay small.
    let client = info.tuple(Transport::WebSocket);
    let origin = Origin { client, worker: info.worker, connection: info.connection };
    let source = RequestSource { trusted, is_tls: info.is_tls, origin };
    let router = router.layer(from_fn_with_state(source, request_source::name_client));
    Box::pin(answer(stream, router)).await
}

async fn answer<S>(stream: PeekedStream<S>, router: Router) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let refused = refusal(request.version(), request.headers());
        let answer = refused.is_none().then(|| router.call(request));
        async move {
            let mut response = match answer {
                Some(answer) => answer.await?,
                None => refused.unwrap_or_default(),
            };
            // One request a connection: otherwise a client could keep this memory by staying silent. The crate's own option
            // would remove the upgrade from a WebSocket's response.
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<Response<Body>, Infallible>(response)
        }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(READ_AHEAD)
        .serve_connection(TokioIo::new(WriteTimeout::new(stream, WRITE_TIME)), service)
        .with_upgrades()
        .await
        .map_err(io::Error::other)
}

/// Refuses what [RFC 9112 section 3.2](https://www.rfc-editor.org/rfc/rfc9112#section-3.2) and
/// [RFC 6455 section 4.2.1](https://www.rfc-editor.org/rfc/rfc6455#section-4.2.1) require to be refused on every path.
fn refusal(version: Version, headers: &HeaderMap) -> Option<Response<Body>> {
    let hosts = headers.get_all(header::HOST).iter().count();
    if hosts > 1 || (hosts == 0 && version == Version::HTTP_11) {
        let what = "HTTP/1.1 wants one Host (RFC 9112 section 3.2)\n";
        return Some((StatusCode::BAD_REQUEST, what).into_response());
    }
    (upgrade::is_websocket(headers) && !upgrade::has_key(headers)).then(upgrade::refusal)
}
