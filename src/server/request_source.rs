//! The client of an HTTP request: the connection's, or the one that a trusted proxy names.

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
const X_FORWARDED_PROTO: &str = "x-forwarded-proto";

/// The source of the requests of one connection.
#[derive(Debug, Clone)]
pub(super) struct RequestSource {
    pub(super) trusted: Arc<[NetworkPrefix]>,
    /// Whether the connection is inside our TLS.
    pub(super) is_tls: bool,
    pub(super) origin: Origin,
}

/// Whether the client's connection is inside TLS: ours, or that of a trusted proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IsSecure(pub(super) bool);

/// Whether a proxy, trusted or not, has forwarded the request: such a request gets nothing that is for this host or the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IsForwarded(pub(super) bool);

/// Adds the client's address to a request. A forwarded request counts as a connection of its client while it lasts.
pub(super) async fn name_client(
    State(source): State<RequestSource>,
    mut request: Request,
    next: Next,
) -> Response {
    let RequestSource { trusted, is_tls, mut origin } = source;
    let headers = request.headers();
    let is_forwarded = headers.contains_key(X_FORWARDED_FOR) || headers.contains_key(header::FORWARDED);
    let by_proxy = is_forwarded && forwarded::is_trusted(&trusted, origin.client.client.ip());
    let named = by_proxy.then(|| {
        let x_forwarded_for = values(headers, X_FORWARDED_FOR);
        forwarded::client(&trusted, x_forwarded_for, values(headers, header::FORWARDED.as_str()))
    });
    let forwarded = named.map(|_| origin.connection.clone());
    if let Some(client) = named {
        // Unknown clients are counted together: a client controls headers that its proxy does not write.
        let client = client.unwrap_or(origin.client.client.ip());
        if !origin.connection.assign_to_forwarded(client) {
            let reason = format!("limit reached: {}\n", Limit::ConnectionsPerAddress.name());
            return (StatusCode::TOO_MANY_REQUESTS, reason).into_response();
        }
        origin.client.client.set_ip(client);
    }
    let is_secure = match by_proxy {
        true => forwarded::is_https(
            values(request.headers(), X_FORWARDED_PROTO),
            values(request.headers(), header::FORWARDED.as_str()),
        ),
        false => is_tls,
    };
    let extensions = request.extensions_mut();
    extensions.insert(IsSecure(is_secure));
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
