//! The plain HTTP of the server: a page that says what this is, the client module for pages, and a health check.

use axum::Router;
use axum::http::{HeaderName, header};
use axum::response::Html;
use axum::routing::get;

/// Routes `/`, `/ginnel.js`, `/ginnel.d.ts` and `/healthz`.
pub(super) fn router() -> Router {
    Router::new()
        .route("/", get(|| async { Html(include_str!("../../web/index.html")) }))
        .route("/ginnel.js", get(|| module("text/javascript; charset=utf-8", CLIENT)))
        .route("/ginnel.d.ts", get(|| module("text/plain; charset=utf-8", CLIENT_TYPES)))
        .route("/healthz", get(|| async { "ok\n" }))
}

const CLIENT: &str = include_str!("../../web/ginnel.js");
const CLIENT_TYPES: &str = include_str!("../../web/ginnel.d.ts");

/// Pages of any origin may import it, and ask again after each update of the server.
async fn module(kind: &'static str, text: &'static str) -> ([(HeaderName, &'static str); 4], &'static str) {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, text)
}
