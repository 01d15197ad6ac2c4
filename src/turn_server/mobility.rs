//! Mobility: a client whose address has changed keeps its allocation
//! ([RFC 8016](https://www.rfc-editor.org/rfc/rfc8016)).
//!
//! A ticket is encrypted and contains everything that identifies the allocation, so nothing is stored for it: the worker, the allocation, the ticket's
//! number and the user. An allocation accepts its newest ticket. It accepts the one before only from its current 5-tuple, for a
//! response that was lost.

use super::FiveTuple;
use super::allocation::PeerTransport;
use super::machine::{AllocationId, Relay};
use super::output::Output;
use super::requests::Request;
use super::response::StunErrorCode;
use crate::clock::Now;
use crate::ids::Pii;
use crate::stun::attr;
use rand::{Rng, RngCore};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest;

/// Bytes of a ticket's plaintext.
const PLAIN: usize = 2 + 4 + 4 + 8 + 8;

/// Encrypts and decrypts tickets.
#[derive(Debug)]
pub(crate) struct MobilityTickets(Option<LessSafeKey>);

/// A ticket's plaintext.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct MobilityTicket {
    worker: u16,
    allocation: u32,
    /// Random number of the allocation, since allocation ids are reused.
    birth: u64,
    /// The number of earlier tickets.
    number: u32,
    /// The first bytes of the user name's digest.
    user: u64,
}

/// The mobility state of one allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mobility {
    birth: u64,
    /// The number of the newest ticket.
    number: u32,
}

impl MobilityTickets {
    /// Creates it with a key, which all servers that a client may move between share.
    #[must_use]
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        // ring refuses only keys of another length; without a key there are no tickets.
        Self(UnboundKey::new(&CHACHA20_POLY1305, key).ok().map(LessSafeKey::new))
    }

    fn seal(&self, ticket: MobilityTicket, rng: &mut impl RngCore) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        rng.fill_bytes(&mut nonce);
        let mut body = Vec::with_capacity(PLAIN + CHACHA20_POLY1305.tag_len());
        body.extend_from_slice(&ticket.worker.to_be_bytes());
        body.extend_from_slice(&ticket.allocation.to_be_bytes());
        body.extend_from_slice(&ticket.number.to_be_bytes());
        body.extend_from_slice(&ticket.birth.to_be_bytes());
        body.extend_from_slice(&ticket.user.to_be_bytes());
        let sealed = Nonce::assume_unique_for_key(nonce);
        self.0.as_ref()?.seal_in_place_append_tag(sealed, Aad::empty(), &mut body).ok()?;
        Some([&nonce[..], &body].concat())
    }

    fn open(&self, sealed: &[u8]) -> Option<MobilityTicket> {
        let (nonce, body) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut body = body.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plain = self.0.as_ref()?.open_in_place(nonce, Aad::empty(), &mut body).ok()?;
        let plain: &[u8; PLAIN] = (&*plain).try_into().ok()?;
        let [a, b, c, d, e, f, g, h, i, j, rest @ ..] = *plain;
        let (birth, user) = rest.split_at(8);
        Some(MobilityTicket {
            worker: u16::from_be_bytes([a, b]),
            allocation: u32::from_be_bytes([c, d, e, f]),
            number: u32::from_be_bytes([g, h, i, j]),
            birth: u64::from_be_bytes(birth.try_into().ok()?),
            user: u64::from_be_bytes(user.try_into().ok()?),
        })
    }
}

fn digest_of(user: &str) -> u64 {
    let digest = digest::digest(&digest::SHA256, user.as_bytes());
    digest.as_ref().iter().take(8).fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
}

impl Relay {
    /// Checks an Allocate's MOBILITY-TICKET: it must be empty, and mobility must be allowed (405).
    pub(super) fn requested_mobility(
        &mut self,
        request: &Request<'_>,
    ) -> Result<Option<Mobility>, StunErrorCode> {
        match request.attributes.get(attr::MOBILITY_TICKET) {
            None => Ok(None),
            Some(_) if !self.shared.features.mobility => Err(StunErrorCode::MobilityForbidden),
            Some([]) => Ok(Some(Mobility { birth: self.rng.random(), number: 0 })),
            Some(_) => Err(StunErrorCode::BadRequest),
        }
    }

    /// Makes the newest ticket of an allocation that has mobility.
    pub(super) fn mobility_ticket(&mut self, id: AllocationId) -> Option<Vec<u8>> {
        let allocation = self.allocations.get(id)?;
        let Mobility { birth, number } = allocation.control.mobility?;
        let ticket = MobilityTicket {
            worker: self.shared.worker,
            allocation: u32::try_from(id).ok()?,
            birth,
            number,
            user: digest_of(allocation.user()),
        };
        self.shared.tickets.seal(ticket, &mut self.rng)
    }

    /// Moves the allocation that a Refresh's ticket names to the request's 5-tuple, and returns it. `None` when another worker has
    /// it: the request is forwarded there.
    pub(super) fn resume_allocation(
        &mut self,
        now: Now,
        request: &Request<'_>,
        sealed: &[u8],
    ) -> Result<Option<AllocationId>, StunErrorCode> {
        if !self.shared.features.mobility {
            return Err(StunErrorCode::MobilityForbidden);
        }
        let ticket = self.shared.tickets.open(sealed).ok_or(StunErrorCode::BadRequest)?;
        if ticket.user != digest_of(&request.user) {
            return Err(StunErrorCode::WrongCredentials);
        }
        if ticket.worker != self.shared.worker {
            // The other worker does not know that this one has an allocation on the 5-tuple.
            if self.allocation_of(request.client).is_some() {
                return Err(StunErrorCode::AllocationMismatch);
            }
            self.outputs.push_back(Output::ForwardRequest {
                client: request.client,
                worker: ticket.worker,
                bytes: request.bytes.to_vec(),
            });
            return Ok(None);
        }
        let id = ticket.allocation as usize;
        let allocation = self.allocations.get_mut(id).ok_or(StunErrorCode::AllocationMismatch)?;
        let Some(mobility) = allocation.control.mobility.filter(|mobility| mobility.birth == ticket.birth)
        else {
            return Err(StunErrorCode::AllocationMismatch);
        };
        if !allocation.is_live(self.tick_base.ticks(now.mono)) {
            return Err(StunErrorCode::AllocationMismatch);
        }
        if *allocation.user() != request.user {
            return Err(StunErrorCode::WrongCredentials);
        }
        let is_here = allocation.client() == request.client;
        let newest = ticket.number == mobility.number;
        let previous = ticket.number.checked_add(1) == Some(mobility.number);
        match (newest, previous && is_here) {
            (false, false) => Err(StunErrorCode::BadRequest),
            (false, true) => Ok(Some(id)),
            (true, _) => self.move_client(id, request.client).map(Some),
        }
    }

    fn move_client(&mut self, id: AllocationId, client: FiveTuple) -> Result<AllocationId, StunErrorCode> {
        if self.allocation_of(client).is_some_and(|other| other != id) {
            return Err(StunErrorCode::AllocationMismatch);
        }
        let allocation = &mut self.allocations[id];
        if allocation.control.peer_transport == PeerTransport::Tcp && !client.transport.is_tcp() {
            return Err(StunErrorCode::BadRequest);
        }
        let before = allocation.client();
        allocation.set_client(client);
        if let Some(mobility) = &mut allocation.control.mobility {
            mobility.number = mobility.number.wrapping_add(1);
        }
        tracing::info!(user = %Pii(allocation.user()), client = %Pii(client.client), %id, "allocation moved");
        if before != client {
            self.remove_client(before, id);
            self.insert_client(client, id);
            self.outputs.push_back(Output::ClientLeft { client: before });
        }
        Ok(id)
    }
}
