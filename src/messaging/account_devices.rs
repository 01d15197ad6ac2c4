//! Devices of accounts over the WebSocket `/messages`: adding, removing and listing them. Pure.

use super::delivery::Delivered;
use super::json_login::JsonLoginStep;
use super::json_session::{AccessKind, JsonReplyTo, JsonStep};
use super::login::is_name;
use super::machine::{Machine, unix_ms};
use super::store_request::{StoreReply, StoreRequest};
use crate::clock::Now;
use crate::messaging_wire::signing::{Statement, is_small_order_encryption_key, is_small_order_signing_key};
use crate::messaging_wire::{
    ClosingReason, Device, DeviceName, Devices, Empty, ErrorCode, FixedBytes, NewDevice, Registered,
};
use crate::store::{AccountDevice, AccountDeviceId, MAX_NAME, NewAccountDevice, Party, StoreError};

/// How far a request about devices is.
#[derive(Debug)]
pub(super) enum DevicesStep {
    /// Which identity key must have signed the new device?
    Identity { user: String, device: Box<NewDevice> },
    /// The device is stored.
    Insert(Box<NewAccountDevice>),
    /// The account has a device with this signing key: is it the same?
    Same(Box<NewAccountDevice>),
    /// The device gets another name.
    Rename,
    /// The device is removed.
    Remove { user: String, device: AccountDeviceId },
    /// Which identity key has this user?
    ListIdentity { user: String },
    /// Which devices has this user?
    List { user: String, identity_key: Option<[u8; 32]> },
    /// Is there such a legacy device?
    ListLegacy,
}

impl NewDevice {
    /// Returns the name of a field that no device may have.
    pub(super) fn invalid_field(&self) -> Option<&'static str> {
        match () {
            () if !is_label(&self.label) => Some("label"),
            () if is_small_order_signing_key(&self.signing_key.0) => Some("signing_key"),
            () if is_small_order_encryption_key(&self.encryption_key.0) => Some("encryption_key"),
            () => None,
        }
    }

    /// Returns whether the identity key has signed that the device is one of the user's.
    pub(super) fn is_signed(&self, user: &str, identity_key: &[u8; 32]) -> bool {
        let (signing_key, encryption_key) = (&self.signing_key.0, &self.encryption_key.0);
        Statement::Device { user, signing_key, encryption_key }.is_signed(identity_key, &self.signature.0)
    }

    pub(super) fn into_account_device(self, account: &str, now: Now) -> NewAccountDevice {
        NewAccountDevice {
            account: account.to_owned(),
            label: self.label,
            signing_key: self.signing_key.0,
            encryption_key: self.encryption_key.0,
            signature: self.signature.0,
            created_at_ms: unix_ms(now),
        }
    }
}

/// Returns whether a text can be the name of a device.
fn is_label(label: &str) -> bool {
    label.len() <= MAX_NAME && !label.chars().any(char::is_control)
}

/// Writes the devices of an account; their labels only for the account itself.
pub(super) fn listed(
    devices: Vec<AccountDevice>,
    identity_key: Option<[u8; 32]>,
    has_labels: bool,
) -> Devices {
    let devices: Vec<_> = devices
        .into_iter()
        .map(|AccountDevice { id, details, .. }| Device {
            device: id.0,
            label: has_labels.then_some(details.label),
            signing_key: FixedBytes(details.signing_key),
            encryption_key: FixedBytes(details.encryption_key),
            signature: FixedBytes(details.signature),
            created_at: details.created_at_ms,
        })
        .collect();
    Devices { identity_key: identity_key.map(FixedBytes), legacy: devices.is_empty(), devices }
}

impl Machine {
    /// Adds a device. The signature by the identity key permits it, whoever asks.
    pub(super) fn handle_add_account_device(
        &mut self,
        now: Now,
        reply_to: JsonReplyTo,
        user: String,
        device: NewDevice,
    ) {
        if let Some(field) = device.invalid_field() {
            return self.refuse_request(reply_to, ErrorCode::Invalid, field);
        }
        if !self.rates.signatures(now.mono) {
            return self.throttle(reply_to);
        }
        let request = StoreRequest::Account(user.clone());
        let step = DevicesStep::Identity { user, device: Box::new(device) };
        self.call_for_json(request, JsonStep::Devices(step), reply_to);
    }

    /// Removes a device: with the identity key or the password any, as a device only itself.
    pub(super) fn handle_remove_account_device(
        &mut self,
        now: Now,
        reply_to: JsonReplyTo,
        user: String,
        device: AccountDeviceId,
    ) {
        if !self.may_change(&reply_to, device) {
            return self.refuse_login(reply_to, "a device removes only itself");
        }
        let request = StoreRequest::RemoveAccountDevice(user.clone(), device, unix_ms(now));
        self.call_for_json(request, JsonStep::Devices(DevicesStep::Remove { user, device }), reply_to);
    }

    /// Gives a device another name: with the identity key or the password any, as a device only itself.
    pub(super) fn handle_rename_device(&mut self, reply_to: JsonReplyTo, user: String, name: DeviceName) {
        let device = AccountDeviceId(name.device);
        if !is_label(&name.label) {
            return self.refuse_request(reply_to, ErrorCode::Invalid, "label");
        }
        if !self.may_change(&reply_to, device) {
            return self.refuse_login(reply_to, "a device renames only itself");
        }
        let request = StoreRequest::SetDeviceLabel(user, device, name.label);
        self.call_for_json(request, JsonStep::Devices(DevicesStep::Rename), reply_to);
    }

    /// Returns whether a session may change a device of its account.
    fn may_change(&mut self, reply_to: &JsonReplyTo, device: AccountDeviceId) -> bool {
        let access = self.json_session(reply_to).and_then(|session| session.access.as_ref());
        access.is_some_and(|access| match &access.kind {
            AccessKind::Password | AccessKind::Identity => true,
            AccessKind::Device(own) => own.id == device,
        })
    }

    pub(super) fn handle_devices(&mut self, now: Now, reply_to: JsonReplyTo, party: &str) {
        let Some(session) = self.json_session(&reply_to) else { return self.done(&reply_to) };
        let ip = session.ip;
        let Some(party) = party.parse::<Party>().ok().filter(|party| is_name(party.name())) else {
            return self.refuse_request(reply_to, ErrorCode::Invalid, "party");
        };
        if !self.rates.lookup(now.mono, ip) {
            return self.throttle(reply_to);
        }
        let (request, step) = match party {
            Party::User(user) => (StoreRequest::Account(user.clone()), DevicesStep::ListIdentity { user }),
            Party::Device(id) => (StoreRequest::LegacyDevice(id), DevicesStep::ListLegacy),
        };
        self.call_for_json(request, JsonStep::Devices(step), reply_to);
    }

    pub(super) fn on_devices_stored(
        &mut self,
        now: Now,
        reply_to: JsonReplyTo,
        step: DevicesStep,
        result: Result<StoreReply, StoreError>,
    ) {
        match (step, result) {
            (DevicesStep::Identity { user, device }, Ok(StoreReply::Account(account))) => {
                let key = account.and_then(|account| account.identity_key);
                if !key.is_some_and(|key| device.is_signed(&user, &key)) {
                    return self
                        .refuse_login(reply_to, "the account's identity key has not signed the device");
                }
                let device = device.into_account_device(&user, now);
                let request = StoreRequest::InsertAccountDevice(device.clone());
                self.call_for_json(
                    request,
                    JsonStep::Devices(DevicesStep::Insert(Box::new(device))),
                    reply_to,
                );
            }
            (DevicesStep::Insert(_), Ok(StoreReply::AccountDevice(device))) => {
                self.accept(reply_to, &Registered { device: Some(device.id.0) });
            }
            (DevicesStep::Insert(_), Err(StoreError::LimitExceeded)) => {
                self.refuse_request(reply_to, ErrorCode::TooManyDevices, "remove a device first");
            }
            // The answer to an earlier request may have been lost.
            (DevicesStep::Insert(device), Err(StoreError::Exists)) => {
                let request = StoreRequest::AccountDevices(device.account.clone());
                self.call_for_json(request, JsonStep::Devices(DevicesStep::Same(device)), reply_to);
            }
            (DevicesStep::Same(device), Ok(StoreReply::AccountDevices(devices))) => {
                let is_same = |known: &&AccountDevice| {
                    (known.details.signing_key, known.details.encryption_key)
                        == (device.signing_key, device.encryption_key)
                };
                match devices.iter().find(is_same) {
                    Some(known) => self.accept(reply_to, &Registered { device: Some(known.id.0) }),
                    None => {
                        self.refuse_request(reply_to, ErrorCode::Invalid, "signing_key is of another device")
                    }
                }
            }
            (DevicesStep::Remove { user, device }, Ok(removed)) => {
                self.accept(reply_to, &Empty {});
                self.on_device_removed(&user, device);
                self.on_removed(Delivered::Expired, Ok(removed));
            }
            (DevicesStep::Rename, Ok(StoreReply::Done)) => self.accept(reply_to, &Empty {}),
            (DevicesStep::ListIdentity { user }, Ok(StoreReply::Account(Some(account)))) => {
                let request = StoreRequest::AccountDevices(user.clone());
                let step = DevicesStep::List { user, identity_key: account.identity_key };
                self.call_for_json(request, JsonStep::Devices(step), reply_to);
            }
            (DevicesStep::List { user, identity_key }, Ok(StoreReply::AccountDevices(devices))) => {
                let session = self.json_session(&reply_to);
                let is_own =
                    session.and_then(|session| session.access.as_ref()).is_some_and(|own| own.user == user);
                self.accept(reply_to, &listed(devices, identity_key, is_own));
            }
            (DevicesStep::ListLegacy, Ok(StoreReply::LegacyDevice(Some(_)))) => {
                self.accept(reply_to, &listed(Vec::new(), None, false));
            }
            (_, Ok(_)) => self.refuse_request(reply_to, ErrorCode::NotFound, "no such party"),
            (_, Err(error)) => self.refuse_failed(reply_to, Some(&error)),
        }
    }

    /// Closes the connection of a device that is no longer one of the account's; a login of it that is not done fails.
    pub(super) fn on_device_removed(&mut self, user: &str, removed: AccountDeviceId) {
        for step in self.pending_json() {
            if let JsonStep::Login(JsonLoginStep::Mailbox { device, is_removed, .. }) = step
                && device.id == removed
            {
                *is_removed = true;
            }
        }
        let is_of_device = |connection: &&super::session::ConnectionId| {
            let session = self.json_sessions.get(connection);
            let access = session.and_then(|session| session.access.as_ref());
            access.and_then(|access| access.device()).is_some_and(|device| device.id == removed)
        };
        let connections = self.account_sessions.get(user).into_iter().flatten();
        let connections: Vec<_> = connections.filter(is_of_device).copied().collect();
        for connection in connections {
            self.close_json(connection, ClosingReason::DeviceRemoved);
        }
    }
}
