//! Which call of the store each request of the machine is.

use super::store_request::{StoreReply, StoreRequest};
use crate::store::{PageSize, Store, StoreFuture};

/// What one push holds at most; one message may be larger.
const PAGE: PageSize = PageSize { messages: 100, bytes: 64 * 1024 };

/// Calls the store. Writes are queued before this returns, so that calls in order are writes in order.
pub fn call_store(store: &dyn Store, request: StoreRequest) -> StoreFuture<StoreReply> {
    match request {
        StoreRequest::Account(name) => reply(store.account(&name), StoreReply::Account),
        StoreRequest::InsertAccount(account) => done(store.insert_account(account)),
        StoreRequest::AccountDevices(name) => reply(store.account_devices(&name), StoreReply::AccountDevices),
        StoreRequest::SetPasswordHash(name, hash) => done(store.set_password_hash(&name, hash)),
        StoreRequest::SetIdentityKey(name, key) => done(store.set_identity_key(&name, key)),
        StoreRequest::InsertAccountDevice(device) => {
            reply(store.insert_account_device(device), StoreReply::AccountDevice)
        }
        StoreRequest::SetDeviceLabel(name, device, label) => {
            done(store.set_device_label(&name, device, label))
        }
        StoreRequest::RemoveAccountDevice(name, device, now_ms) => {
            reply(store.remove_account_device(&name, device, now_ms), StoreReply::Removed)
        }
        StoreRequest::LegacyDevice(id) => reply(store.legacy_device(&id), StoreReply::LegacyDevice),
        StoreRequest::InsertLegacyDevice(device) => done(store.insert_legacy_device(device)),
        StoreRequest::UpdateLegacyDevice(device) => done(store.update_legacy_device(device)),
        StoreRequest::HasContact(owner, contact) => {
            reply(store.has_contact(&owner, &contact), StoreReply::HasContact)
        }
        StoreRequest::InsertContact(owner, contact) => done(store.insert_contact(&owner, &contact)),
        StoreRequest::RemoveContact(owner, contact) => done(store.remove_contact(&owner, &contact)),
        StoreRequest::Contacts(owner) => reply(store.contacts(&owner), StoreReply::Contacts),
        StoreRequest::MutualContacts(owner) => reply(store.mutual_contacts(&owner), StoreReply::Contacts),
        StoreRequest::Mailbox(mailbox) => reply(store.mailbox(mailbox), StoreReply::Mailbox),
        StoreRequest::OpenMailbox(party) => reply(store.open_mailbox(&party), StoreReply::Mailbox),
        StoreRequest::Append(message) => reply(store.append(message), StoreReply::Appended),
        StoreRequest::Messages { mailbox, after } => {
            reply(store.messages(mailbox, after, PAGE), StoreReply::Messages)
        }
        StoreRequest::Acknowledge { mailbox, acknowledgement, now_ms } => {
            reply(store.acknowledge(mailbox, acknowledgement, now_ms), StoreReply::Removed)
        }
        StoreRequest::Expire { now_ms } => reply(store.expire(now_ms), StoreReply::Removed),
    }
}

fn reply<T: 'static>(
    called: StoreFuture<T>,
    reply: impl FnOnce(T) -> StoreReply + Send + 'static,
) -> StoreFuture<StoreReply> {
    Box::pin(async move { called.await.map(reply) })
}

fn done(called: StoreFuture<()>) -> StoreFuture<StoreReply> {
    reply(called, |()| StoreReply::Done)
}
