//! Devices of the legacy protocol: authentication (S4-13), and what binds an id to its device (S4-A7, S4-A13).

use super::commands::{Code, DeviceAuthBody};
use super::login::is_name;
use super::machine::{Machine, Step, TRY_AGAIN};
use super::session::ReplyTo;
use super::store_request::{StoreReply, StoreRequest};
use crate::clock::Now;
use crate::limits::NetworkPrefix;
use crate::store::{DevicePin, LegacyDevice, Party, StoreError};
use ring::digest;
use serde_json::Value;
use std::net::IpAddr;
use subtle::ConstantTimeEq;

/// Lengths of a device key, in bytes.
const DEVICE_KEY: std::ops::RangeInclusive<usize> = 16..=256;
/// Longest version and ability, in bytes, and most abilities.
const MAX_VERSION: usize = 256;
const MAX_ABILITIES: usize = 64;
const KEY_REQUIRED: &str = "device key required";

/// How far the authentication of a device is.
#[derive(Debug)]
pub(super) enum DeviceStep {
    /// The device is looked up.
    Lookup(DeviceClaim),
    /// The device is stored; the id.
    Store(String),
}

/// What a device claims at a login over TCP.
#[derive(Debug)]
pub(super) struct DeviceClaim {
    id: String,
    /// The hash of the key that it offers.
    key: Option<[u8; 32]>,
    version: String,
    abilities: Vec<String>,
}

/// Returns the text of a JSON value.
fn text(value: Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text,
        other => other.to_string(),
    }
}

impl DeviceClaim {
    fn new(body: DeviceAuthBody) -> Result<Self, &'static str> {
        let id = body.id.unwrap_or_default();
        let version = text(body.version);
        let abilities: Vec<_> = body.abilities.unwrap_or_default().into_iter().map(text).collect();
        let is_short = |text: &String| text.len() <= MAX_VERSION;
        match body.device_key {
            _ if id.is_empty() => Err("id is null"),
            _ if !is_name(&id) => Err("id is not valid"),
            _ if !is_short(&version) => Err("version is too long"),
            _ if abilities.len() > MAX_ABILITIES || !abilities.iter().all(is_short) => {
                Err("too many abilities")
            }
            Some(key) if !DEVICE_KEY.contains(&key.len()) => Err("deviceKey must have 16 to 256 bytes"),
            key => Ok(Self { id, key: key.as_deref().map(hash), version, abilities }),
        }
    }

    fn bound_to(self, pin: DevicePin) -> LegacyDevice {
        LegacyDevice { id: self.id, pin, version: self.version, abilities: self.abilities }
    }

    /// Returns what an id is bound to at its first use.
    fn first_pin(&self, ip: IpAddr, is_legacy: bool) -> Option<DevicePin> {
        let network = is_legacy.then(|| DevicePin::Network(NetworkPrefix::site(ip)));
        self.key.map(DevicePin::Key).or(network)
    }

    /// Returns what a known id is bound to from now on; `None` where this is not its device.
    fn next_pin(&self, pin: DevicePin, ip: IpAddr, is_legacy: bool) -> Option<DevicePin> {
        match (pin, self.key) {
            (DevicePin::Key(known), Some(key)) => bool::from(known.ct_eq(&key)).then_some(pin),
            // A device that learns to prove itself is bound to its key.
            (DevicePin::Network(network), Some(key)) => network.contains(ip).then_some(DevicePin::Key(key)),
            (DevicePin::Network(network), None) => (is_legacy && network.contains(ip)).then_some(pin),
            (DevicePin::Key(_), None) => None,
        }
    }
}

/// A device key is long and random, so that a fast hash hides it.
fn hash(key: &str) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, key.as_bytes());
    std::array::from_fn(|index| digest.as_ref().get(index).copied().unwrap_or_default())
}

impl Machine {
    pub(super) fn handle_device_auth(&mut self, reply_to: ReplyTo, data: &[u8]) {
        let Some((reply_to, body)) = self.parse_body::<DeviceAuthBody>(reply_to, data) else { return };
        match DeviceClaim::new(body) {
            Ok(claim) => {
                let request = StoreRequest::LegacyDevice(claim.id.clone());
                self.call_for(request, Step::Device(DeviceStep::Lookup(claim)), reply_to);
            }
            Err(refusal) => self.answer(reply_to, Code::Exception, refusal),
        }
    }

    pub(super) fn on_device_stored(
        &mut self,
        now: Now,
        reply_to: ReplyTo,
        step: DeviceStep,
        result: Result<StoreReply, StoreError>,
    ) {
        match (step, result) {
            (DeviceStep::Lookup(claim), Ok(StoreReply::LegacyDevice(known))) => {
                self.bind(now, reply_to, claim, known);
            }
            (DeviceStep::Store(id), Ok(StoreReply::Done)) => self.open_mailbox(reply_to, Party::Device(id)),
            // Another connection was the first with this id.
            (DeviceStep::Store(_), Err(StoreError::Exists)) => {
                self.conclude(reply_to, Code::Exception, TRY_AGAIN);
            }
            (_, result) => self.conclude_failed(reply_to, result.err()),
        }
    }

    /// Binds a new id, or checks what a known one is bound to.
    fn bind(&mut self, now: Now, reply_to: ReplyTo, claim: DeviceClaim, known: Option<LegacyDevice>) {
        let Some(session) = self.sessions.get(&reply_to.connection) else { return self.finish(reply_to) };
        let (ip, is_legacy) = (session.ip, session.is_legacy);
        let pin = match &known {
            None => claim.first_pin(ip, is_legacy),
            Some(known) => claim.next_pin(known.pin, ip, is_legacy),
        };
        let Some(pin) = pin else {
            self.counters.refused_logins += 1;
            return self.conclude(reply_to, Code::Exception, KEY_REQUIRED);
        };
        if known.is_none() && !self.rates.registration(now.mono, ip) {
            self.counters.throttled += 1;
            return self.conclude(reply_to, Code::Exception, TRY_AGAIN);
        }
        let device = claim.bound_to(pin);
        let step = Step::Device(DeviceStep::Store(device.id.clone()));
        match known {
            Some(known) if known == device => self.open_mailbox(reply_to, Party::Device(device.id)),
            Some(_) => self.call_for(StoreRequest::UpdateLegacyDevice(device), step, reply_to),
            None => self.call_for(StoreRequest::InsertLegacyDevice(device), step, reply_to),
        }
    }
}
