//! The HTTP hand: `/ws`, and `/ice`, which hands ICE servers to those who show an access key.

use super::admission;
use super::service::Shared;
use super::websocket;
use crate::net::time::now;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

/// Pages of any origin may ask, and no cache may keep what they got.
const OPEN_AND_FRESH: [(HeaderName, &str); 3] = [
    (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
    (header::ACCESS_CONTROL_ALLOW_HEADERS, "authorization"),
    (header::CACHE_CONTROL, "no-store"),
];

pub(super) fn router(shared: Arc<Shared>) -> Router {
    let ice = get(ice_servers).options(|| async { (StatusCode::NO_CONTENT, OPEN_AND_FRESH) });
    Router::new().route("/ws", get(websocket::upgrade)).route("/ice", ice).with_state(shared)
}

#[derive(Deserialize)]
struct Shown {
    key: Option<String>,
}

/// Answers `GET /ice`: the key stands in `?key=` or in `Authorization: Bearer`.
async fn ice_servers(
    State(shared): State<Arc<Shared>>,
    Query(shown): Query<Shown>,
    headers: HeaderMap,
) -> Response {
    let bearer =
        headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let Some(key) = bearer.or(shown.key.as_deref()) else {
        let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
        let body = Json(json!({"error": "show an access key: /ice?key=… or Authorization: Bearer …"}));
        return (StatusCode::UNAUTHORIZED, OPEN_AND_FRESH, challenge, body).into_response();
    };
    let now = now();
    let admitted = admission::admit(&shared.config, now, key).map_err(|refusal| refusal.to_string());
    let relay = "this access key does not have the scope `relay`".to_owned();
    let until =
        match admitted.and_then(|admitted| admitted.scopes.relay.then_some(admitted.until).ok_or(relay)) {
            Ok(until) => until,
            Err(error) => {
                let body = Json(json!({ "error": error }));
                return (StatusCode::FORBIDDEN, OPEN_AND_FRESH, body).into_response();
            }
        };
    let name = format!("web{}", shared.next_conn().0);
    let servers = shared.config.ice_servers.admitted(now, &name, until);
    (OPEN_AND_FRESH, Json(json!({ "iceServers": servers }))).into_response()
}
