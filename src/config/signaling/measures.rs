//! `[signaling.times]` and `[signaling.limits]`: a key for each field of what signalling goes by.
//!
//! The services' structs are taken apart without a rest, so that a field that has no key here does not compile.

use super::value;
use crate::config::ConfigError;
use crate::limits;
use crate::signaling;
use serde::Deserialize;
use std::time::Duration;

/// Longest time in seconds, and shortest.
const SECONDS: std::ops::RangeInclusive<f64> = 0.001..=86_400.0;
/// Maximum number of waits in `retransmit`.
const MAX_COPIES: usize = 16;
/// Highest cap: queues and tables count no further.
const MAX_COUNT: usize = 1_000_000_000;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TimesSection {
    tag: Option<f64>,
    unconfirmed: Option<f64>,
    token: Option<f64>,
    question: Option<f64>,
    answer: Option<f64>,
    retransmit: Option<Vec<f64>>,
    locator: Option<f64>,
    challenge: Option<f64>,
    presence: Option<f64>,
    ping: Option<f64>,
    idle: Option<f64>,
}

fn seconds(key: &'static str, given: f64) -> Result<Duration, ConfigError> {
    match SECONDS.contains(&given) {
        true => Ok(Duration::from_secs_f64(given)),
        false => Err(value(key, "must be 0.001 to 86400 seconds")),
    }
}

impl TimesSection {
    pub(super) fn apply(self, times: &mut signaling::Times) -> Result<(), ConfigError> {
        let signaling::Times {
            tag,
            unconfirmed,
            token,
            question,
            answer,
            retransmit,
            locator,
            challenge,
            presence,
            ping,
            idle,
        } = times;
        for (key, given, time) in [
            ("signaling.times.tag", self.tag, tag),
            ("signaling.times.unconfirmed", self.unconfirmed, unconfirmed),
            ("signaling.times.token", self.token, token),
            ("signaling.times.question", self.question, question),
            ("signaling.times.answer", self.answer, answer),
            ("signaling.times.locator", self.locator, locator),
            ("signaling.times.challenge", self.challenge, challenge),
            ("signaling.times.presence", self.presence, presence),
            ("signaling.times.ping", self.ping, ping),
            ("signaling.times.idle", self.idle, idle),
        ] {
            if let Some(given) = given {
                *time = seconds(key, given)?;
            }
        }
        if let Some(waits) = self.retransmit {
            let key = "signaling.times.retransmit";
            if !(1..=MAX_COPIES).contains(&waits.len()) {
                return Err(value(key, "must hold 1 to 16 waits"));
            }
            *retransmit = waits.into_iter().map(|wait| seconds(key, wait)).collect::<Result<_, _>>()?;
        }
        if times.idle <= times.ping {
            return Err(value("signaling.times.idle", "must be more than signaling.times.ping"));
        }
        Ok(())
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LimitsSection {
    tags: Option<usize>,
    tags_per_network: Option<usize>,
    calls: Option<usize>,
    calls_per_tag: Option<usize>,
    notices_per_call: Option<usize>,
    call_bytes: Option<usize>,
    connections: Option<usize>,
    connections_per_network: Option<usize>,
    watches_per_client: Option<usize>,
    watchers_per_tag: Option<usize>,
    watches: Option<usize>,
    answer_bytes: Option<usize>,
    per_source: Option<RateSection>,
    per_pair: Option<RateSection>,
    per_proof: Option<RateSection>,
    per_list: Option<RateSection>,
    per_locate: Option<RateSection>,
    per_unproven: Option<RateSection>,
    ice_per_network: Option<RateSection>,
    ice_per_key: Option<RateSection>,
    rates: Option<usize>,
    revocations: Option<usize>,
    inbox: Option<usize>,
    inbox_bytes: Option<usize>,
    outbox: Option<usize>,
    outbox_bytes: Option<usize>,
    outboxes_bytes: Option<usize>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RateSection {
    burst: f64,
    per_second: f64,
}

impl RateSection {
    pub(in crate::config) fn checked(self, key: &'static str) -> Result<limits::Rate, ConfigError> {
        let Self { burst, per_second } = self;
        let (most, least) = (1e9, 1e-6);
        if !(1.0..=most).contains(&burst) || !(least..=most).contains(&per_second) {
            return Err(value(
                key,
                "must have `burst` of at least 1 and `per_second` of more than 0, both at most 1e9",
            ));
        }
        Ok(limits::Rate::new(per_second, burst))
    }
}

impl LimitsSection {
    pub(super) fn apply(self, limits: &mut signaling::Limits) -> Result<(), ConfigError> {
        let signaling::Limits {
            tags,
            tags_per_network,
            calls,
            calls_per_tag,
            notices_per_call,
            call_bytes,
            connections,
            connections_per_network,
            watches_per_client,
            watchers_per_tag,
            watches,
            answer_bytes,
            per_source,
            per_pair,
            per_proof,
            per_list,
            per_locate,
            per_unproven,
            ice_per_network,
            ice_per_key,
            rates,
            revocations,
            inbox,
            inbox_bytes,
            outbox,
            outbox_bytes,
            outboxes_bytes,
        } = limits;
        for (key, given, limit) in [
            ("signaling.limits.tags", self.tags, tags),
            ("signaling.limits.tags_per_network", self.tags_per_network, tags_per_network),
            ("signaling.limits.calls", self.calls, calls),
            ("signaling.limits.calls_per_tag", self.calls_per_tag, calls_per_tag),
            ("signaling.limits.notices_per_call", self.notices_per_call, notices_per_call),
            ("signaling.limits.call_bytes", self.call_bytes, call_bytes),
            ("signaling.limits.connections", self.connections, connections),
            (
                "signaling.limits.connections_per_network",
                self.connections_per_network,
                connections_per_network,
            ),
            ("signaling.limits.watches_per_client", self.watches_per_client, watches_per_client),
            ("signaling.limits.watchers_per_tag", self.watchers_per_tag, watchers_per_tag),
            ("signaling.limits.watches", self.watches, watches),
            ("signaling.limits.answer_bytes", self.answer_bytes, answer_bytes),
            ("signaling.limits.rates", self.rates, rates),
            ("signaling.limits.revocations", self.revocations, revocations),
            ("signaling.limits.inbox", self.inbox, inbox),
            ("signaling.limits.inbox_bytes", self.inbox_bytes, inbox_bytes),
            ("signaling.limits.outbox", self.outbox, outbox),
            ("signaling.limits.outbox_bytes", self.outbox_bytes, outbox_bytes),
            ("signaling.limits.outboxes_bytes", self.outboxes_bytes, outboxes_bytes),
        ] {
            match given {
                Some(given) if (1..=MAX_COUNT).contains(&given) => *limit = given,
                Some(_) => return Err(value(key, "must be 1 to 1000000000")),
                None => {}
            }
        }
        for (key, given, rate) in [
            ("signaling.limits.per_source", self.per_source, per_source),
            ("signaling.limits.per_pair", self.per_pair, per_pair),
            ("signaling.limits.per_proof", self.per_proof, per_proof),
            ("signaling.limits.per_list", self.per_list, per_list),
            ("signaling.limits.per_locate", self.per_locate, per_locate),
            ("signaling.limits.per_unproven", self.per_unproven, per_unproven),
            ("signaling.limits.ice_per_network", self.ice_per_network, ice_per_network),
            ("signaling.limits.ice_per_key", self.ice_per_key, ice_per_key),
        ] {
            if let Some(given) = given {
                *rate = given.checked(key)?;
            }
        }
        if limits.watches_per_client > signaling::Limits::MOST_WATCHES_PER_CLIENT {
            return Err(value("signaling.limits.watches_per_client", "must be at most 2000"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    /// A value that no default has, for each key that the example shows.
    fn changed(section: &str) -> (Vec<String>, String) {
        let examples = [
            include_str!("../../../docs/ginnel.example.toml"),
            include_str!("../../../docs/ginnel.advanced.toml"),
        ];
        let keys = |example: &str| -> Vec<String> {
            let example: toml::Table = example.parse().unwrap();
            example["signaling"][section].as_table().unwrap().keys().cloned().collect()
        };
        let keys: Vec<_> = examples.into_iter().flat_map(keys).collect();
        let line = |key: &String| match key.as_str() {
            "retransmit" => "retransmit = [77]\n".to_owned(),
            key if key.starts_with("per_") || key.starts_with("ice_per_") => {
                format!("{key} = {{ burst = 77, per_second = 77 }}\n")
            }
            "idle" => "idle = 78\n".to_owned(),
            _ => format!("{key} = 77\n"),
        };
        let lines: String = keys.iter().map(line).collect();
        (keys, format!("[signaling.{section}]\n{lines}"))
    }

    #[test]
    fn every_time_and_limit_arrives() {
        let ((times, text), (limits, more)) = (changed("times"), changed("limits"));
        let signaling = Config::parse(&format!("{text}{more}")).unwrap().server.signaling;
        let (shown, defaults) =
            (format!("{:?}", signaling.times), format!("{:?}", crate::signaling::Times::default()));
        assert_eq!(shown.matches("77s").count(), times.len() - 1, "{shown}");
        assert_eq!(defaults.matches(": ").count(), times.len(), "a time is not in the example: {defaults}");
        let (shown, defaults) =
            (format!("{:?}", signaling.limits), format!("{:?}", crate::signaling::Limits::default()));
        assert_eq!(shown.matches("77").count(), limits.len() + 8, "{shown}");
        let rates = 8 * ": Rate { per_second: x, burst: y }".matches(": ").count();
        assert_eq!(defaults.matches(": ").count(), limits.len() - 8 + rates, "a limit is not in the example");
    }

    #[test]
    fn senseless_times_and_limits_are_refused_by_name() {
        for (section, line, named) in [
            ("times", "tag = 0", "signaling.times.tag"),
            ("times", "token = -1", "signaling.times.token"),
            ("times", "answer = nan", "signaling.times.answer"),
            ("times", "ping = 1e9", "signaling.times.ping"),
            ("times", "ping = 45", "signaling.times.idle"),
            ("times", "retransmit = []", "signaling.times.retransmit"),
            ("times", "retransmit = [0]", "signaling.times.retransmit"),
            ("times", "tags = 1", "tags"),
            ("times", "tag = '60'", "tag"),
            ("limits", "tags = 0", "signaling.limits.tags"),
            ("limits", "outbox = 0", "signaling.limits.outbox"),
            ("limits", "inbox = 10_000_000_000", "signaling.limits.inbox"),
            ("limits", "calls = -1", "calls"),
            ("limits", "watches_per_client = 2001", "signaling.limits.watches_per_client"),
            ("limits", "per_source = { burst = 0, per_second = 1 }", "signaling.limits.per_source"),
            ("limits", "per_pair = { burst = 1, per_second = 0 }", "signaling.limits.per_pair"),
            ("limits", "per_proof = { burst = inf, per_second = 1 }", "signaling.limits.per_proof"),
            ("limits", "per_proof = { burst = 1 }", "per_second"),
            ("limits", "per_proof = 8", "per_proof"),
        ] {
            let error = Config::parse(&format!("[signaling.{section}]\n{line}")).unwrap_err().to_string();
            assert!(error.contains(named), "{line}: {error}");
        }
    }
}
