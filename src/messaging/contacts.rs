//! Contacts: a party adds devices and removes them (S4-19, S4-20).

use super::commands::{Code, DeviceBody};
use super::login::is_name;
use super::machine::{Machine, Step};
use super::session::ReplyTo;
use super::store_request::{StoreReply, StoreRequest};
use crate::store::{Party, StoreError};

impl Machine {
    pub(super) fn handle_add_device(&mut self, reply_to: ReplyTo, data: &[u8]) {
        if let Some((reply_to, owner, device)) = self.contact(reply_to, data) {
            let request = StoreRequest::InsertContact(owner.clone(), device.clone());
            self.call_for(request, Step::AddContact { owner, contact: device }, reply_to);
        }
    }

    pub(super) fn handle_remove_device(&mut self, reply_to: ReplyTo, data: &[u8]) {
        if let Some((reply_to, owner, device)) = self.contact(reply_to, data) {
            let request = StoreRequest::RemoveContact(owner.clone(), device.clone());
            self.call_for(request, Step::RemoveContact { owner, contact: device }, reply_to);
        }
    }

    /// Reads which device a client names; answers where it names none.
    fn contact(&mut self, reply_to: ReplyTo, data: &[u8]) -> Option<(ReplyTo, Party, Party)> {
        let (reply_to, body) = self.parse_body::<DeviceBody>(reply_to, data)?;
        let owner = self.sessions.get(&reply_to.connection).and_then(|session| session.party().cloned());
        match (owner, body.device_id.filter(|id| is_name(id))) {
            (Some(owner), Some(id)) => Some((reply_to, owner, Party::Device(id))),
            _ => {
                self.answer(reply_to, Code::Exception, "deviceId is null");
                None
            }
        }
    }

    pub(super) fn on_contact_added(&mut self, reply_to: ReplyTo, result: Result<StoreReply, StoreError>) {
        match result {
            Ok(_) => self.conclude(reply_to, Code::Ok, "ok"),
            Err(StoreError::Exists) => self.conclude(reply_to, Code::AlreadyAdded, "device already added"),
            Err(error) => self.conclude_failed(reply_to, Some(error)),
        }
    }

    pub(super) fn on_contact_removed(&mut self, reply_to: ReplyTo, result: Result<StoreReply, StoreError>) {
        match result {
            Ok(_) => self.conclude(reply_to, Code::Ok, "ok"),
            Err(StoreError::NotFound) => self.conclude(reply_to, Code::NotAdded, "device not added"),
            Err(error) => self.conclude_failed(reply_to, Some(error)),
        }
    }
}
