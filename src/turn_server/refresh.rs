//! Refresh: [RFC 8656 section 8.2](https://www.rfc-editor.org/rfc/rfc8656#section-8.2), and
//! [RFC 8016](https://www.rfc-editor.org/rfc/rfc8016) for a request with a mobility ticket.

use super::allocation::Family;
use super::machine::{AllocationId, Relay};
use super::policy::PeerAddr;
use super::requests::{Request, lifetime_value};
use super::response::StunErrorCode;
use crate::clock::Now;
use crate::stun::attr;
use std::time::Duration;

impl Relay {
    pub(super) fn handle_refresh(&mut self, now: Now, request: &Request<'_>) -> Result<(), StunErrorCode> {
        // The 5-tuple must have an allocation, or the mobility ticket names one.
        let ticket = request.attributes.get(attr::MOBILITY_TICKET);
        let id = match ticket {
            None => self.owned_allocation(now, request)?,
            Some(sealed) => match self.resume_allocation(now, request, sealed)? {
                Some(id) => id,
                // Another worker has it, and responds.
                None => return Ok(()),
            },
        };
        // REQUESTED-ADDRESS-FAMILY must name a relayed address of the allocation.
        let family = match request.attributes.get(attr::REQUESTED_ADDRESS_FAMILY) {
            None => None,
            Some(&[code, _, _, _]) => Some(Family::from_code(code).ok_or(StunErrorCode::PeerFamilyMismatch)?),
            Some(_) => return Err(StunErrorCode::BadRequest),
        };
        if family.is_some_and(|family| self.allocations[id].relay_port(family).is_none()) {
            return Err(StunErrorCode::PeerFamilyMismatch);
        }
        // A lifetime of zero deletes the allocation, or only the relayed address of the family.
        let lifetime = match request.attributes.u32(attr::LIFETIME) {
            Some(0) => Duration::ZERO,
            _ => self.granted_lifetime(request),
        };
        match family {
            Some(family) if lifetime.is_zero() && self.allocations[id].relay_ports().count() > 1 => {
                self.remove_family(id, family);
                self.allocations[id].remove_permissions(family);
            }
            _ if lifetime.is_zero() => self.end_allocation(id, "refreshed to zero"),
            // Any other lifetime is the new time-to-expiry.
            _ => {
                let allocation = &mut self.allocations[id];
                allocation.control.owner = request.owner.clone();
                allocation.refresh(self.tick_base.ticks(now.mono), lifetime);
                self.set_expiry_timer(id);
            }
        }
        let next_ticket = ticket.and_then(|_| self.mobility_ticket(id));
        let bytes = request.responder.success(|builder| {
            let builder = builder.attribute(attr::LIFETIME, &lifetime_value(lifetime));
            match &next_ticket {
                Some(ticket) => builder.attribute(attr::MOBILITY_TICKET, ticket),
                None => builder,
            }
        });
        self.respond(request.client, bytes);
        Ok(())
    }

    /// Removes one of two relayed addresses, and the peers that were sent to from it.
    pub(super) fn remove_family(&mut self, id: AllocationId, family: Family) {
        let allocation = &mut self.allocations[id];
        let of_family = |peer: &PeerAddr| Family::of(peer.ip()) == family;
        let peers: Vec<_> = allocation.peers().filter(of_family).collect();
        peers.into_iter().for_each(|peer| allocation.remove_peer(peer));
        if let Some(relay) = allocation.relay_port(family) {
            allocation.set_relay_port(family, None);
            self.close_relay_port(relay);
        }
    }
}
