//! Requests: whose they are, and where each method is handled.

use super::FiveTuple;
use super::allocation::Family;
use super::auth::{Authenticated, Tenancy};
use super::machine::{AllocationId, Relay};
use super::policy::PeerAddr;
use super::reply::{Fault, Reply};
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
    pub(super) tenancy: Tenancy,
    /// The longest lifetime that the credentials allow.
    pub(super) lifetime_cap: Option<Duration>,
    pub(super) attributes: Attributes<'a>,
    /// The whole message.
    pub(super) bytes: &'a [u8],
    pub(super) reply: Reply,
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
        let (tenancy, lifetime_cap) = (authenticated.tenancy(), authenticated.lifetime_cap);
        let Authenticated { user, key, attributes, .. } = authenticated;
        let reply = Reply::to(message).signed(key);
        let unknown = attributes.unknown(&KNOWN_IN_REQUESTS);
        if !unknown.is_empty() {
            tracing::debug!(?unknown, "unknown attributes");
            return self.answer(client, reply.unknown_attributes(&unknown));
        }
        let request =
            Request { client, user, tenancy, lifetime_cap, attributes, bytes: message.as_bytes(), reply };
        if let Err(fault) = handler(self, now, &request) {
            tracing::debug!(method = ?message.method(), ?fault, "refused");
            self.answer(client, request.reply.error(fault));
        }
    }

    /// Returns the client's allocation if the same user made it.
    pub(super) fn owned(&self, now: Now, request: &Request<'_>) -> Result<AllocationId, Fault> {
        let id = self.allocation_of(request.client).ok_or(Fault::AllocationMismatch)?;
        let allocation = &self.allocations[id];
        if !allocation.is_live(self.epoch.moment(now.mono)) {
            return Err(Fault::AllocationMismatch);
        }
        if *allocation.user() != request.user {
            return Err(Fault::WrongCredentials);
        }
        Ok(id)
    }

    /// Follows [RFC 8656 section 8.2](https://www.rfc-editor.org/rfc/rfc8656#section-8.2).
    fn refresh(&mut self, now: Now, request: &Request<'_>) -> Result<(), Fault> {
        let moves = request.attributes.get(attr::MOBILITY_TICKET);
        let id = match moves {
            None => self.owned(now, request)?,
            Some(sealed) => match self.resume(now, request, sealed)? {
                Some(id) => id,
                None => return Ok(()),
            },
        };
        let family = match request.attributes.get(attr::REQUESTED_ADDRESS_FAMILY) {
            None => None,
            Some(&[code, _, _, _]) => Some(Family::from_code(code).ok_or(Fault::PeerFamilyMismatch)?),
            Some(_) => return Err(Fault::BadRequest),
        };
        if family.is_some_and(|family| self.allocations[id].relay_port(family).is_none()) {
            return Err(Fault::PeerFamilyMismatch);
        }
        let lifetime = match request.attributes.u32(attr::LIFETIME) {
            Some(0) => Duration::ZERO,
            _ => self.granted(request),
        };
        match family {
            Some(family) if lifetime.is_zero() && self.allocations[id].relay_ports().count() > 1 => {
                self.drop_family(id, family);
                self.allocations[id].forget_permissions(family);
            }
            _ if lifetime.is_zero() => self.end(id, "refreshed to zero"),
            _ => {
                let allocation = &mut self.allocations[id];
                allocation.cold.tenancy = request.tenancy.clone();
                allocation.renew(self.epoch.moment(now.mono), lifetime);
                self.arm(id);
            }
        }
        let ticket = moves.and_then(|_| self.ticket(id));
        let bytes = request.reply.success(|builder| {
            let builder = builder.attribute(attr::LIFETIME, &seconds(lifetime));
            match &ticket {
                Some(ticket) => builder.attribute(attr::MOBILITY_TICKET, ticket),
                None => builder,
            }
        });
        self.answer(request.client, bytes);
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
