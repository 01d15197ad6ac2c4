//! Authentication of requests: challenges, redirection to an alternate server, and requests that wait for a user look-up.

use super::FiveTuple;
use super::auth::{AuthError, Authenticated, LookupAction, UserQuery};
use super::forward::DropReason;
use super::machine::Relay;
use super::output::{Output, RequestAuth};
use super::response::Responder;
use crate::clock::Now;
use crate::stun::{Message, Method};
use std::sync::Arc;

impl Relay {
    /// Checks a request's credentials. A request that fails is answered here, or waits for a look-up.
    pub(super) fn authenticate<'a>(
        &mut self,
        now: Now,
        client: FiveTuple,
        request: &Message<'a>,
    ) -> Option<Authenticated<'a>> {
        let allocation = self.allocation_of(client).and_then(|id| self.allocations.get(id));
        let owner = allocation.map(|allocation| &allocation.control.owner);
        let is_owner = owner.is_some();
        match self.shared.authenticator.check(now, &client, owner, request) {
            Ok(authenticated) => {
                let alternate = self.shared.alternates.of(client);
                match alternate.filter(|_| request.method() == Method::ALLOCATE && !is_owner) {
                    None => Some(authenticated),
                    Some(alternate) => {
                        let responder = Responder::to(request).signed(authenticated.key);
                        self.respond(client, responder.try_alternate(&alternate));
                        None
                    }
                }
            }
            Err(AuthError::Lookup(query)) => {
                let is_known = self.shared.authenticator.is_known(&query);
                match self.pending_lookups.insert(&query, client, is_known, request.as_bytes()) {
                    LookupAction::Start => {
                        self.outputs.push_back(Output::LookUpUser {
                            query,
                            from: client.client.ip(),
                            is_known,
                        });
                    }
                    LookupAction::Wait => {}
                    LookupAction::Drop => self.drops.increment(DropReason::LookupQueueFull),
                }
                None
            }
            Err(error) => {
                if error != AuthError::Malformed {
                    self.counters.unauthorized += 1;
                    if let Some(events) = &self.shared.event_handler {
                        events.on_unauthorized(&client);
                    }
                }
                let challenge = self.shared.authenticator.challenge(now, &client);
                let bytes = Responder::to(request).auth_error(&error, &challenge);
                let request_len = request.as_bytes().len();
                self.outputs.push_back(Output::Response {
                    client,
                    bytes,
                    auth: RequestAuth::Unverified { request_len },
                });
                None
            }
        }
    }

    /// Handles the end of [`Output::LookUpUser`]. When `answered`, the authenticator has the result, and the requests that waited for it
    /// are handled; else they are dropped, and their clients retransmit them.
    pub fn handle_lookup_done(&mut self, now: Now, query: &Arc<UserQuery>, answered: bool) {
        for (client, bytes) in self.pending_lookups.take(query) {
            match Message::parse(&bytes) {
                Ok(request) if answered => {
                    // The method was checked before the request was parked.
                    let _ = self.handle_request(now, client, &request);
                }
                _ => self.drops.increment(DropReason::LookupFailed),
            }
        }
    }
}

#[cfg(test)]
mod tests;
