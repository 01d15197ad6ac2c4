//! Static HTTP resources: the start page, the client modules for pages, and health checks.

use axum::Router;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::Html;
use axum::routing::get;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Routes `/`, the modules `/ginnel.js` and `/messages.js` with their types, `/healthz`, `/livez` and `/readyz`, which reports whether all listeners are open.
pub(super) fn router(ready: Arc<AtomicBool>) -> Router {
    let page = get(|| async { Html(include_str!("../../web/index.html")) }).options(options);
    let health = || get(|| async { "ok\n" }).options(options);
    let readiness = get(move || async move { readiness(ready.load(Ordering::Acquire)) }).options(options);
    Router::new()
        .route("/", page)
        .route("/ginnel.js", get(|| module("text/javascript; charset=utf-8", CLIENT)))
        .route("/ginnel.d.ts", get(|| module("text/plain; charset=utf-8", CLIENT_TYPES)))
        .route("/messages.js", get(|| module("text/javascript; charset=utf-8", MESSAGES)))
        .route("/messages.d.ts", get(|| module("text/plain; charset=utf-8", MESSAGES_TYPES)))
        .route("/healthz", health())
        .route("/livez", health())
        .route("/readyz", readiness)
}

/// Answers `OPTIONS`, which HAProxy's health check sends by default.
async fn options() -> (StatusCode, [(HeaderName, &'static str); 1]) {
    (StatusCode::NO_CONTENT, [(header::ALLOW, "GET, HEAD, OPTIONS")])
}

fn readiness(is_ready: bool) -> (StatusCode, &'static str) {
    if is_ready { (StatusCode::OK, "ready\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "starting\n") }
}

const CLIENT: &str = include_str!("../../web/ginnel.js");
const CLIENT_TYPES: &str = include_str!("../../web/ginnel.d.ts");
const MESSAGES: &str = include_str!("../../web/messages.js");
const MESSAGES_TYPES: &str = include_str!("../../web/messages.d.ts");

/// Pages of any origin may import it; they revalidate it after each update of the server.
async fn module(kind: &'static str, text: &'static str) -> ([(HeaderName, &'static str); 4], &'static str) {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_ready_once_everything_listens() {
        assert_eq!(readiness(false).0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(readiness(true).0, StatusCode::OK);
    }
}
