//! The relay's front desk: who may ask, who is told to ask elsewhere, and who waits until his name was looked up.

use super::FiveTuple;
use super::auth::{Authenticated, Question, Refusal, Waiting};
use super::machine::{Output, Proof, Relay};
use super::reply::Reply;
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
        let tenancy = allocation.map(|allocation| &allocation.cold.tenancy);
        let is_tenant = tenancy.is_some();
        match self.shared.authority.check(now, &client, tenancy, request) {
            Ok(authenticated) => {
                let elsewhere = self.shared.alternates.of(client);
                match elsewhere.filter(|_| request.method() == Method::ALLOCATE && !is_tenant) {
                    None => Some(authenticated),
                    Some(elsewhere) => {
                        let reply = Reply::to(request).signed(authenticated.key);
                        self.answer(client, reply.try_alternate(&elsewhere));
                        None
                    }
                }
            }
            Err(Refusal::Lookup(question)) => {
                let was_known = self.shared.authority.was_known(&question);
                match self.parking.park(&question, client, was_known, request.as_bytes()) {
                    Waiting::Ask => {
                        self.outputs.push_back(Output::LookUp {
                            question,
                            from: client.client.ip(),
                            was_known,
                        });
                    }
                    Waiting::Joins => {}
                    Waiting::Dropped => self.counters.dropped += 1,
                }
                None
            }
            Err(refusal) => {
                self.counters.unauthorized += u64::from(refusal != Refusal::Malformed);
                let challenge = self.shared.authority.challenge(now, &client);
                let bytes = Reply::to(request).refusal(&refusal, &challenge);
                let asked = request.as_bytes().len();
                self.outputs.push_back(Output::Reply { client, bytes, proof: Proof::None { asked } });
                None
            }
        }
    }

    /// Takes the end of [`Output::LookUp`]: when `answered`, the authority has learned the answer and the requests that
    /// waited for it are handled; else they are dropped, and their clients send them again.
    pub fn handle_lookup_done(&mut self, now: Now, question: &Arc<Question>, answered: bool) {
        for (client, bytes) in self.parking.take(question) {
            match Message::parse(&bytes) {
                Ok(request) if answered => self.request(now, client, &request),
                _ => self.counters.dropped += 1,
            }
        }
    }
}

#[cfg(test)]
mod tests;
