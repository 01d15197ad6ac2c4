//! The section `[gateway]`.

use super::ConfigError;
use crate::gateway::handshake::{Key, MIN_KEY};
use crate::gateway::{Duplicates, Limits, Times};
use crate::server::GatewayConfig;
use serde::Deserialize;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct GatewaySection {
    enabled: Option<bool>,
    server_listen: Option<Vec<IpAddr>>,
    server_port: Option<u16>,
    hmac_port: Option<u16>,
    tls_port: Option<u16>,
    client_ca: Option<PathBuf>,
    key: Option<String>,
    key_file: Option<PathBuf>,
    duplicates: Option<DuplicatesName>,
    require_token: bool,
    tickets: Option<toml::Value>,
    one_write_per_frame: bool,
    limits: GatewayLimits,
    times: GatewayTimes,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum DuplicatesName {
    Newest,
    Refuse,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct GatewayLimits {
    max_packet: Option<usize>,
    queue: Option<usize>,
    memory: Option<usize>,
    per_client: Option<usize>,
    half_open: Option<usize>,
    undialled: Option<toml::Value>,
    violations: Option<usize>,
    virtual_connections: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct GatewayTimes {
    ping: Option<f64>,
    handshake: Option<f64>,
    pause: Option<f64>,
    hold: Option<toml::Value>,
    frame: Option<f64>,
}

impl GatewaySection {
    /// Refuses keys of earlier versions and names the key that took their place.
    fn check_renamed(&self) -> Result<(), ConfigError> {
        for (is_set, key, rule) in [
            (self.tickets.is_some(), "gateway.tickets", "is now called `gateway.require_token`"),
            (
                self.limits.undialled.is_some(),
                "gateway.limits.undialled",
                "is now called `gateway.limits.half_open`",
            ),
            (self.times.hold.is_some(), "gateway.times.hold", "is now called `gateway.times.pause`"),
        ] {
            if is_set {
                return Err(ConfigError::Value { key, rule });
            }
        }
        Ok(())
    }

    pub(super) fn apply(self, gateway: &mut GatewayConfig) -> Result<(), ConfigError> {
        self.check_renamed()?;
        let value = |key, rule| ConfigError::Value { key, rule };
        gateway.enabled = self.enabled.unwrap_or(gateway.enabled);
        if let Some(listen) = self.server_listen {
            gateway.is_default_listen = listen == gateway.server_listen;
            gateway.server_listen = listen;
        }
        (gateway.server_port, gateway.hmac_port) = (self.server_port, self.hmac_port);
        (gateway.tls_port, gateway.client_ca) = (self.tls_port.filter(|port| *port != 0), self.client_ca);
        if gateway.tls_port.is_some() != gateway.client_ca.is_some() {
            return Err(value("gateway.client_ca", "must be set where gateway.tls_port is, and only there"));
        }
        gateway.require_token = self.require_token;
        let service = &mut gateway.service;
        service.key = match (self.key, self.key_file) {
            (Some(_), Some(_)) => {
                return Err(value("gateway.key_file", "must not be set beside gateway.key"));
            }
            (Some(key), None) => Some(read_key("gateway.key", key)?),
            (None, Some(path)) => {
                let read = std::fs::read_to_string(&path);
                let text = read.map_err(|source| ConfigError::Read { path, source })?;
                Some(read_key("gateway.key_file", text.trim().to_owned())?)
            }
            (None, None) => None,
        };
        service.duplicates = match self.duplicates {
            Some(DuplicatesName::Refuse) => Duplicates::Refuse,
            Some(DuplicatesName::Newest) | None => Duplicates::Newest,
        };
        service.one_write_per_frame = self.one_write_per_frame;
        self.limits.apply(&mut service.limits)?;
        self.times.apply(&mut service.times)
    }
}

fn read_key(name: &'static str, text: String) -> Result<Key, ConfigError> {
    const RULE: &str = "must have at least 16 bytes";
    const { assert!(MIN_KEY == 16) };
    Key::new(text).map_err(|_| ConfigError::Value { key: name, rule: RULE })
}

impl GatewayLimits {
    fn apply(self, limits: &mut Limits) -> Result<(), ConfigError> {
        let Limits { max_packet, queue, memory, per_client, half_open, violations, virtual_connections } =
            limits;
        for (key, given, limit) in [
            ("gateway.limits.max_packet", self.max_packet, &mut *max_packet),
            ("gateway.limits.queue", self.queue, queue),
            ("gateway.limits.memory", self.memory, &mut *memory),
            ("gateway.limits.per_client", self.per_client, per_client),
            ("gateway.limits.half_open", self.half_open, half_open),
            ("gateway.limits.virtual_connections", self.virtual_connections, virtual_connections),
        ] {
            match given {
                Some(0) => return Err(ConfigError::Value { key, rule: "must be at least 1" }),
                Some(given) => *limit = given,
                None => {}
            }
        }
        if !(64..=64 << 20).contains(max_packet) {
            let (key, rule) = ("gateway.limits.max_packet", "must be 64 bytes to 64 MiB");
            return Err(ConfigError::Value { key, rule });
        }
        if *memory < 4 * (*max_packet).max(64 * 1024) {
            let rule = "must be at least 256 KiB, and four times gateway.limits.max_packet";
            return Err(ConfigError::Value { key: "gateway.limits.memory", rule });
        }
        match self.violations {
            Some(0) => {
                return Err(ConfigError::Value {
                    key: "gateway.limits.violations",
                    rule: "must be at least 1",
                });
            }
            Some(given) => *violations = u32::try_from(given).unwrap_or(u32::MAX),
            None => {}
        }
        Ok(())
    }
}

impl GatewayTimes {
    fn apply(self, times: &mut Times) -> Result<(), ConfigError> {
        let Times { ping, handshake, pause, frame } = times;
        for (key, given, time) in [
            ("gateway.times.ping", self.ping, ping),
            ("gateway.times.handshake", self.handshake, handshake),
            ("gateway.times.pause", self.pause, pause),
            ("gateway.times.frame", self.frame, frame),
        ] {
            let Some(seconds) = given else { continue };
            if !(0.05..=86_400.0).contains(&seconds) {
                return Err(ConfigError::Value { key, rule: "must be 0.05 to 86400 seconds" });
            }
            *time = Duration::from_secs_f64(seconds);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn senseless_values_are_refused_by_name() {
        for (text, named) in [
            ("key = 'short'", "gateway.key"),
            ("key = 'sixteen bytes !!'\nkey_file = 'k'", "gateway.key_file"),
            ("key_file = '/nowhere/key'", "/nowhere/key"),
            ("tls_port = 3482", "gateway.client_ca"),
            ("client_ca = 'ca.pem'", "gateway.client_ca"),
            ("duplicates = 'both'", "duplicates"),
            ("limits = { max_packet = 5 }", "gateway.limits.max_packet"),
            ("limits = { memory = 1000000 }", "gateway.limits.memory"),
            ("limits = { queue = 0 }", "gateway.limits.queue"),
            ("limits = { violations = 0 }", "gateway.limits.violations"),
            ("times = { ping = 0 }", "gateway.times.ping"),
        ] {
            let error = Config::parse(&format!("[gateway]\n{text}")).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn a_key_of_an_earlier_version_is_refused_and_its_new_name_is_given() {
        for (text, named) in [
            ("tickets = true", "`gateway.tickets` is now called `gateway.require_token`"),
            (
                "limits = { undialled = 3 }",
                "`gateway.limits.undialled` is now called `gateway.limits.half_open`",
            ),
            ("times = { hold = 5 }", "`gateway.times.hold` is now called `gateway.times.pause`"),
        ] {
            let error = Config::parse(&format!("[gateway]\n{text}")).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }

    #[test]
    fn values_arrive_where_they_are_used() {
        let text = "[gateway]\nserver_port = 4000\nkey = 'sixteen bytes !!'\nrequire_token = true\n[gateway.limits]\nper_client = 3\n[gateway.times]\npause = 0.5";
        let gateway = Config::parse(text).unwrap().server.gateway;
        assert_eq!((gateway.server_port, gateway.require_token), (Some(4000), true));
        assert_eq!(gateway.service.limits.per_client, 3);
        assert_eq!(gateway.service.times.pause.as_millis(), 500);
    }
}
