//! Requests: whose they are, and where each method is handled.

use super::FiveTuple;
use super::allocation::Family;
use super::auth::{AllocationOwner, Authenticated};
use super::machine::{AllocationId, Relay};
use super::policy::PeerAddr;
use super::response::{Responder, StunErrorCode};
use crate::clock::Now;
use crate::stun::{Attributes, Message, Method, attr};
use std::sync::Arc;
use std::time::Duration;

/// Comprehension-required attributes understood in requests.
const KNOWN_IN_REQUESTS: [u16; 16] = [
    attr::CONNECTION_ID,
    attr::EVEN_PORT,
    attr::RESERVATION_TOKEN,
    attr::USERNAME,
    attr::REALM,
    attr::NONCE,
    attr::USERHASH,
    attr::PASSWORD_ALGORITHM,
    attr::ACCESS_TOKEN,
    attr::LIFETIME,
    attr::REQUESTED_TRANSPORT,
    attr::REQUESTED_ADDRESS_FAMILY,
    attr::DONT_FRAGMENT,
    attr::XOR_PEER_ADDRESS,
    attr::CHANNEL_NUMBER,
    attr::DATA,
];

/// An authenticated request and how to answer it.
pub(super) struct Request<'a> {
    pub(super) client: FiveTuple,
    pub(super) user: Arc<str>,
    pub(super) owner: AllocationOwner,
    /// The longest lifetime that the credentials allow.
    pub(super) lifetime_cap: Option<Duration>,
    pub(super) attributes: Attributes<'a>,
    /// The whole message.
    pub(super) bytes: &'a [u8],
    pub(super) responder: Responder,
}

impl Relay {
    pub(super) fn request(&mut self, now: Now, client: FiveTuple, message: &Message<'_>) {
        let handler = match message.method() {
            Method::ALLOCATE => Self::allocate,
            Method::REFRESH => Self::refresh,
            Method::CREATE_PERMISSION => Self::create_permission,
            Method::CHANNEL_BIND => Self::channel_bind,
            Method::CONNECT => Self::connect,
            Method::CONNECTION_BIND => Self::connection_bind,
            _ => {
                self.counters.dropped += 1;
                return;
            }
        };
        let Some(authenticated) = self.authenticate(now, client, message) else { return };
        let (owner, lifetime_cap) = (authenticated.owner(), authenticated.lifetime_cap);
        let Authenticated { user, key, attributes, .. } = authenticated;
        let responder = Responder::to(message).signed(key);
        let unknown = attributes.unknown(&KNOWN_IN_REQUESTS);
        if !unknown.is_empty() {
            tracing::debug!(?unknown, "unknown attributes");
            return self.respond(client, responder.unknown_attributes(&unknown));
        }
        let request =
            Request { client, user, owner, lifetime_cap, attributes, bytes: message.as_bytes(), responder };
        if let Err(error_code) = handler(self, now, &request) {
            tracing::debug!(method = ?message.method(), ?error_code, "refused");
            self.respond(client, request.responder.error(error_code));
        }
    }

    /// Returns the client's allocation if the same user made it.
    pub(super) fn owned_allocation(
        &self,
        now: Now,
        request: &Request<'_>,
    ) -> Result<AllocationId, StunErrorCode> {
        let id = self.allocation_of(request.client).ok_or(StunErrorCode::AllocationMismatch)?;
        let allocation = &self.allocations[id];
        if !allocation.is_live(self.tick_base.ticks(now.mono)) {
            return Err(StunErrorCode::AllocationMismatch);
        }
        if *allocation.user() != request.user {
            return Err(StunErrorCode::WrongCredentials);
        }
        Ok(id)
    }

    /// Follows [RFC 8656 section 8.2](https://www.rfc-editor.org/rfc/rfc8656#section-8.2).
    fn refresh(&mut self, now: Now, request: &Request<'_>) -> Result<(), StunErrorCode> {
        let moves = request.attributes.get(attr::MOBILITY_TICKET);
        let id = match moves {
            None => self.owned_allocation(now, request)?,
            Some(sealed) => match self.resume_allocation(now, request, sealed)? {
                Some(id) => id,
                None => return Ok(()),
            },
        };
        let family = match request.attributes.get(attr::REQUESTED_ADDRESS_FAMILY) {
            None => None,
            Some(&[code, _, _, _]) => Some(Family::from_code(code).ok_or(StunErrorCode::PeerFamilyMismatch)?),
            Some(_) => return Err(StunErrorCode::BadRequest),
        };
        if family.is_some_and(|family| self.allocations[id].relay_port(family).is_none()) {
            return Err(StunErrorCode::PeerFamilyMismatch);
        }
        let lifetime = match request.attributes.u32(attr::LIFETIME) {
            Some(0) => Duration::ZERO,
            _ => self.granted_lifetime(request),
        };
        match family {
            Some(family) if lifetime.is_zero() && self.allocations[id].relay_ports().count() > 1 => {
                self.drop_family(id, family);
                self.allocations[id].forget_permissions(family);
            }
            _ if lifetime.is_zero() => self.end_allocation(id, "refreshed to zero"),
            _ => {
                let allocation = &mut self.allocations[id];
                allocation.control.owner = request.owner.clone();
                allocation.renew(self.tick_base.ticks(now.mono), lifetime);
                self.set_expiry_timer(id);
            }
        }
        let ticket = moves.and_then(|_| self.mobility_ticket(id));
        let bytes = request.responder.success(|builder| {
            let builder = builder.attribute(attr::LIFETIME, &seconds(lifetime));
            match &ticket {
                Some(ticket) => builder.attribute(attr::MOBILITY_TICKET, ticket),
                None => builder,
            }
        });
        self.respond(request.client, bytes);
        Ok(())
    }

    /// Ends one of two relayed addresses and what was said through it.
    pub(super) fn drop_family(&mut self, id: AllocationId, family: Family) {
        let allocation = &mut self.allocations[id];
        let of_family = |peer: &PeerAddr| Family::of(peer.ip()) == family;
        let peers: Vec<_> = allocation.peers().filter(of_family).collect();
        peers.into_iter().for_each(|peer| allocation.forget_peer(peer));
        if let Some(relay) = allocation.relay_port(family) {
            allocation.set_relay_port(family, None);
            self.close_relay_port(relay);
        }
    }
}

pub(super) fn seconds(lifetime: Duration) -> [u8; 4] {
    u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX).to_be_bytes()
}
