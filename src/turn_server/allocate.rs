//! Allocate: [RFC 8656 section 7](https://www.rfc-editor.org/rfc/rfc8656#section-7), in the order of its numbered checks.

use super::allocation::{Allocation, Applicant, Family, Opening, PeerTransport};
use super::machine::{AllocationId, Relay};
use super::ports::PortLease;
use super::quota::{Exhausted, Ticket};
use super::relay_port::Replacement;
use super::reply::Fault;
use super::requests::{Request, seconds};
use super::reservation::{Reserved, Token};
use crate::clock::Now;
use crate::ids::Pii;
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
struct Wanted {
    family: Family,
    /// ADDITIONAL-ADDRESS-FAMILY: an IPv6 address besides.
    both: bool,
}

/// What an allocation begins with.
struct Place {
    ticket: Ticket,
    lease: PortLease,
    replacement: Replacement,
    /// The next port, set aside with this one, and what names it.
    next: Option<(Token, Reserved)>,
}

impl Relay {
    pub(super) fn allocate(&mut self, now: Now, request: &Request<'_>) -> Result<(), Fault> {
        // 2: one allocation a 5-tuple; a retransmission gets the answer it missed.
        if let Some(id) = self.allocation_of(request.client) {
            let origin = &self.allocations[id].cold.origin;
            if origin.0 != request.reply.transaction() {
                return Err(Fault::AllocationMismatch);
            }
            if let Some(bytes) = &origin.1 {
                self.answer(request.client, bytes.to_vec());
            }
            return Ok(());
        }
        let peer_transport = self.peer_transport(request)?;
        // 5 to 9: address families and ports.
        let wanted = wanted(request)?;
        let missing = (wanted.both && self.local_ips(Family::V6).next().is_none())
            .then_some((Family::V6, Fault::UnsupportedFamily));
        let mobility = self.wants_mobility(request)?;
        let Place { ticket, lease, replacement, next } = self.place(now, request, wanted.family)?;
        let applicant = Applicant {
            client: request.client,
            tenancy: request.tenancy.clone(),
            peer_transport,
            lifetime: self.granted(request),
            ticket,
            mobility,
        };
        let opening = Opening { reply: request.reply.clone(), reserved: next, missing };
        let id = self.allocations.insert(Allocation::new(applicant, opening));
        self.insert_client(request.client, id);
        self.open_relay_port(id, lease, replacement);
        if wanted.both && missing.is_none() && !self.open_second(id, request) {
            self.note_missing(id, Family::V6);
        }
        self.answer_if_ready(now, id);
        Ok(())
    }

    /// Reads the transport towards the peers (check 3).
    fn peer_transport(&self, request: &Request<'_>) -> Result<PeerTransport, Fault> {
        match request.attributes.get(attr::REQUESTED_TRANSPORT) {
            Some(&[UDP, _, _, _]) => Ok(PeerTransport::Udp),
            Some(&[TCP, _, _, _]) if self.shared.features.tcp => {
                may_relay_tcp(request).then_some(PeerTransport::Tcp).ok_or(Fault::BadRequest)
            }
            Some(&[_, _, _, _]) => Err(Fault::UnsupportedTransport),
            _ => Err(Fault::BadRequest),
        }
    }

    /// Gives the allocation its IPv6 address besides: EVEN-PORT holds for each of two relayed addresses.
    fn open_second(&mut self, id: AllocationId, request: &Request<'_>) -> bool {
        let replacement = match request.attributes.get(attr::EVEN_PORT) {
            Some(_) => Replacement::Even,
            None => Replacement::Any,
        };
        let lease = self.lease(Family::V6, replacement);
        lease.map(|(lease, _)| self.open_relay_port(id, lease, replacement)).is_some()
    }

    pub(super) fn note_missing(&mut self, id: AllocationId, family: Family) {
        if let Some(opening) = &mut self.allocations[id].cold.opening {
            opening.missing = Some((family, Fault::InsufficientCapacity));
        }
    }

    /// Answers the Allocate once all its ports are open.
    pub(super) fn answer_if_ready(&mut self, now: Now, id: AllocationId) {
        let Some(allocation) = self.allocations.get_mut(id) else { return };
        if !allocation.relay_ports().all(|relay| self.relays[relay].open) {
            return;
        }
        let Some(mut opening) = allocation.cold.opening.take() else { return };
        allocation.renew(self.epoch.moment(now.mono), allocation.cold.lifetime);
        let (client, user) = (allocation.client(), Arc::clone(allocation.user()));
        let token = opening.reserved.as_ref().map(|(token, _)| *token);
        if opening.reserved.take().is_some_and(|reserved| !self.set_aside(now, user, reserved)) {
            self.forget(id);
            return self.answer(client, opening.reply.error(Fault::InsufficientCapacity));
        }
        let Some(allocation) = self.allocations.get(id) else { return };
        let relayed: Vec<_> = allocation
            .relay_ports()
            .map(|relay| self.shared.ports.advertised(self.relays[relay].address()))
            .collect();
        let ticket = self.ticket(id);
        let Some(allocation) = self.allocations.get_mut(id) else { return };
        let bytes = opening.reply.success(|mut builder| {
            if let Some(ticket) = &ticket {
                builder = builder.attribute(attr::MOBILITY_TICKET, ticket);
            }
            if let Some(token) = token {
                builder = builder.attribute(attr::RESERVATION_TOKEN, &token);
            }
            for address in relayed {
                builder = builder.xor_address(attr::XOR_RELAYED_ADDRESS, address);
            }
            if let Some((family, fault)) = opening.missing {
                let [class, number] = fault.class_and_number();
                builder = builder.attribute(attr::ADDRESS_ERROR_CODE, &[family.code(), 0, class, number]);
            }
            builder
                .attribute(attr::LIFETIME, &seconds(allocation.cold.lifetime))
                .xor_address(attr::XOR_MAPPED_ADDRESS, client.client)
        });
        allocation.cold.origin.1 = Some(bytes.as_slice().into());
        if allocation.is_self_test() {
            tracing::debug!(%id, "allocation opened to test the relay");
        } else {
            tracing::info!(user = %Pii(allocation.user()), client = %Pii(client.client), %id, "allocation opened");
        }
        self.counters.allocations += 1;
        self.arm(id);
        self.answer(client, bytes);
    }

    /// Keeps a port for the user's next Allocate; `false` when there are too many.
    fn set_aside(&mut self, now: Now, user: Arc<str>, (token, port): (Token, Reserved)) -> bool {
        let kept = self.shared.reservations.keep(now.mono, token, user, port);
        self.arm_reservations(now);
        kept
    }

    /// Ends an allocation whose only port could not be opened: 508.
    pub(super) fn refuse_for_want_of_ports(&mut self, id: AllocationId) {
        let Some(allocation) = self.allocations.get_mut(id) else { return };
        let client = allocation.client();
        let opening = allocation.cold.opening.take();
        self.forget(id);
        if let Some(opening) = opening {
            self.answer(client, opening.reply.error(Fault::InsufficientCapacity));
        }
    }

    /// Takes quota and port (checks 5, 9 and 10): any port, an even one, an even one and the next, or the one set aside, which is in the
    /// user's quota already.
    fn place(&mut self, now: Now, request: &Request<'_>, family: Family) -> Result<Place, Fault> {
        let asked = |kind| request.attributes.get(kind);
        if let Some(token) = asked(attr::RESERVATION_TOKEN) {
            let reserved = self.shared.reservations.claim(now.mono, token, &request.user);
            let Reserved { lease, ticket } = reserved.ok_or(Fault::InsufficientCapacity)?;
            return Ok(Place { ticket, lease, replacement: Replacement::None, next: None });
        }
        let replacement = match asked(attr::EVEN_PORT) {
            None => Replacement::Any,
            Some(&[flags]) if flags & 0x80 == 0 => Replacement::Even,
            Some(&[_]) => Replacement::Pair,
            Some(_) => return Err(Fault::BadRequest),
        };
        self.local_ips(family).next().ok_or(Fault::UnsupportedFamily)?;
        let ticket = self.ticket_of(request)?;
        let second = (replacement == Replacement::Pair).then(|| self.ticket_of(request)).transpose()?;
        let (lease, odd) = self.lease(family, replacement).ok_or(Fault::InsufficientCapacity)?;
        let reserved = odd.zip(second).map(|(lease, ticket)| Reserved { lease, ticket });
        let next = reserved.map(|reserved| (self.rng.random(), reserved));
        Ok(Place { ticket, lease, replacement, next })
    }

    fn ticket_of(&self, request: &Request<'_>) -> Result<Ticket, Fault> {
        self.shared.quota.take(&request.user).map_err(|limit| match limit {
            Exhausted::User => Fault::QuotaReached,
            Exhausted::Total => Fault::InsufficientCapacity,
        })
    }

    /// Grants what was asked for, between the default and the configured maximum, and no more than the credentials allow.
    pub(super) fn granted(&self, request: &Request<'_>) -> Duration {
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
fn wanted(request: &Request<'_>) -> Result<Wanted, Fault> {
    let asked = |kind| request.attributes.get(kind);
    let (requested, additional) =
        (asked(attr::REQUESTED_ADDRESS_FAMILY), asked(attr::ADDITIONAL_ADDRESS_FAMILY));
    let even = asked(attr::EVEN_PORT);
    if asked(attr::RESERVATION_TOKEN).is_some()
        && (even.is_some() || requested.is_some() || additional.is_some())
    {
        return Err(Fault::BadRequest);
    }
    if additional.is_some() && (requested.is_some() || even.is_some_and(|value| value.first() != Some(&0))) {
        return Err(Fault::BadRequest);
    }
    match (requested, additional) {
        (None, None) => Ok(Wanted { family: Family::V4, both: false }),
        (None, Some(&[2, _, _, _])) => Ok(Wanted { family: Family::V4, both: true }),
        (None, Some(_)) => Err(Fault::BadRequest),
        (Some(&[code, _, _, _]), _) => {
            let family = Family::from_code(code).ok_or(Fault::UnsupportedFamily)?;
            Ok(Wanted { family, both: false })
        }
        (Some(_), _) => Err(Fault::BadRequest),
    }
}
