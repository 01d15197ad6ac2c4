//! The relay's answers to authenticated requests, in the order of the RFC's own numbered checks.

use super::allocation::{Allocation, Applicant, FiveTuple, PeerRefusal};
use super::auth::{Authenticated, Tenancy};
use super::machine::{AllocationId, Opening, Output, Relay, seconds};
use super::policy::PeerAddr;
use super::ports::PortLease;
use super::quota::Exhausted;
use super::reply::{Fault, Reply};
use super::reservation::Token;
use crate::clock::Now;
use crate::ids::Pii;
use crate::stun::{Attributes, Message, Method, attr};
use rand::Rng;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Lifetime that an Allocate or Refresh without LIFETIME gets, and the shortest there is.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(600);
/// REQUESTED-TRANSPORT's number of UDP.
const UDP: u8 = 17;
/// Comprehension-required attributes understood in requests.
const KNOWN_IN_REQUESTS: [u16; 15] = [
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
struct Request<'a> {
    client: FiveTuple,
    user: Arc<str>,
    tenancy: Tenancy,
    /// The longest lifetime that the credentials allow.
    lifetime_cap: Option<Duration>,
    attributes: Attributes<'a>,
    reply: Reply,
}

impl Relay {
    pub(super) fn request(&mut self, now: Now, client: FiveTuple, message: &Message<'_>) {
        let handler = match message.method() {
            Method::ALLOCATE => Self::allocate,
            Method::REFRESH => Self::refresh,
            Method::CREATE_PERMISSION => Self::create_permission,
            Method::CHANNEL_BIND => Self::channel_bind,
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
        let request = Request { client, user, tenancy, lifetime_cap, attributes, reply };
        if let Err(fault) = handler(self, now, &request) {
            tracing::debug!(method = ?message.method(), ?fault, "refused");
            self.answer(client, request.reply.error(fault));
        }
    }

    /// Follows the numbered checks of [RFC 8656 section 7.2](https://www.rfc-editor.org/rfc/rfc8656#section-7.2).
    fn allocate(&mut self, now: Now, request: &Request<'_>) -> Result<(), Fault> {
        // 2: one allocation a 5-tuple; a retransmission gets the answer it missed.
        if let Some(id) = self.clients.get(&request.client).copied() {
            let origin = &self.allocations[id].origin;
            if origin.0 != request.reply.transaction() {
                return Err(Fault::AllocationMismatch);
            }
            if let Some(bytes) = origin.1.clone() {
                self.answer(request.client, bytes);
            }
            return Ok(());
        }
        // 3: the transport towards the peers.
        match request.attributes.get(attr::REQUESTED_TRANSPORT) {
            Some(&[UDP, _, _, _]) => {}
            Some(&[_, _, _, _]) => return Err(Fault::UnsupportedTransport),
            _ => return Err(Fault::BadRequest),
        }
        // 6, 7: the address family.
        let address = match request.attributes.get(attr::REQUESTED_ADDRESS_FAMILY) {
            None => self.shared.addresses.first().copied(),
            Some(&[family @ 1..=2, _, _, _]) => {
                self.shared.addresses.iter().copied().find(|a| a.local.is_ipv6() == (family == 2))
            }
            Some(&[_, _, _, _]) => None,
            Some(_) => return Err(Fault::BadRequest),
        };
        let address = address.ok_or(Fault::UnsupportedFamily)?;
        // 8: quota and capacity.
        let ticket = self.shared.quota.take(&request.user).map_err(|limit| match limit {
            Exhausted::User => Fault::QuotaReached,
            Exhausted::Total => Fault::InsufficientCapacity,
        })?;
        let (lease, reserved) = self.lease(now, request, address.local)?;
        let lifetime = self.granted(request, request.attributes.u32(attr::LIFETIME));
        let applicant = Applicant {
            client: request.client,
            tenancy: request.tenancy.clone(),
            transaction: request.reply.transaction(),
            ticket,
        };
        let local = lease.address();
        let id = self.allocations.insert(Allocation::new(applicant, lease, now.mono + lifetime));
        self.clients.insert(request.client, id);
        let replaceable = [attr::EVEN_PORT, attr::RESERVATION_TOKEN]
            .iter()
            .all(|kind| request.attributes.get(*kind).is_none());
        self.opening.insert(
            id,
            Opening { reply: request.reply.clone(), lifetime, reserved, attempts: 1, replaceable },
        );
        self.outputs.push_back(Output::OpenRelay { id, address: local });
        Ok(())
    }

    /// Follows [RFC 8656 section 8.2](https://www.rfc-editor.org/rfc/rfc8656#section-8.2).
    fn refresh(&mut self, now: Now, request: &Request<'_>) -> Result<(), Fault> {
        let id = self.owned(now, request)?;
        if let Some(&[family, ..]) = request.attributes.get(attr::REQUESTED_ADDRESS_FAMILY)
            && (family == 2) != self.allocations[id].relayed.address().is_ipv6()
        {
            return Err(Fault::PeerFamilyMismatch);
        }
        let lifetime = match request.attributes.u32(attr::LIFETIME) {
            Some(0) => Duration::ZERO,
            asked => self.granted(request, asked),
        };
        if lifetime.is_zero() {
            self.end(id, "refreshed to zero");
        } else {
            self.allocations[id].tenancy = request.tenancy.clone();
            self.allocations[id].expires = now.mono + lifetime;
            self.deadlines.set(id, now.mono + lifetime);
        }
        let bytes = request.reply.success(|builder| builder.attribute(attr::LIFETIME, &seconds(lifetime)));
        self.answer(request.client, bytes);
        Ok(())
    }

    /// Follows [RFC 8656 section 10.2](https://www.rfc-editor.org/rfc/rfc8656#section-10.2): all peers or none.
    fn create_permission(&mut self, now: Now, request: &Request<'_>) -> Result<(), Fault> {
        let id = self.owned(now, request)?;
        let peers: Result<Vec<_>, Fault> = request
            .attributes
            .xor_addresses(attr::XOR_PEER_ADDRESS)
            .map(|peer| self.admit(id, peer.map_err(|_| Fault::BadRequest)?))
            .collect();
        let peers =
            peers.inspect_err(|fault| self.counters.denied_peers += u64::from(*fault == Fault::Forbidden))?;
        if peers.is_empty() {
            return Err(Fault::BadRequest);
        }
        let allocation = &mut self.allocations[id];
        if !allocation.has_room_for(now.mono, &peers) {
            return Err(Fault::InsufficientCapacity);
        }
        for peer in peers {
            allocation.permit(now.mono, peer.ip());
        }
        let bytes = request.reply.success(|builder| builder);
        self.answer(request.client, bytes);
        Ok(())
    }

    /// Follows [RFC 8656 section 12.2](https://www.rfc-editor.org/rfc/rfc8656#section-12.2).
    fn channel_bind(&mut self, now: Now, request: &Request<'_>) -> Result<(), Fault> {
        let id = self.owned(now, request)?;
        let Some(&[high, low, _, _]) = request.attributes.get(attr::CHANNEL_NUMBER) else {
            return Err(Fault::BadRequest);
        };
        let peer =
            request.attributes.xor_address(attr::XOR_PEER_ADDRESS).ok().flatten().ok_or(Fault::BadRequest)?;
        let peer = self
            .admit(id, peer)
            .inspect_err(|fault| self.counters.denied_peers += u64::from(*fault == Fault::Forbidden))?;
        let bound = self.allocations[id].bind(now.mono, u16::from_be_bytes([high, low]), peer);
        bound.map_err(|refusal| match refusal {
            PeerRefusal::Conflict => Fault::BadRequest,
            PeerRefusal::Full => Fault::InsufficientCapacity,
        })?;
        let bytes = request.reply.success(|builder| builder);
        self.answer(request.client, bytes);
        Ok(())
    }

    /// Returns the client's allocation if the same user made it.
    fn owned(&self, now: Now, request: &Request<'_>) -> Result<AllocationId, Fault> {
        let id = *self.clients.get(&request.client).ok_or(Fault::AllocationMismatch)?;
        let allocation = &self.allocations[id];
        if !allocation.is_live(now.mono) {
            return Err(Fault::AllocationMismatch);
        }
        if allocation.user != request.user {
            return Err(Fault::WrongCredentials);
        }
        Ok(id)
    }

    /// Returns the peer in canonical form if the policy lets it be reached from this allocation.
    fn admit(&self, id: AllocationId, peer: SocketAddr) -> Result<PeerAddr, Fault> {
        let peer = PeerAddr::new(peer);
        if let Err(rule) = self.shared.policy.check(peer) {
            tracing::debug!(peer = %Pii(peer.socket_addr()), ?rule, "peer denied");
            return Err(Fault::Forbidden);
        }
        if peer.ip().is_ipv6() != self.allocations[id].relayed.address().is_ipv6() {
            return Err(Fault::PeerFamilyMismatch);
        }
        Ok(peer)
    }

    /// Leases the port that an Allocate asks for: any, an even one, an even one and the next, or the one set aside
    /// ([RFC 8656 section 7.2](https://www.rfc-editor.org/rfc/rfc8656#section-7.2), checks 4, 5 and 9).
    fn lease(
        &mut self,
        now: Now,
        request: &Request<'_>,
        ip: IpAddr,
    ) -> Result<(PortLease, Option<Token>), Fault> {
        let asked = |kind| request.attributes.get(kind);
        let ports = &self.shared.ports;
        match (asked(attr::RESERVATION_TOKEN), asked(attr::EVEN_PORT)) {
            (Some(_), Some(_)) => Err(Fault::BadRequest),
            (Some(_), None) if asked(attr::REQUESTED_ADDRESS_FAMILY).is_some() => Err(Fault::BadRequest),
            (Some(token), None) => {
                let lease = self.shared.reservations.claim(now.mono, token, &request.user);
                Ok((lease.ok_or(Fault::InsufficientCapacity)?, None))
            }
            (None, None) => Ok((ports.lease(ip, &mut self.rng).ok_or(Fault::InsufficientCapacity)?, None)),
            (None, Some(&[flags])) if flags & 0x80 == 0 => {
                Ok((ports.lease_even(ip, &mut self.rng).ok_or(Fault::InsufficientCapacity)?, None))
            }
            (None, Some(&[_])) => {
                let (even, odd) = ports.lease_pair(ip, &mut self.rng).ok_or(Fault::InsufficientCapacity)?;
                let token = self.rng.random();
                let kept = self.shared.reservations.keep(now.mono, token, Arc::clone(&request.user), odd);
                kept.then_some((even, Some(token))).ok_or(Fault::InsufficientCapacity)
            }
            (None, Some(_)) => Err(Fault::BadRequest),
        }
    }

    /// Grants what was asked for, between the default and the configured maximum, and no more than the credentials allow.
    fn granted(&self, request: &Request<'_>, asked: Option<u32>) -> Duration {
        let asked = Duration::from_secs(asked.unwrap_or_default().into());
        let granted = asked.max(DEFAULT_LIFETIME).min(self.shared.max_lifetime);
        granted.min(request.lifetime_cap.unwrap_or(granted))
    }
}
