//! Who an HTTP request is from: the connection's client, or whom a trusted proxy names.

use super::turn_websocket::Origin;
use crate::limits::Limit;
use crate::limits::NetworkPrefix;
use crate::net::forwarded;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;

const X_FORWARDED_FOR: &str = "x-forwarded-for";

/// Where the requests of one connection come from.
#[derive(Debug, Clone)]
pub(super) struct RequestSource {
    pub(super) trusted: Arc<[NetworkPrefix]>,
    pub(super) origin: Origin,
}

/// Whether a proxy has passed the request on, trusted or not: what is for this host alone, or for the operator, is not for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IsForwarded(pub(super) bool);

/// Tells the routes whom a request is from. One that is passed on counts as a connection of its client for as long as it lasts.
pub(super) async fn name_client(
    State(source): State<RequestSource>,
    mut request: Request,
    next: Next,
) -> Response {
    let RequestSource { trusted, mut origin } = source;
    let headers = request.headers();
    let is_forwarded = headers.contains_key(X_FORWARDED_FOR) || headers.contains_key(header::FORWARDED);
    let by_proxy = is_forwarded && forwarded::is_trusted(&trusted, origin.client.client.ip());
    let named = by_proxy.then(|| {
        let x_forwarded_for = values(headers, X_FORWARDED_FOR);
        forwarded::client(&trusted, x_forwarded_for, values(headers, header::FORWARDED.as_str()))
    });
    let forwarded = named.map(|_| origin.connection.clone());
    if let Some(client) = named {
        // Those of whom nothing can be known are counted together: a client chooses what a header says that its proxy does not write.
        let client = client.unwrap_or(origin.client.client.ip());
        if !origin.connection.assign_to_forwarded(client) {
            let reason = format!("limit reached: {}\n", Limit::ConnectionsPerAddress.name());
            return (StatusCode::TOO_MANY_REQUESTS, reason).into_response();
        }
        origin.client.client.set_ip(client);
    }
    let extensions = request.extensions_mut();
    extensions.insert(ConnectInfo(origin.client.client));
    extensions.insert(IsForwarded(is_forwarded));
    extensions.insert(origin.connection.clone());
    extensions.insert(origin);
    let response = next.run(request).await;
    if let Some(connection) = forwarded.filter(|_| response.status() != StatusCode::SWITCHING_PROTOCOLS) {
        connection.unassign();
    }
    response
}

fn values<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    headers.get_all(name).iter().map(HeaderValue::as_bytes)
}
