//! The plain HTTP of the server: a page that says what this is, and a health check.

use axum::Router;
use axum::response::Html;
use axum::routing::get;

/// Routes `/` and `/healthz`.
pub(super) fn router() -> Router {
    Router::new()
        .route("/", get(|| async { Html(include_str!("../../web/index.html")) }))
        .route("/healthz", get(|| async { "ok\n" }))
}
