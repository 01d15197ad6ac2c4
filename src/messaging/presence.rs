//! Contacts over the WebSocket `/messages`, and the presence of those that have added each other. Pure.

use super::json_session::{JsonReplyTo, JsonStep};
use super::login::is_name;
use super::machine::{Machine, Step, TRY_AGAIN, Timer};
use super::session::ConnectionId;
use super::store_request::{StoreReply, StoreRequest};
use crate::clock::Now;
use crate::limits::Limit;
use crate::messaging_wire::{Contact, Contacts, Empty, ErrorCode, Event};
use crate::store::{Party, StoreError};
use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

/// Contacts whose presence is watched, of all connections together.
pub(super) const MAX_WATCHES: usize = 500_000;
/// After a contact was added or removed, until those who watch read their contacts again.
const REFRESH: Duration = Duration::from_secs(1);

/// How far a request about contacts is.
#[derive(Debug)]
pub(super) enum ContactsStep {
    /// Which contacts has the user?
    List,
    /// Which of them have added the user?
    Mutual(Vec<Party>),
    /// A contact is added.
    Add { owner: Party, contact: Party },
    /// A contact is removed.
    Remove { owner: Party, contact: Party },
    /// Whose presence may the client watch?
    Watch,
}

/// Whose presence a connection watches.
#[derive(Debug, Default)]
pub(super) struct Watch {
    pub(super) parties: BTreeSet<Party>,
    /// The contacts are being read.
    is_reading: bool,
}

impl Machine {
    pub(super) fn handle_contacts(&mut self, reply_to: JsonReplyTo, user: String) {
        let request = StoreRequest::Contacts(Party::User(user));
        self.call_for_json(request, JsonStep::Contacts(ContactsStep::List), reply_to);
    }

    pub(super) fn handle_add_contact(&mut self, reply_to: JsonReplyTo, user: String, party: &str) {
        let owner = Party::User(user);
        let Some(contact) = contact(&owner, party) else {
            return self.refuse_request(reply_to, ErrorCode::Invalid, "party");
        };
        let request = StoreRequest::InsertContact(owner.clone(), contact.clone());
        let step = JsonStep::Contacts(ContactsStep::Add { owner, contact });
        self.call_for_json(request, step, reply_to);
    }

    pub(super) fn handle_remove_contact(&mut self, reply_to: JsonReplyTo, user: String, party: &str) {
        let owner = Party::User(user);
        let Some(contact) = contact(&owner, party) else {
            return self.refuse_request(reply_to, ErrorCode::Invalid, "party");
        };
        let request = StoreRequest::RemoveContact(owner.clone(), contact.clone());
        let step = JsonStep::Contacts(ContactsStep::Remove { owner, contact });
        self.call_for_json(request, step, reply_to);
    }

    /// Sends events about the presence of contacts from here on.
    pub(super) fn handle_watch(&mut self, reply_to: JsonReplyTo, user: String) {
        if let Some(session) = self.json_session(&reply_to) {
            session.watch.get_or_insert_default().is_reading = true;
        }
        let request = StoreRequest::MutualContacts(Party::User(user));
        self.call_for_json(request, JsonStep::Contacts(ContactsStep::Watch), reply_to);
    }

    pub(super) fn on_contacts_stored(
        &mut self,
        now: Now,
        reply_to: JsonReplyTo,
        step: ContactsStep,
        result: Result<StoreReply, StoreError>,
    ) {
        match (step, result) {
            (ContactsStep::List, Ok(StoreReply::Contacts(contacts))) => {
                let Some(user) = self.user(&reply_to) else { return self.done(&reply_to) };
                let request = StoreRequest::MutualContacts(user);
                self.call_for_json(request, JsonStep::Contacts(ContactsStep::Mutual(contacts)), reply_to);
            }
            (ContactsStep::Mutual(contacts), Ok(StoreReply::Contacts(mutual))) => {
                let mutual: HashSet<_> = mutual.into_iter().collect();
                let listed = contacts.into_iter().map(|party| Contact {
                    online: mutual.contains(&party).then(|| self.is_online(&party)),
                    party: party.to_string(),
                });
                let contacts = listed.collect();
                self.accept(reply_to, &Contacts { contacts });
            }
            (ContactsStep::Add { owner, contact } | ContactsStep::Remove { owner, contact }, Ok(_)) => {
                self.accept(reply_to, &Empty {});
                self.on_contacts_changed(now, &owner, &contact);
            }
            (ContactsStep::Add { .. }, Err(StoreError::Exists)) => {
                self.refuse_request(reply_to, ErrorCode::ContactExists, "added before");
            }
            (ContactsStep::Add { .. }, Err(StoreError::LimitExceeded)) => {
                self.refuse_request(reply_to, ErrorCode::TooManyContacts, "remove a contact first");
            }
            (ContactsStep::Watch, Ok(StoreReply::Contacts(mutual)))
                if self.watches + mutual.len() <= MAX_WATCHES =>
            {
                let connection = reply_to.connection;
                self.accept(reply_to, &Empty {});
                self.set_watches(connection, mutual);
            }
            (ContactsStep::Watch, result) => {
                self.forget_watch(reply_to.connection);
                if let Err(error) = result {
                    return self.refuse_failed(reply_to, Some(&error));
                }
                Limit::MessagingWatches.reached(MAX_WATCHES);
                self.refuse_request(reply_to, ErrorCode::TryAgainLater, TRY_AGAIN);
            }
            (_, result) => self.refuse_failed(reply_to, result.err().as_ref()),
        }
    }

    /// Handles the result of a change of contacts whose client is gone.
    pub(super) fn on_contacts_stored_without_session(&mut self, now: Now, step: &ContactsStep) {
        if let ContactsStep::Add { owner, contact } | ContactsStep::Remove { owner, contact } = step {
            self.on_contacts_changed(now, owner, contact);
        }
    }

    /// Handles that a party has added or removed another: those who watch either read their contacts again, soon.
    pub(super) fn on_contacts_changed(&mut self, now: Now, owner: &Party, contact: &Party) {
        for party in [owner, contact] {
            let Party::User(user) = party else { continue };
            let connections = self.account_sessions.get(user).into_iter().flatten().copied();
            let is_watching = |connection: &ConnectionId| {
                self.json_sessions.get(connection).is_some_and(|session| session.watch.is_some())
            };
            let watching: Vec<_> = connections.filter(is_watching).collect();
            for connection in watching {
                self.set_refresh_timer(now, connection);
            }
        }
    }

    /// Only the first change sets the timer: many changes cost no more reads.
    fn set_refresh_timer(&mut self, now: Now, connection: ConnectionId) {
        if self.refreshing.insert(connection) {
            self.set_timer(Timer::Watch(connection), now.mono + REFRESH);
        }
    }

    /// Reads the contacts of a connection that watches them again.
    pub(super) fn on_refresh_timer(&mut self, now: Now, connection: ConnectionId) {
        self.refreshing.remove(&connection);
        let Some(session) = self.json_sessions.get_mut(&connection) else { return };
        let (Some(watch), Some(access)) = (&mut session.watch, &session.access) else { return };
        if watch.is_reading {
            // What it reads may be older than the change.
            return self.set_refresh_timer(now, connection);
        }
        watch.is_reading = true;
        let owner = access.party();
        self.call(StoreRequest::MutualContacts(owner.clone()), Step::Refresh { connection, owner }, None);
    }

    pub(super) fn on_refreshed(
        &mut self,
        now: Now,
        (connection, owner): (ConnectionId, Party),
        result: Result<StoreReply, StoreError>,
    ) {
        let Some(session) = self.json_sessions.get_mut(&connection) else { return };
        if session.access.as_ref().is_none_or(|access| access.party() != owner) {
            return;
        }
        let Some(watch) = &mut session.watch else { return };
        watch.is_reading = false;
        match result {
            Ok(StoreReply::Contacts(mutual)) => self.set_watches(connection, mutual),
            _ => self.set_refresh_timer(now, connection),
        }
    }

    /// Sets whose presence a connection watches; sends what is different now.
    fn set_watches(&mut self, connection: ConnectionId, mutual: Vec<Party>) {
        let Some(session) = self.json_sessions.get_mut(&connection) else { return };
        let Some(watch) = &mut session.watch else { return };
        watch.is_reading = false;
        let mut mutual: BTreeSet<_> = mutual.into_iter().collect();
        if self.watches + mutual.len() > MAX_WATCHES + watch.parties.len() {
            Limit::MessagingWatches.reached(MAX_WATCHES);
            mutual.retain(|party| watch.parties.contains(party));
        }
        let before = std::mem::take(&mut watch.parties);
        let (added, removed): (Vec<_>, Vec<_>) =
            (mutual.difference(&before).cloned().collect(), before.difference(&mutual).cloned().collect());
        watch.parties = mutual;
        self.forget_watches(connection, removed.iter());
        self.watches += added.len();
        for party in &added {
            self.watchers.entry(party.clone()).or_default().insert(connection);
        }
        for (parties, online) in [(added, true), (removed, false)] {
            for party in parties {
                if self.is_online(&party) {
                    self.send_event(connection, &Event::Presence { party: party.to_string(), online });
                }
            }
        }
    }

    /// Ends what a connection watches.
    pub(super) fn forget_watch(&mut self, connection: ConnectionId) {
        let watch = self.json_sessions.get_mut(&connection).and_then(|session| session.watch.take());
        if let Some(watch) = watch {
            self.forget_watches(connection, watch.parties.iter());
        }
    }

    /// Forgets that a connection watches parties.
    pub(super) fn forget_watches<'a>(
        &mut self,
        connection: ConnectionId,
        parties: impl ExactSizeIterator<Item = &'a Party>,
    ) {
        self.watches -= parties.len();
        for party in parties {
            if let Some(watchers) = self.watchers.get_mut(party) {
                watchers.remove(&connection);
                if watchers.is_empty() {
                    self.watchers.remove(party);
                }
            }
        }
    }

    /// Handles that one more connection of a party is there.
    pub(super) fn on_came(&mut self, party: &Party) {
        let count = self.present.entry(party.clone()).or_default();
        *count += 1;
        if *count == 1 {
            self.notify_watchers(party, true);
        }
    }

    /// Handles that a connection of a party has gone.
    pub(super) fn on_left(&mut self, party: &Party) {
        let Some(count) = self.present.get_mut(party) else { return };
        *count -= 1;
        if *count == 0 {
            self.present.remove(party);
            self.notify_watchers(party, false);
        }
    }

    fn notify_watchers(&mut self, party: &Party, online: bool) {
        let watchers: Vec<_> = self.watchers.get(party).into_iter().flatten().copied().collect();
        for connection in watchers {
            self.send_event(connection, &Event::Presence { party: party.to_string(), online });
        }
    }

    fn is_online(&self, party: &Party) -> bool {
        self.present.contains_key(party)
    }

    fn user(&mut self, reply_to: &JsonReplyTo) -> Option<Party> {
        self.json_session(reply_to)?.access.as_ref().map(super::json_session::Access::party)
    }
}

/// Reads a party that is not the owner itself.
fn contact(owner: &Party, party: &str) -> Option<Party> {
    party.parse().ok().filter(|party: &Party| is_name(party.name()) && party != owner)
}
