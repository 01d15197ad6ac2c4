//! The section `[messaging]`.

use super::ConfigError;
use super::signaling::RateSection;
use crate::messaging::config::{Limits, Policy};
use crate::server::MessagingConfig;
use serde::Deserialize;
use std::time::Duration;

/// An empty database has about 100 KiB.
const LEAST_STORED: usize = 1_000_000;
const DAY: f64 = 24.0 * 3600.0;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct MessagingSection {
    enabled: Option<bool>,
    port: Option<u16>,
    legacy: Option<bool>,
    tls_port: Option<u16>,
    dispatcher_port: Option<u16>,
    servers: Vec<String>,
    policy: Option<PolicyName>,
    registration: Option<bool>,
    limits: LimitsSection,
    times: TimesSection,
    password: PasswordSection,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PolicyName {
    Anyone,
    Contacts,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TimesSection {
    idle: Option<f64>,
    retention_days: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PasswordSection {
    memory_kib: Option<u32>,
    passes: Option<u32>,
    threads: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LimitsSection {
    parties: Option<usize>,
    messages_per_mailbox: Option<usize>,
    bytes_per_mailbox: Option<usize>,
    stored_bytes: Option<usize>,
    contacts: Option<usize>,
    logins_per_account: Option<RateSection>,
    logins_per_network: Option<RateSection>,
    registrations_per_network: Option<RateSection>,
    key_exchanges_per_network: Option<RateSection>,
    requests_per_connection: Option<RateSection>,
    job_queue: Option<usize>,
    jobs_per_network: Option<usize>,
    request_bytes: Option<usize>,
    frame_bytes: Option<usize>,
    outbox_bytes: Option<usize>,
    outboxes_bytes: Option<usize>,
}

impl MessagingSection {
    pub(super) fn apply(self, messaging: &mut MessagingConfig) -> Result<(), ConfigError> {
        let value = |key, rule| ConfigError::Value { key, rule };
        messaging.enabled = self.enabled.unwrap_or(messaging.enabled);
        messaging.port = self.port.unwrap_or(messaging.port);
        messaging.legacy = self.legacy.unwrap_or(messaging.legacy);
        messaging.tls_port = self.tls_port.filter(|port| *port != 0);
        messaging.dispatcher_port = self.dispatcher_port.filter(|port| *port != 0);
        let ports = [Some(messaging.port), messaging.tls_port, messaging.dispatcher_port];
        let ports: Vec<_> = ports.into_iter().flatten().filter(|port| *port != 0).collect();
        if ports.iter().enumerate().any(|(index, port)| ports[..index].contains(port)) {
            return Err(value("messaging.port", "must differ from the section's other ports"));
        }
        let servers: Option<_> = self.servers.iter().map(|text| server(text)).collect();
        messaging.servers = servers.ok_or(value("messaging.servers", "must hold HOST:PORT of servers"))?;
        let service = &mut messaging.service;
        service.policy = match self.policy {
            Some(PolicyName::Anyone) => Policy::Anyone,
            Some(PolicyName::Contacts) => Policy::Contacts,
            None => service.policy,
        };
        service.registration = self.registration.unwrap_or(service.registration);
        for (key, given, unit, range, time) in [
            ("messaging.times.idle", self.times.idle, 1.0, 1.0..=86_400.0, &mut service.idle),
            (
                "messaging.times.retention_days",
                self.times.retention_days,
                DAY,
                0.001..=3650.0,
                &mut service.retention,
            ),
        ] {
            let Some(given) = given else { continue };
            if !range.contains(&given) {
                return Err(value(key, "must be 1 to 86400 seconds, or 0.001 to 3650 days"));
            }
            *time = Duration::from_secs_f64(given * unit);
        }
        let cost = &mut service.password_cost;
        cost.memory_kib = self.password.memory_kib.unwrap_or(cost.memory_kib);
        cost.passes = self.password.passes.unwrap_or(cost.passes);
        service.password_threads = self.password.threads.unwrap_or(service.password_threads);
        if !(64..=4 << 20).contains(&cost.memory_kib) || !(1..=100).contains(&cost.passes) {
            return Err(value(
                "messaging.password.memory_kib",
                "must be 64 to 4194304, with 1 to 100 passes",
            ));
        }
        if !(1..=64).contains(&service.password_threads) {
            return Err(value("messaging.password.threads", "must be 1 to 64"));
        }
        self.limits.apply(&mut service.limits)
    }
}

/// Reads `HOST:PORT`.
fn server(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    (!host.is_empty()).then(|| (host.trim_matches(['[', ']']).to_owned(), port))
}

impl LimitsSection {
    fn apply(self, limits: &mut Limits) -> Result<(), ConfigError> {
        for (key, given, rate) in [
            ("messaging.limits.logins_per_account", self.logins_per_account, &mut limits.logins_per_account),
            ("messaging.limits.logins_per_network", self.logins_per_network, &mut limits.logins_per_network),
            (
                "messaging.limits.registrations_per_network",
                self.registrations_per_network,
                &mut limits.registrations_per_network,
            ),
            (
                "messaging.limits.key_exchanges_per_network",
                self.key_exchanges_per_network,
                &mut limits.key_exchanges_per_network,
            ),
            (
                "messaging.limits.requests_per_connection",
                self.requests_per_connection,
                &mut limits.requests_per_connection,
            ),
        ] {
            if let Some(given) = given {
                *rate = given.checked(key)?;
            }
        }
        let (mut parties, mut messages, mut bytes, mut stored, mut contacts) = (None, None, None, None, None);
        for (key, given, least, limit) in [
            ("messaging.limits.parties", self.parties, 1, &mut parties),
            ("messaging.limits.messages_per_mailbox", self.messages_per_mailbox, 1, &mut messages),
            ("messaging.limits.bytes_per_mailbox", self.bytes_per_mailbox, 65_536, &mut bytes),
            ("messaging.limits.stored_bytes", self.stored_bytes, LEAST_STORED, &mut stored),
            ("messaging.limits.contacts", self.contacts, 1, &mut contacts),
        ] {
            *limit = at_least(key, given, least)?.map(|given| given as u64);
        }
        limits.parties = parties.unwrap_or(limits.parties);
        limits.messages_per_mailbox = messages.unwrap_or(limits.messages_per_mailbox);
        limits.bytes_per_mailbox = bytes.unwrap_or(limits.bytes_per_mailbox);
        limits.stored_bytes = stored.unwrap_or(limits.stored_bytes);
        limits.contacts = contacts.unwrap_or(limits.contacts);
        const FRAME: usize = 1 << 20;
        for (key, given, least, limit) in [
            ("messaging.limits.job_queue", self.job_queue, 1, &mut limits.job_queue),
            ("messaging.limits.jobs_per_network", self.jobs_per_network, 1, &mut limits.jobs_per_network),
            ("messaging.limits.request_bytes", self.request_bytes, FRAME, &mut limits.request_bytes),
            ("messaging.limits.frame_bytes", self.frame_bytes, 8 * FRAME, &mut limits.frame_bytes),
            ("messaging.limits.outbox_bytes", self.outbox_bytes, FRAME, &mut limits.outbox_bytes),
            ("messaging.limits.outboxes_bytes", self.outboxes_bytes, FRAME, &mut limits.outboxes_bytes),
        ] {
            *limit = at_least(key, given, least)?.unwrap_or(*limit);
        }
        Ok(())
    }
}

fn at_least(key: &'static str, given: Option<usize>, least: usize) -> Result<Option<usize>, ConfigError> {
    let rule = match least {
        1 => "must be at least 1",
        65_536 => "must be at least 65536, one message",
        LEAST_STORED => "must be at least 1000000",
        _ => "must be at least 1048576, one frame; of frame_bytes one network may use an eighth",
    };
    match given {
        Some(given) if given < least => Err(ConfigError::Value { key, rule }),
        given => Ok(given),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use crate::messaging::config::Policy;

    #[test]
    fn senseless_values_are_refused_by_name() {
        for (text, named) in [
            ("prot = 1", "prot"),
            ("port = 70000", "port"),
            ("tls_port = 8888", "messaging.port"),
            ("servers = ['here']", "messaging.servers"),
            ("servers = [':1']", "messaging.servers"),
            ("policy = 'nobody'", "policy"),
            ("times = { idle = 0 }", "messaging.times.idle"),
            ("times = { retention_days = 0 }", "messaging.times.retention_days"),
            ("password = { memory_kib = 1 }", "messaging.password.memory_kib"),
            ("password = { threads = 0 }", "messaging.password.threads"),
            ("limits = { contacts = 0 }", "messaging.limits.contacts"),
            ("limits = { bytes_per_mailbox = 1 }", "messaging.limits.bytes_per_mailbox"),
            ("limits = { stored_bytes = 1000 }", "messaging.limits.stored_bytes"),
            ("limits = { frame_bytes = 1000 }", "messaging.limits.frame_bytes"),
            (
                "limits = { logins_per_account = { burst = 0, per_second = 1 } }",
                "messaging.limits.logins_per_account",
            ),
        ] {
            let error = Config::parse(&format!("[messaging]\n{text}")).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn values_arrive_where_they_are_used() {
        let text = "[messaging]\nenabled = true\nport = 1234\nlegacy = false\ntls_port = 1235\ndispatcher_port = 9999\n\
                    servers = ['192.0.2.1:8888', '[2001:db8::1]:8888']\npolicy = 'contacts'\nregistration = false\n\
                    [messaging.limits]\nparties = 9\nmessages_per_mailbox = 7\nstored_bytes = 5000000\noutbox_bytes = 2000000\n[messaging.times]\nidle = 5\nretention_days = 2";
        let messaging = Config::parse(text).unwrap().server.messaging;
        assert_eq!((messaging.enabled, messaging.port, messaging.legacy), (true, 1234, false));
        assert_eq!((messaging.tls_port, messaging.dispatcher_port), (Some(1235), Some(9999)));
        assert_eq!(messaging.servers[1], ("2001:db8::1".to_owned(), 8888));
        let service = messaging.service;
        assert_eq!((service.policy, service.registration), (Policy::Contacts, false));
        assert_eq!((service.limits.parties, service.limits.messages_per_mailbox), (9, 7));
        assert_eq!((service.limits.outbox_bytes, service.limits.stored_bytes), (2_000_000, 5_000_000));
        assert_eq!((service.idle.as_secs(), service.retention.as_secs()), (5, 172_800));
    }
}
