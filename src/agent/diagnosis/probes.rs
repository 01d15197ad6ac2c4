//! Runs all probes at the same time.

use super::lifetime_probe;
use super::nat_probe;
use super::observations::{Observations, PortMappingObservations};
use super::pair::NetworkDescription;
use super::server_probe::{self, ProbeContext};
use super::verdict::Diagnosis;
use crate::agent::config::Config;
use crate::agent::nat64::{Nat64Prefix, WELL_KNOWN_NAME};
use crate::agent::port_mapping;
use crate::net::interfaces::{self, AddressScope, scope};
use crate::net::time;
use futures_util::future::join_all;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::timeout_at;

/// The longest that a diagnosis takes, whatever the network does.
pub(crate) const DIAGNOSIS_TIMEOUT: Duration = Duration::from_millis(2600);

/// Probes the network of this host and the configured servers. Measures how long a mapping lives for at most `lifetime`, beyond the usual time.
pub(crate) async fn diagnose(config: &Config, lifetime: Option<Duration>) -> Observations {
    let deadline = time::runtime() + DIAGNOSIS_TIMEOUT;
    let local = local_addresses();
    let (second_port, second_port_rx) = watch::channel(None);
    let context = ProbeContext {
        dialer: config.dialer.clone(),
        key: config.key.clone(),
        deadline,
        second_port: Arc::new(second_port),
    };
    let looked_up = join_all(config.servers.iter().map(|name| server_probe::look_up(name, deadline))).await;
    let addresses: Vec<_> = looked_up.iter().flatten().flatten().copied().collect();
    let named = config.servers.iter().cloned().zip(looked_up);
    let servers = named.map(|(name, found)| server_probe::observe(name, found, context.clone()));
    let is_v6_only = !local.iter().any(IpAddr::is_ipv4) && !local.is_empty();
    let port_mapping = async {
        match config.port_mapping {
            true => port_mapping::probe(deadline).await,
            false => PortMappingObservations::NOT_TESTED,
        }
    };
    let (servers, nat, port_mapping, nat64) = tokio::join!(
        join_all(servers),
        nat_probe::observe(addresses.clone(), second_port_rx, deadline),
        port_mapping,
        async { is_v6_only && has_nat64(deadline).await }
    );
    let mapping_lifetime = match (lifetime, addresses.first()) {
        (Some(longest), Some(server)) if nat.behavior().is_some() => {
            Some(lifetime_probe::measure(*server, longest).await)
        }
        _ => None,
    };
    Observations { local, nat64, nat, port_mapping, servers, mapping_lifetime }
}

/// Returns a description of this host's network, as a peer reads it.
pub(crate) async fn describe(config: &Config) -> String {
    let seen = diagnose(config, None).await;
    let description = NetworkDescription::new(&seen, &Diagnosis::new(&seen));
    serde_json::to_string(&description).unwrap_or_default()
}

/// The addresses of this host that are of use beyond its links.
fn local_addresses() -> Vec<IpAddr> {
    let all = interfaces::addresses().unwrap_or_default();
    let mut usable: Vec<IpAddr> = all
        .into_iter()
        .filter(|ip| matches!(scope(*ip), AddressScope::Global | AddressScope::Private))
        .collect();
    usable.sort_by_key(|ip| scope(*ip));
    usable
}

/// Returns whether the network's DNS names the prefix of a NAT64 (RFC 7050).
async fn has_nat64(deadline: Instant) -> bool {
    let found = timeout_at(deadline.into(), tokio::net::lookup_host((WELL_KNOWN_NAME, 0))).await;
    let Ok(Ok(mut answers)) = found else { return false };
    answers.any(|answer| match answer.ip() {
        IpAddr::V6(ip) => Nat64Prefix::of_answer(ip).is_some(),
        IpAddr::V4(_) => false,
    })
}
