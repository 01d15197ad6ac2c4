//! Allocate: [RFC 8656 section 7.2](https://www.rfc-editor.org/rfc/rfc8656#section-7.2). The numbers are those of its checks.

use super::allocation::{Allocation, Family, NewAllocation, PeerTransport, PendingAllocate};
use super::allocation_quota::QuotaPermit;
use super::machine::{AllocationId, Relay};
use super::ports::PortLease;
use super::relay_port::PortRequest;
use super::requests::{Request, lifetime_value};
use super::reservation::{ReservationToken, ReservedPort};
use super::response::StunErrorCode;
use crate::clock::Now;
use crate::ids::Pii;
use crate::limits::Exceeded;
use crate::stun::attr;
use rand::Rng;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// The default lifetime of an allocation, and the shortest that is granted.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(600);
/// REQUESTED-TRANSPORT's number of UDP.
const UDP: u8 = 17;
/// REQUESTED-TRANSPORT's number of TCP ([RFC 6062](https://www.rfc-editor.org/rfc/rfc6062)).
const TCP: u8 = 6;
/// The flag of EVEN-PORT that requests to reserve the next port.
const RESERVE_NEXT: u8 = 0x80;

/// The address families that an Allocate requests.
#[derive(Debug, Clone, Copy)]
struct RequestedFamilies {
    family: Family,
    /// ADDITIONAL-ADDRESS-FAMILY: also an IPv6 address.
    both: bool,
}

/// The quota and the relay port of a new allocation.
struct Resources {
    permit: QuotaPermit,
    lease: PortLease,
    port_request: PortRequest,
    /// The next port, reserved together with this one, and its token.
    reserved: Option<(ReservationToken, ReservedPort)>,
}

impl Relay {
    pub(super) fn handle_allocate(&mut self, now: Now, request: &Request<'_>) -> Result<(), StunErrorCode> {
        // 1: the request is authenticated already.
        // 2: the 5-tuple must have no allocation (437). A retransmission gets the same response again.
        if let Some(id) = self.allocation_of(request.client) {
            let (transaction, response) = &self.allocations[id].control.origin;
            if *transaction != request.responder.transaction() {
                return Err(StunErrorCode::AllocationMismatch);
            }
            if let Some(bytes) = response {
                self.respond(request.client, bytes.to_vec());
            }
            return Ok(());
        }
        // 3: REQUESTED-TRANSPORT must be present (400) and supported (442).
        let peer_transport = self.requested_transport(request)?;
        // 4: DONT-FRAGMENT is supported.
        // 5 to 8: the attributes must not contradict each other (400).
        let families = requested_families(request)?;
        // 7: without one of two families the allocation is created all the same.
        let has = |family| self.local_ips(family).next().is_some();
        let missing = [Family::V4, Family::V6].into_iter().find(|family| families.both && !has(*family));
        let family_error = missing.map(|family| (family, StunErrorCode::UnsupportedFamily));
        let family = if missing == Some(Family::V4) { Family::V6 } else { families.family };
        // RFC 8016: MOBILITY-TICKET must be allowed (405) and empty (400).
        let mobility = self.requested_mobility(request)?;
        // 5 to 10: the family (440), the reservation (508), the quota (486) and the port (508).
        let Resources { permit, lease, port_request, reserved } =
            self.acquire_resources(now, request, family)?;
        let new = NewAllocation {
            client: request.client,
            owner: request.owner.clone(),
            peer_transport,
            lifetime: self.granted_lifetime(request),
            permit,
            mobility,
        };
        let pending = PendingAllocate { responder: request.responder.clone(), reserved, family_error };
        let id = self.allocations.insert(Allocation::new(new, pending));
        self.insert_client(request.client, id);
        self.open_relay_port(id, lease, port_request);
        if families.both && family_error.is_none() && !self.open_second_family(id, request) {
            self.set_family_error(id, Family::V6);
        }
        self.respond_if_open(now, id);
        Ok(())
    }

    fn requested_transport(&self, request: &Request<'_>) -> Result<PeerTransport, StunErrorCode> {
        match request.attributes.get(attr::REQUESTED_TRANSPORT) {
            Some(&[UDP, _, _, _]) => Ok(PeerTransport::Udp),
            Some(&[TCP, _, _, _]) if self.shared.features.tcp => {
                may_relay_tcp(request).then_some(PeerTransport::Tcp).ok_or(StunErrorCode::BadRequest)
            }
            Some(&[_, _, _, _]) => Err(StunErrorCode::UnsupportedTransport),
            _ => Err(StunErrorCode::BadRequest),
        }
    }

    /// Opens the IPv6 relay port of a dual allocation: EVEN-PORT applies to both relayed addresses.
    fn open_second_family(&mut self, id: AllocationId, request: &Request<'_>) -> bool {
        let port_request = match request.attributes.get(attr::EVEN_PORT) {
            Some(_) => PortRequest::Even,
            None => PortRequest::Any,
        };
        let lease = self.lease(Family::V6, port_request);
        lease.map(|(lease, _)| self.open_relay_port(id, lease, port_request)).is_some()
    }

    /// Records that a pending Allocate does not get a relayed address of `family`.
    pub(super) fn set_family_error(&mut self, id: AllocationId, family: Family) {
        if let Some(pending) = &mut self.allocations[id].control.pending {
            pending.family_error = Some((family, StunErrorCode::InsufficientCapacity));
        }
    }

    /// Completes a pending Allocate once all its relay sockets are open.
    pub(super) fn respond_if_open(&mut self, now: Now, id: AllocationId) {
        let Some(allocation) = self.allocations.get_mut(id) else { return };
        if !allocation.relay_ports().all(|relay| self.relays[relay].open) {
            return;
        }
        let Some(mut pending) = allocation.control.pending.take() else { return };
        allocation.refresh(self.tick_base.ticks(now.mono), allocation.control.lifetime);
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
        let bytes = self.allocate_success(id, &pending, token, &relayed);
        let allocation = &mut self.allocations[id];
        allocation.control.origin.1 = Some(bytes.as_slice().into());
        if allocation.is_self_test() {
            tracing::debug!(%id, "self-test allocation created");
        } else {
            tracing::info!(user = %Pii(allocation.user()), client = %Pii(client.client), %id, "allocation created");
        }
        if let Some(events) = &self.shared.event_handler {
            events.on_allocation_created(&client, allocation.user(), &relayed);
        }
        self.counters.allocations += 1;
        self.set_expiry_timer(id);
        self.respond(client, bytes);
    }

    /// Makes the success response ([RFC 8656 section 7.2](https://www.rfc-editor.org/rfc/rfc8656#section-7.2)).
    fn allocate_success(
        &mut self,
        id: AllocationId,
        pending: &PendingAllocate,
        token: Option<ReservationToken>,
        relayed: &[SocketAddr],
    ) -> Vec<u8> {
        let mobility_ticket = self.mobility_ticket(id);
        let allocation = &self.allocations[id];
        pending.responder.success(|mut builder| {
            if let Some(ticket) = &mobility_ticket {
                builder = builder.attribute(attr::MOBILITY_TICKET, ticket);
            }
            if let Some(token) = token {
                builder = builder.attribute(attr::RESERVATION_TOKEN, &token);
            }
            for address in relayed {
                builder = builder.xor_address(attr::XOR_RELAYED_ADDRESS, *address);
            }
            if let Some((family, error)) = pending.family_error {
                let [class, number] = error.class_and_number();
                builder = builder.attribute(attr::ADDRESS_ERROR_CODE, &[family.code(), 0, class, number]);
            }
            builder
                .attribute(attr::LIFETIME, &lifetime_value(allocation.control.lifetime))
                .xor_address(attr::XOR_MAPPED_ADDRESS, allocation.client().client)
        })
    }

    /// Reserves a port for the user's next Allocate; `false` when there are too many reservations.
    fn reserve_port(
        &mut self,
        now: Now,
        user: Arc<str>,
        (token, port): (ReservationToken, ReservedPort),
    ) -> bool {
        let reserved = self.shared.reservations.insert(now.mono, token, user, port);
        self.set_reservation_timer(now);
        reserved
    }

    /// Refuses a pending Allocate whose only relay port could not be opened (508).
    pub(super) fn fail_without_ports(&mut self, id: AllocationId) {
        let Some(allocation) = self.allocations.get_mut(id) else { return };
        let client = allocation.client();
        let pending = allocation.control.pending.take();
        self.remove_allocation(id);
        if let Some(pending) = pending {
            self.respond(client, pending.responder.error(StunErrorCode::InsufficientCapacity));
        }
    }

    /// Acquires the quota and the relay port: the reserved port, which is in its user's quota already, or any port, an even one, or an even one
    /// and the next.
    fn acquire_resources(
        &mut self,
        now: Now,
        request: &Request<'_>,
        family: Family,
    ) -> Result<Resources, StunErrorCode> {
        // 5: the reservation must exist and be the user's.
        if let Some(token) = request.attributes.get(attr::RESERVATION_TOKEN) {
            let reserved = self.shared.reservations.take(now.mono, token, &request.user);
            let ReservedPort { lease, permit } = reserved.ok_or(StunErrorCode::InsufficientCapacity)?;
            return Ok(Resources { permit, lease, port_request: PortRequest::Exact, reserved: None });
        }
        let port_request = match request.attributes.get(attr::EVEN_PORT) {
            None => PortRequest::Any,
            Some(&[flags]) if flags & RESERVE_NEXT == 0 => PortRequest::Even,
            Some(&[_]) => PortRequest::Pair,
            Some(_) => return Err(StunErrorCode::BadRequest),
        };
        // 7: there must be a relay address of the family.
        self.local_ips(family).next().ok_or(StunErrorCode::UnsupportedFamily)?;
        // 10: a reserved port counts as an allocation of its user.
        let permit = self.take_quota(request)?;
        let second = (port_request == PortRequest::Pair).then(|| self.take_quota(request)).transpose()?;
        // 9: a port must be free.
        let (lease, next) = self.lease(family, port_request).ok_or(StunErrorCode::InsufficientCapacity)?;
        let reserved = next.zip(second).map(|(lease, permit)| ReservedPort { lease, permit });
        let reserved = reserved.map(|reserved| (self.rng.random(), reserved));
        Ok(Resources { permit, lease, port_request, reserved })
    }

    fn take_quota(&self, request: &Request<'_>) -> Result<QuotaPermit, StunErrorCode> {
        let handler = self.shared.quota_handler.as_ref();
        if handler.is_some_and(|handler| !handler.admits(&request.client, &request.user)) {
            return Err(StunErrorCode::QuotaReached);
        }
        self.shared.quota.acquire(&request.user).map_err(|limit| match limit {
            Exceeded::Key => StunErrorCode::QuotaReached,
            Exceeded::Total => StunErrorCode::InsufficientCapacity,
        })
    }

    /// Returns the requested lifetime within the default and the configured maximum, and within what the credentials allow.
    pub(super) fn granted_lifetime(&self, request: &Request<'_>) -> Duration {
        let requested = request.attributes.u32(attr::LIFETIME).unwrap_or_default();
        let granted =
            Duration::from_secs(requested.into()).max(DEFAULT_LIFETIME).min(self.shared.limits.max_lifetime);
        granted.min(request.lifetime_cap.unwrap_or(granted))
    }
}

/// Returns whether an Allocate for TCP was received over TCP, and has no attribute that applies only to UDP
/// ([RFC 6062 section 5.1](https://www.rfc-editor.org/rfc/rfc6062#section-5.1)).
fn may_relay_tcp(request: &Request<'_>) -> bool {
    let udp_only = [attr::EVEN_PORT, attr::DONT_FRAGMENT, attr::RESERVATION_TOKEN];
    request.client.transport.is_tcp() && udp_only.iter().all(|kind| request.attributes.get(*kind).is_none())
}

/// Reads the requested address families (checks 5 to 8).
fn requested_families(request: &Request<'_>) -> Result<RequestedFamilies, StunErrorCode> {
    let get = |kind| request.attributes.get(kind);
    let (requested, additional) = (get(attr::REQUESTED_ADDRESS_FAMILY), get(attr::ADDITIONAL_ADDRESS_FAMILY));
    let even_port = get(attr::EVEN_PORT);
    // 5: RESERVATION-TOKEN excludes EVEN-PORT and both family attributes.
    if get(attr::RESERVATION_TOKEN).is_some()
        && (even_port.is_some() || requested.is_some() || additional.is_some())
    {
        return Err(StunErrorCode::BadRequest);
    }
    // 6 and 8: ADDITIONAL-ADDRESS-FAMILY excludes the other family attribute, and EVEN-PORT with a reservation.
    if additional.is_some()
        && (requested.is_some() || even_port.is_some_and(|value| value.first() != Some(&0)))
    {
        return Err(StunErrorCode::BadRequest);
    }
    match (requested, additional) {
        (None, None) => Ok(RequestedFamilies { family: Family::V4, both: false }),
        // 8: ADDITIONAL-ADDRESS-FAMILY must name IPv6.
        (None, Some(&[2, _, _, _])) => Ok(RequestedFamilies { family: Family::V4, both: true }),
        (None, Some(_)) => Err(StunErrorCode::BadRequest),
        // 7: REQUESTED-ADDRESS-FAMILY must name a known family.
        (Some(&[code, _, _, _]), _) => {
            let family = Family::from_code(code).ok_or(StunErrorCode::UnsupportedFamily)?;
            Ok(RequestedFamilies { family, both: false })
        }
        (Some(_), _) => Err(StunErrorCode::BadRequest),
    }
}
