//! Allocate: [RFC 8656 section 7](https://www.rfc-editor.org/rfc/rfc8656#section-7), in the order of its numbered checks.

use super::allocation::{Allocation, Family, NewAllocation, PeerTransport, PendingAllocate};
use super::allocation_quota::QuotaPermit;
use super::machine::{AllocationId, Relay};
use super::ports::PortLease;
use super::relay_port::PortRequest;
use super::requests::{Request, seconds};
use super::reservation::{ReservationToken, ReservedPort};
use super::response::StunErrorCode;
use crate::clock::Now;
use crate::ids::Pii;
use crate::limits::Exceeded;
use crate::stun::attr;
use rand::Rng;
use std::sync::Arc;
use std::time::Duration;

/// Lifetime that an Allocate or Refresh without LIFETIME gets, and the shortest there is.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(600);
/// REQUESTED-TRANSPORT's number of UDP.
const UDP: u8 = 17;
/// REQUESTED-TRANSPORT's number of TCP ([RFC 6062](https://www.rfc-editor.org/rfc/rfc6062)).
const TCP: u8 = 6;

/// The relayed addresses that an Allocate asks for.
#[derive(Debug, Clone, Copy)]
struct RequestedFamilies {
    family: Family,
    /// ADDITIONAL-ADDRESS-FAMILY: an IPv6 address besides.
    both: bool,
}

/// What an allocation begins with.
struct Resources {
    permit: QuotaPermit,
    lease: PortLease,
    replacement: PortRequest,
    /// The next port, set aside with this one, and what names it.
    next: Option<(ReservationToken, ReservedPort)>,
}

impl Relay {
    pub(super) fn allocate(&mut self, now: Now, request: &Request<'_>) -> Result<(), StunErrorCode> {
        // 2: one allocation a 5-tuple; a retransmission gets the answer it missed.
        if let Some(id) = self.allocation_of(request.client) {
            let origin = &self.allocations[id].control.origin;
            if origin.0 != request.responder.transaction() {
                return Err(StunErrorCode::AllocationMismatch);
            }
            if let Some(bytes) = &origin.1 {
                self.respond(request.client, bytes.to_vec());
            }
            return Ok(());
        }
        let peer_transport = self.peer_transport(request)?;
        // 5 to 9: address families and ports.
        let wanted = wanted(request)?;
        let missing = (wanted.both && self.local_ips(Family::V6).next().is_none())
            .then_some((Family::V6, StunErrorCode::UnsupportedFamily));
        let mobility = self.requested_mobility(request)?;
        let Resources { permit, lease, replacement, next } =
            self.acquire_resources(now, request, wanted.family)?;
        let new = NewAllocation {
            client: request.client,
            owner: request.owner.clone(),
            peer_transport,
            lifetime: self.granted_lifetime(request),
            permit,
            mobility,
        };
        let pending = PendingAllocate { responder: request.responder.clone(), reserved: next, missing };
        let id = self.allocations.insert(Allocation::new(new, pending));
        self.insert_client(request.client, id);
        self.open_relay_port(id, lease, replacement);
        if wanted.both && missing.is_none() && !self.open_second(id, request) {
            self.set_family_error(id, Family::V6);
        }
        self.answer_if_ready(now, id);
        Ok(())
    }

    /// Reads the transport towards the peers (check 3).
    fn peer_transport(&self, request: &Request<'_>) -> Result<PeerTransport, StunErrorCode> {
        match request.attributes.get(attr::REQUESTED_TRANSPORT) {
            Some(&[UDP, _, _, _]) => Ok(PeerTransport::Udp),
            Some(&[TCP, _, _, _]) if self.shared.features.tcp => {
                may_relay_tcp(request).then_some(PeerTransport::Tcp).ok_or(StunErrorCode::BadRequest)
            }
            Some(&[_, _, _, _]) => Err(StunErrorCode::UnsupportedTransport),
            _ => Err(StunErrorCode::BadRequest),
        }
    }

    /// Gives the allocation its IPv6 address besides: EVEN-PORT holds for each of two relayed addresses.
    fn open_second(&mut self, id: AllocationId, request: &Request<'_>) -> bool {
        let replacement = match request.attributes.get(attr::EVEN_PORT) {
            Some(_) => PortRequest::Even,
            None => PortRequest::Any,
        };
        let lease = self.lease(Family::V6, replacement);
        lease.map(|(lease, _)| self.open_relay_port(id, lease, replacement)).is_some()
    }

    pub(super) fn set_family_error(&mut self, id: AllocationId, family: Family) {
        if let Some(pending) = &mut self.allocations[id].control.pending {
            pending.missing = Some((family, StunErrorCode::InsufficientCapacity));
        }
    }

    /// Answers the Allocate once all its ports are open.
    pub(super) fn answer_if_ready(&mut self, now: Now, id: AllocationId) {
        let Some(allocation) = self.allocations.get_mut(id) else { return };
        if !allocation.relay_ports().all(|relay| self.relays[relay].open) {
            return;
        }
        let Some(mut pending) = allocation.control.pending.take() else { return };
        allocation.renew(self.tick_base.ticks(now.mono), allocation.control.lifetime);
        let (client, user) = (allocation.client(), Arc::clone(allocation.user()));
        let token = pending.reserved.as_ref().map(|(token, _)| *token);
        if pending.reserved.take().is_some_and(|reserved| !self.reserve_port(now, user, reserved)) {
            self.remove_allocation(id);
            return self.respond(client, pending.responder.error(StunErrorCode::InsufficientCapacity));
        }
        let Some(allocation) = self.allocations.get(id) else { return };
        let relayed: Vec<_> = allocation
            .relay_ports()
            .map(|relay| self.shared.ports.advertised(self.relays[relay].address()))
            .collect();
        let ticket = self.mobility_ticket(id);
        let Some(allocation) = self.allocations.get_mut(id) else { return };
        let bytes = pending.responder.success(|mut builder| {
            if let Some(ticket) = &ticket {
                builder = builder.attribute(attr::MOBILITY_TICKET, ticket);
            }
            if let Some(token) = token {
                builder = builder.attribute(attr::RESERVATION_TOKEN, &token);
            }
            for address in relayed {
                builder = builder.xor_address(attr::XOR_RELAYED_ADDRESS, address);
            }
            if let Some((family, error_code)) = pending.missing {
                let [class, number] = error_code.class_and_number();
                builder = builder.attribute(attr::ADDRESS_ERROR_CODE, &[family.code(), 0, class, number]);
            }
            builder
                .attribute(attr::LIFETIME, &seconds(allocation.control.lifetime))
                .xor_address(attr::XOR_MAPPED_ADDRESS, client.client)
        });
        allocation.control.origin.1 = Some(bytes.as_slice().into());
        if allocation.is_self_test() {
            tracing::debug!(%id, "allocation opened to test the relay");
        } else {
            tracing::info!(user = %Pii(allocation.user()), client = %Pii(client.client), %id, "allocation opened");
        }
        self.counters.allocations += 1;
        self.set_expiry_timer(id);
        self.respond(client, bytes);
    }

    /// Keeps a port for the user's next Allocate; `false` when there are too many.
    fn reserve_port(
        &mut self,
        now: Now,
        user: Arc<str>,
        (token, port): (ReservationToken, ReservedPort),
    ) -> bool {
        let kept = self.shared.reservations.keep(now.mono, token, user, port);
        self.set_reservation_timer(now);
        kept
    }

    /// Ends an allocation whose only port could not be opened: 508.
    pub(super) fn fail_without_ports(&mut self, id: AllocationId) {
        let Some(allocation) = self.allocations.get_mut(id) else { return };
        let client = allocation.client();
        let pending = allocation.control.pending.take();
        self.remove_allocation(id);
        if let Some(pending) = pending {
            self.respond(client, pending.responder.error(StunErrorCode::InsufficientCapacity));
        }
    }

    /// Takes quota and port (checks 5, 9 and 10): any port, an even one, an even one and the next, or the one set aside, which is in the
    /// user's quota already.
    fn acquire_resources(
        &mut self,
        now: Now,
        request: &Request<'_>,
        family: Family,
    ) -> Result<Resources, StunErrorCode> {
        let asked = |kind| request.attributes.get(kind);
        if let Some(token) = asked(attr::RESERVATION_TOKEN) {
            let reserved = self.shared.reservations.claim(now.mono, token, &request.user);
            let ReservedPort { lease, permit } = reserved.ok_or(StunErrorCode::InsufficientCapacity)?;
            return Ok(Resources { permit, lease, replacement: PortRequest::Exact, next: None });
        }
        let replacement = match asked(attr::EVEN_PORT) {
            None => PortRequest::Any,
            Some(&[flags]) if flags & 0x80 == 0 => PortRequest::Even,
            Some(&[_]) => PortRequest::Pair,
            Some(_) => return Err(StunErrorCode::BadRequest),
        };
        self.local_ips(family).next().ok_or(StunErrorCode::UnsupportedFamily)?;
        let permit = self.take_quota(request)?;
        let second = (replacement == PortRequest::Pair).then(|| self.take_quota(request)).transpose()?;
        let (lease, odd) = self.lease(family, replacement).ok_or(StunErrorCode::InsufficientCapacity)?;
        let reserved = odd.zip(second).map(|(lease, permit)| ReservedPort { lease, permit });
        let next = reserved.map(|reserved| (self.rng.random(), reserved));
        Ok(Resources { permit, lease, replacement, next })
    }

    fn take_quota(&self, request: &Request<'_>) -> Result<QuotaPermit, StunErrorCode> {
        self.shared.quota.acquire(&request.user).map_err(|limit| match limit {
            Exceeded::Key => StunErrorCode::QuotaReached,
            Exceeded::Total => StunErrorCode::InsufficientCapacity,
        })
    }

    /// Grants what was asked for, between the default and the configured maximum, and no more than the credentials allow.
    pub(super) fn granted_lifetime(&self, request: &Request<'_>) -> Duration {
        let asked = request.attributes.u32(attr::LIFETIME).unwrap_or_default();
        let granted =
            Duration::from_secs(asked.into()).max(DEFAULT_LIFETIME).min(self.shared.limits.max_lifetime);
        granted.min(request.lifetime_cap.unwrap_or(granted))
    }
}

/// Returns whether an Allocate for TCP comes by TCP and asks for nothing that only datagrams have
/// ([RFC 6062 section 5.1](https://www.rfc-editor.org/rfc/rfc6062#section-5.1)).
fn may_relay_tcp(request: &Request<'_>) -> bool {
    let datagrams_only = [attr::EVEN_PORT, attr::DONT_FRAGMENT, attr::RESERVATION_TOKEN];
    request.client.transport.is_tcp()
        && datagrams_only.iter().all(|kind| request.attributes.get(*kind).is_none())
}

/// Reads which address families are asked for, and refuses combinations that make no sense (checks 5 to 8).
fn wanted(request: &Request<'_>) -> Result<RequestedFamilies, StunErrorCode> {
    let asked = |kind| request.attributes.get(kind);
    let (requested, additional) =
        (asked(attr::REQUESTED_ADDRESS_FAMILY), asked(attr::ADDITIONAL_ADDRESS_FAMILY));
    let even = asked(attr::EVEN_PORT);
    if asked(attr::RESERVATION_TOKEN).is_some()
        && (even.is_some() || requested.is_some() || additional.is_some())
    {
        return Err(StunErrorCode::BadRequest);
    }
    if additional.is_some() && (requested.is_some() || even.is_some_and(|value| value.first() != Some(&0))) {
        return Err(StunErrorCode::BadRequest);
    }
    match (requested, additional) {
        (None, None) => Ok(RequestedFamilies { family: Family::V4, both: false }),
        (None, Some(&[2, _, _, _])) => Ok(RequestedFamilies { family: Family::V4, both: true }),
        (None, Some(_)) => Err(StunErrorCode::BadRequest),
        (Some(&[code, _, _, _]), _) => {
            let family = Family::from_code(code).ok_or(StunErrorCode::UnsupportedFamily)?;
            Ok(RequestedFamilies { family, both: false })
        }
        (Some(_), _) => Err(StunErrorCode::BadRequest),
    }
}
