//! The HTTP routes: `/ws`, and `/ice`, which returns ICE servers for an access key.

use super::access::{Admitted, Origins, Refusal};
use super::config::Limits;
use super::service::Shared;
use super::tag_id::{TAG_BYTES, base32};
use super::websocket;
use crate::clock::Now;
use crate::limits::{KeyedRateLimiter, Limit, NetworkPrefix};
use crate::net::time::now;
use axum::extract::{ConnectInfo, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use rand::rngs::OsRng;
use rand::{RngCore, TryRngCore};
use serde::Deserialize;
use serde_json::json;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

/// Refuses pages of origins that are not allowed. A request without `Origin` is not from a page.
pub(crate) async fn pages_let_in(
    State(origins): State<Arc<Origins>>,
    request: Request,
    next: Next,
) -> Response {
    match refuse_page(&origins, request.headers()) {
        Some(refusal) => refusal,
        None => next.run(request).await,
    }
}

/// Returns a refusal if the request is from a page of an origin that is not allowed.
pub(super) fn refuse_page(origins: &Origins, headers: &HeaderMap) -> Option<Response> {
    let is_allowed = headers.get_all(header::ORIGIN).iter().all(|origin| origins.hold(origin.as_bytes()));
    (!is_allowed).then(|| (StatusCode::FORBIDDEN, "pages of this origin are not allowed\n").into_response())
}

/// Returns the CORS headers for allowed origins; the response is not cached.
fn cors_headers(shared: &Shared, request_headers: &HeaderMap) -> HeaderMap {
    let (origins, any) = (&shared.config.origins, HeaderValue::from_static("*"));
    let mut headers = HeaderMap::new();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("authorization"));
    if !origins.are_all() {
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
    }
    let own = request_headers.get(header::ORIGIN).filter(|origin| origins.hold(origin.as_bytes()));
    if let Some(origin) = if origins.are_all() { Some(&any) } else { own } {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    }
    headers
}

pub(super) fn router(shared: Arc<Shared>) -> Router {
    let ice = get(ice_servers).options(preflight);
    Router::new().route("/ws", get(websocket::upgrade)).route("/ice", ice).with_state(shared)
}

#[derive(Deserialize)]
struct KeyQuery {
    key: Option<String>,
}

/// Answers `OPTIONS /ice`, the preflight request of browsers.
async fn preflight(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    (StatusCode::NO_CONTENT, cors_headers(&shared, &headers)).into_response()
}

/// Answers `GET /ice`; the key is in `?key=` or in `Authorization: Bearer`.
async fn ice_servers(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Query(query): Query<KeyQuery>,
    request_headers: HeaderMap,
) -> Response {
    let headers = cors_headers(&shared, &request_headers);
    let Some(key) = bearer(&request_headers).or(query.key.as_deref()) else {
        let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
        let body = Json(json!({"error": "show an access key: /ice?key=… or Authorization: Bearer …"}));
        return (StatusCode::UNAUTHORIZED, headers, challenge, body).into_response();
    };
    let now = now();
    let admitted = match admit_to_relay(&shared, now, peer.ip(), key) {
        Ok(admitted) => admitted,
        Err(refusal) => {
            let body = Json(json!({ "error": refusal.to_string() }));
            let mut response = (status_of(refusal), headers, body).into_response();
            if refusal == Refusal::TooMany {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            return response;
        }
    };
    // Each response gets its own name, so that its credentials can be revoked.
    let mut name = [0; TAG_BYTES];
    if let Err(error) = OsRng.try_fill_bytes(&mut name) {
        tracing::error!(%error, "the system's random source");
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let name = base32(&name);
    let servers = shared.config.ice_servers.admitted(now, &name, admitted);
    (headers, Json(json!({ "iceServers": servers, "tag": name }))).into_response()
}

/// Checks a key for `/ice` and charges the rates of its network and account.
fn admit_to_relay(shared: &Shared, now: Now, from: IpAddr, key: &str) -> Result<Admitted, Refusal> {
    shared.ice.take_request(now, from)?;
    let admitted = shared.admit(now, from, key)?;
    if !admitted.scopes.relay {
        return Err(Refusal::Scope("relay"));
    }
    shared.ice.take_credentials(now, admitted)?;
    Ok(admitted)
}

/// The rate limits of `/ice`: requests of a network, and credentials of an account.
#[derive(Debug)]
pub(super) struct IceRates {
    networks: Mutex<KeyedRateLimiter<NetworkPrefix>>,
    accounts: Mutex<KeyedRateLimiter<u64>>,
}

impl IceRates {
    pub(super) fn new(limits: &Limits, rng: &mut impl RngCore) -> Self {
        let networks = Mutex::new(limits.limiter(limits.ice_per_network, limits.rates, rng));
        let accounts = Mutex::new(limits.limiter(limits.ice_per_key, limits.rates, rng));
        Self { networks, accounts }
    }

    /// Charges a request of a network, whatever key it carries.
    fn take_request(&self, now: Now, from: IpAddr) -> Result<(), Refusal> {
        take(&self.networks, &NetworkPrefix::subscriber(from), now, Limit::SignalingIcePerNetwork)
    }

    fn take_credentials(&self, now: Now, to: Admitted) -> Result<(), Refusal> {
        take(&self.accounts, &to.account, now, Limit::SignalingIcePerKey)
    }
}

fn take<K: Hash>(
    limiter: &Mutex<KeyedRateLimiter<K>>,
    key: &K,
    now: Now,
    limit: Limit,
) -> Result<(), Refusal> {
    let mut limiter = limiter.lock().unwrap_or_else(PoisonError::into_inner);
    if limiter.try_take(key, now.mono, 1) {
        return Ok(());
    }
    limit.reached(limiter.rate().per_second());
    Err(Refusal::TooMany)
}

/// Returns the key or JWT in `Authorization: Bearer`.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

/// Returns the HTTP status of a refusal.
pub(crate) fn status_of(refusal: Refusal) -> StatusCode {
    match refusal {
        Refusal::TooMany => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::FORBIDDEN,
    }
}
