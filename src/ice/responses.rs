//! Responses to checks ([RFC 8445 section 7.2.5](https://www.rfc-editor.org/rfc/rfc8445#section-7.2.5)).

use super::binding::ROLE_CONFLICT;
use super::candidate::CandidateTransport;
use super::machine::{IceAgent, IceEvent, IceRole};
use super::pair::PairKey;
use crate::stun::{Class, Message, attr};
use std::time::Instant;

impl IceAgent {
    /// Handles a response; `None` if it is to no check, from another address than the check was sent to, or not authentic.
    pub(super) fn handle_response(
        &mut self,
        now: Instant,
        key: PairKey,
        message: &Message<'_>,
    ) -> Option<()> {
        let id = message.transaction();
        let is_current = self.current.pair(key).is_some_and(|pair| pair.has_outstanding(id));
        let generation = if is_current { &mut self.current } else { self.previous.as_mut()? };
        let attributes = message.verify(&generation.remote.as_ref()?.key())?;
        let pair = generation.pair_mut(key).filter(|pair| pair.has_outstanding(id))?;
        self.budget.on_answer(now, key.remote.ip());
        if message.class() == Class::Error {
            pair.on_error(id);
            if attributes.error_code() == Some(ROLE_CONFLICT) {
                pair.check_now(now);
                self.switch_role();
            }
            return Some(());
        }
        let answered = pair.on_response(now, id)?;
        if answered.nominates && self.role == IceRole::Controlling {
            pair.is_to_be_nominated = false;
            generation.nominated = Some((key, Some(self.next_nomination)));
        }
        let mapped = attributes.xor_address(attr::XOR_MAPPED_ADDRESS).ok().flatten();
        // An active TCP candidate has no address that could be mapped.
        let is_bound = generation.pair(key)?.local.transport != CandidateTransport::TcpActive;
        if let Some(address) = mapped.filter(|mapped| *mapped != key.local && is_bound)
            && answered.is_first
            && !self.locals.iter().any(|local| local.address == address)
        {
            self.push_event(IceEvent::Mapped { base: key.local, address });
        }
        Some(())
    }
}
