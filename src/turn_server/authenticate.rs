//! The relay's front desk: who may ask, who is told to ask elsewhere, and who waits until his name was looked up.

use super::FiveTuple;
use super::auth::{AuthError, Authenticated, LookupAction, UserQuery};
use super::machine::{Output, Relay, RequestAuth};
use super::response::Responder;
use crate::clock::Now;
use crate::stun::{Message, Method};
use std::sync::Arc;

impl Relay {
    /// Checks a request's credentials; one that does not pass is answered, or parked, here.
    pub(super) fn authenticate<'a>(
        &mut self,
        now: Now,
        client: FiveTuple,
        request: &Message<'a>,
    ) -> Option<Authenticated<'a>> {
        let allocation = self.allocation_of(client).and_then(|id| self.allocations.get(id));
        let owner = allocation.map(|allocation| &allocation.control.owner);
        let is_owner = owner.is_some();
        match self.shared.authority.check(now, &client, owner, request) {
            Ok(authenticated) => {
                let elsewhere = self.shared.alternates.of(client);
                match elsewhere.filter(|_| request.method() == Method::ALLOCATE && !is_owner) {
                    None => Some(authenticated),
                    Some(elsewhere) => {
                        let responder = Responder::to(request).signed(authenticated.key);
                        self.respond(client, responder.try_alternate(&elsewhere));
                        None
                    }
                }
            }
            Err(AuthError::Lookup(question)) => {
                let is_known = self.shared.authority.is_known(&question);
                match self.pending_lookups.insert(&question, client, is_known, request.as_bytes()) {
                    LookupAction::Start => {
                        self.outputs.push_back(Output::LookUpUser {
                            question,
                            from: client.client.ip(),
                            is_known,
                        });
                    }
                    LookupAction::Wait => {}
                    LookupAction::Drop => self.counters.dropped += 1,
                }
                None
            }
            Err(refusal) => {
                self.counters.unauthorized += u64::from(refusal != AuthError::Malformed);
                let challenge = self.shared.authority.challenge(now, &client);
                let bytes = Responder::to(request).refusal(&refusal, &challenge);
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

    /// Takes the end of [`Output::LookUpUser`]: when `answered`, the authority has learned the answer and the requests that
    /// waited for it are handled; else they are dropped, and their clients send them again.
    pub fn handle_lookup_done(&mut self, now: Now, question: &Arc<UserQuery>, answered: bool) {
        for (client, bytes) in self.pending_lookups.take(question) {
            match Message::parse(&bytes) {
                Ok(request) if answered => self.request(now, client, &request),
                _ => self.counters.dropped += 1,
            }
        }
    }
}

#[cfg(test)]
mod tests;
