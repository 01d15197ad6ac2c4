//! HTTP: `/ws`, and `/ice`, which returns ICE servers for an access key.

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

/// Refuses pages of other origins. A request without `Origin` is from no page.
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

/// Refuses pages of origins that are not let in.
pub(super) fn refuse_page(origins: &Origins, asked: &HeaderMap) -> Option<Response> {
    let is_let_in = asked.get_all(header::ORIGIN).iter().all(|origin| origins.hold(origin.as_bytes()));
    (!is_let_in).then(|| (StatusCode::FORBIDDEN, "pages of this origin are not let in\n").into_response())
}

/// Pages of origins that are let in may read the answer, and no cache may keep it.
fn open_and_fresh(shared: &Shared, asked: &HeaderMap) -> HeaderMap {
    let (origins, any) = (&shared.config.origins, HeaderValue::from_static("*"));
    let mut headers = HeaderMap::new();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("authorization"));
    if !origins.are_all() {
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
    }
    let own = asked.get(header::ORIGIN).filter(|origin| origins.hold(origin.as_bytes()));
    if let Some(origin) = if origins.are_all() { Some(&any) } else { own } {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    }
    headers
}

pub(super) fn router(shared: Arc<Shared>) -> Router {
    let ice = get(ice_servers).options(may_ask);
    Router::new().route("/ws", get(websocket::upgrade)).route("/ice", ice).with_state(shared)
}

#[derive(Deserialize)]
struct Shown {
    key: Option<String>,
}

/// Answers `OPTIONS /ice`, which browsers ask before they show a key.
async fn may_ask(State(shared): State<Arc<Shared>>, asked: HeaderMap) -> Response {
    (StatusCode::NO_CONTENT, open_and_fresh(&shared, &asked)).into_response()
}

/// Answers `GET /ice`: the key stands in `?key=` or in `Authorization: Bearer`.
async fn ice_servers(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Query(shown): Query<Shown>,
    asked: HeaderMap,
) -> Response {
    let headers = open_and_fresh(&shared, &asked);
    let Some(key) = bearer(&asked).or(shown.key.as_deref()) else {
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
    // A name of its own, so that it can be revoked.
    let mut name = [0; TAG_BYTES];
    if let Err(error) = OsRng.try_fill_bytes(&mut name) {
        tracing::error!(%error, "the system's random source");
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let name = base32(&name);
    let servers = shared.config.ice_servers.admitted(now, &name, admitted);
    (headers, Json(json!({ "iceServers": servers, "tag": name }))).into_response()
}

/// Checks a key that was shown at `/ice` and charges the rates of its network and of its account.
fn admit_to_relay(shared: &Shared, now: Now, from: IpAddr, key: &str) -> Result<Admitted, Refusal> {
    shared.ice.ask(now, from)?;
    let admitted = shared.admit(now, from, key)?;
    if !admitted.scopes.relay {
        return Err(Refusal::Scope("relay"));
    }
    shared.ice.hand_out(now, admitted)?;
    Ok(admitted)
}

/// The rates of `/ice`: requests of a network, and credentials of an account.
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

    /// Lets a network ask, whatever it shows.
    fn ask(&self, now: Now, from: IpAddr) -> Result<(), Refusal> {
        take(&self.networks, &NetworkPrefix::subscriber(from), now, Limit::SignalingIcePerNetwork)
    }

    fn hand_out(&self, now: Now, to: Admitted) -> Result<(), Refusal> {
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
pub(crate) fn bearer(asked: &HeaderMap) -> Option<&str> {
    asked.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

/// Returns the HTTP status of a refusal.
pub(crate) fn status_of(refusal: Refusal) -> StatusCode {
    match refusal {
        Refusal::TooMany => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::FORBIDDEN,
    }
}
