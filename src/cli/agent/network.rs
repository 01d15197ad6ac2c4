//! Options of everyone who connects: which server, what may be used of it, and which paths.

use super::error::UsageError;
use super::gateway::TlsOptions;
use super::proxy_environment;
use super::secrets::KeySource;
use crate::agent::{Config, IceImplementation, PathPolicy, Protocol, ServerName};
use clap::Args;

/// See the [module](self).
#[derive(Debug, Args)]
pub(super) struct NetworkOptions {
    /// The server: HOST[:PORT], or https://HOST[:PORT] for TLS. Default for those with a ticket: those in it. Given again: used when those before do not answer, at most four [default port: 3478]
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(super) server: Vec<ServerName>,
    #[command(flatten)]
    pub(super) key: KeySource,
    #[command(flatten)]
    pub(super) tls: TlsOptions,
    /// Use only the relay; host addresses are not sent to the other side
    #[arg(long, conflicts_with = "no_relay")]
    relay_only: bool,
    /// Use only a direct path
    #[arg(long)]
    no_relay: bool,
    /// Do not ask the router to map ports
    #[arg(long)]
    no_port_mapping: bool,
    /// Do not predict or probe the ports of NATs that change ports
    #[arg(long)]
    no_spray: bool,
    /// The ICE implementation: our own, or the crate webrtc-ice for comparison
    #[arg(long, value_name = "ginnel|webrtc", default_value = "ginnel", value_parser = ice_implementation, hide_default_value = true)]
    ice: IceImplementation,
}

fn ice_implementation(name: &str) -> Result<IceImplementation, String> {
    match name {
        "ginnel" => Ok(IceImplementation::Ginnel),
        "webrtc" => Ok(IceImplementation::WebRtc),
        _ => Err("ginnel or webrtc".to_owned()),
    }
}

impl NetworkOptions {
    /// Returns the configuration of an agent that speaks `protocol`.
    pub(super) fn config(&self, protocol: Protocol) -> Result<Config, UsageError> {
        let policy = match (self.relay_only, self.no_relay) {
            (true, _) => PathPolicy::RelayOnly,
            (_, true) => PathPolicy::DirectOnly,
            _ => PathPolicy::All,
        };
        let mut config = Config::new()
            .protocol(protocol)
            .policy(policy)
            .ice(self.ice)
            .port_mapping(!self.no_port_mapping)
            .spray(!self.no_spray)
            .tls(self.tls.tls()?)
            .proxies(proxy_environment::read()?);
        for server in &self.server {
            config = config.further_server(server.clone());
        }
        if let Some(key) = self.key.key(false)? {
            config = config.key(key);
        }
        Ok(config)
    }
}
