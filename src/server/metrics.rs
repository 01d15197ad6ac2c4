//! `/metrics`: all counters of the server in Prometheus' text format (`docs/metrics.md`).

use super::hosts::OwnHosts;
use super::request_source::IsForwarded;
use crate::dataplane::counters::WorkerCounters;
use crate::dataplane::inbox::Inbox;
use crate::gateway::{Handle, Service};
use crate::limits::{self, NetworkPrefix, Table};
use crate::net::connection_limiter::ConnectionLimiter;
use crate::signaling;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use std::net::SocketAddr;
use std::sync::Arc;

/// The services whose counters are exported.
#[derive(Debug, Clone)]
pub(super) struct Services {
    gateway: Option<Handle>,
    #[cfg(feature = "messaging")]
    messaging: Option<crate::messaging::service::Handle>,
    signaling: signaling::Handle,
    connections: Arc<ConnectionLimiter>,
    workers: Arc<[Inbox]>,
}

impl Services {
    pub(super) fn new(
        gateway: Option<&Service>,
        signaling: signaling::Handle,
        (connections, workers): (&Arc<ConnectionLimiter>, &Arc<[Inbox]>),
    ) -> Self {
        Self {
            gateway: gateway.map(Service::handle),
            #[cfg(feature = "messaging")]
            messaging: None,
            signaling,
            connections: Arc::clone(connections),
            workers: Arc::clone(workers),
        }
    }

    /// Exports the counters of messaging too.
    #[cfg(feature = "messaging")]
    pub(super) fn with_messaging(self, messaging: Option<&super::messaging::OpenMessaging>) -> Self {
        Self { messaging: messaging.map(|messaging| messaging.service.handle()), ..self }
    }
}

/// The sources of the counters, and who may read them.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    services: Services,
    /// The names and addresses for which requests are answered.
    hosts: OwnHosts,
    from: Arc<[NetworkPrefix]>,
}

impl Metrics {
    pub(super) fn new(services: Services, hosts: OwnHosts, from: &[NetworkPrefix]) -> Self {
        Self { services, hosts, from: from.into() }
    }
}

/// Routes `/metrics`.
pub(super) fn router(metrics: Metrics) -> Router {
    Router::new().route("/metrics", get(answer).with_state(metrics))
}

/// Answers permitted addresses. Forwarded requests are refused, because a permitted proxy would answer for every client.
async fn answer(
    State(metrics): State<Metrics>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Extension(IsForwarded(is_forwarded)): Extension<IsForwarded>,
    target: Uri,
    asked: HeaderMap,
) -> Response {
    let ip = peer.ip().to_canonical();
    if is_forwarded || !NetworkPrefix::any_contains(&metrics.from, ip) {
        return StatusCode::NOT_FOUND.into_response();
    }
    if !metrics.hosts.are_asked(&target, &asked) {
        let why = "the Host of the request is none of this server: see metrics_hosts\n";
        return (StatusCode::FORBIDDEN, why).into_response();
    }
    let Some(workers) = WorkerCounters::gather(&metrics.services.workers).await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let mut text = limits::to_prometheus(Table::of_process()) + &workers.to_prometheus();
    #[cfg(feature = "cli")]
    text.push_str(&crate::telemetry::to_prometheus());
    text += &metrics.services.connections.counters().to_prometheus();
    if let Some(gateway) = &metrics.services.gateway {
        match gateway.counters().await {
            Some(counters) => text += &counters.to_prometheus(),
            None => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
        }
    }
    #[cfg(feature = "messaging")]
    if let Some(messaging) = &metrics.services.messaging {
        match messaging.counters().await {
            Some(counters) => text += &counters.to_prometheus(),
            None => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
        }
    }
    match metrics.services.signaling.counters().await {
        Some(counters) => text += &counters.to_prometheus(),
        None => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}
