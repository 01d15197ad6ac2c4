//! CreatePermission and ChannelBind: who may talk to whom
//! ([RFC 8656 sections 10 and 12](https://www.rfc-editor.org/rfc/rfc8656#section-10)).

use super::allocation::{Family, PeerRefusal, PeerTransport};
use super::denials::Way;
use super::machine::{AllocationId, Relay};
use super::moment::Moment;
use super::policy::PeerAddr;
use super::reply::Fault;
use super::requests::Request;
use super::tenancy::NoClaim;
use crate::clock::Now;
use crate::stun::attr;
use std::net::SocketAddr;

impl Relay {
    /// Follows [RFC 8656 section 10.2](https://www.rfc-editor.org/rfc/rfc8656#section-10.2): all peers or none.
    pub(super) fn create_permission(&mut self, now: Now, request: &Request<'_>) -> Result<(), Fault> {
        let id = self.owned(now, request)?;
        let at = self.epoch.moment(now.mono);
        let named: Result<Vec<_>, _> = request.attributes.xor_addresses(attr::XOR_PEER_ADDRESS).collect();
        let named = named.map_err(|_| Fault::BadRequest)?;
        if named.is_empty() {
            return Err(Fault::BadRequest);
        }
        let peers: Result<Vec<_>, Fault> =
            named.into_iter().map(|peer| self.admit(at, id, Way::Permission, peer)).collect();
        let peers = peers?;
        self.make_room(at, id, &peers)?;
        for peer in peers {
            self.permit(at, id, peer);
        }
        let bytes = request.reply.success(|builder| builder);
        self.answer(request.client, bytes);
        Ok(())
    }

    /// Follows [RFC 8656 section 12.2](https://www.rfc-editor.org/rfc/rfc8656#section-12.2).
    pub(super) fn channel_bind(&mut self, now: Now, request: &Request<'_>) -> Result<(), Fault> {
        let id = self.owned(now, request)?;
        if self.allocations[id].cold.peer_transport == PeerTransport::Tcp {
            return Err(Fault::BadRequest);
        }
        let Some(&[high, low, _, _]) = request.attributes.get(attr::CHANNEL_NUMBER) else {
            return Err(Fault::BadRequest);
        };
        let number = u16::from_be_bytes([high, low]);
        let peer =
            request.attributes.xor_address(attr::XOR_PEER_ADDRESS).ok().flatten().ok_or(Fault::BadRequest)?;
        let at = self.epoch.moment(now.mono);
        let peer = self.admit(at, id, Way::Channel, peer)?;
        if peer.port() == 0 {
            return Err(Fault::BadRequest);
        }
        let most = self.shared.limits.permissions;
        self.allocations[id].may_bind(at, number, peer, most).map_err(|refusal| match refusal {
            PeerRefusal::Conflict => Fault::BadRequest,
            PeerRefusal::Full => Fault::InsufficientCapacity,
        })?;
        self.make_room(at, id, &[peer])?;
        self.claim(at, id, peer).map_err(|refusal| match refusal {
            NoClaim::Family => Fault::PeerFamilyMismatch,
            NoClaim::TooMany | NoClaim::NoPort => Fault::InsufficientCapacity,
        })?;
        self.allocations[id].bind(at, number, peer);
        self.permit(at, id, peer);
        let bytes = request.reply.success(|builder| builder);
        self.answer(request.client, bytes);
        Ok(())
    }

    fn permit(&mut self, now: Moment, id: AllocationId, peer: PeerAddr) {
        let allocation = &mut self.allocations[id];
        let is_new = allocation.permit(now, peer);
        if let Some(home) = allocation.home(Family::of(peer.ip())).filter(|_| is_new) {
            self.enter_permit(id, home, peer);
        }
    }

    fn make_room(&mut self, now: Moment, id: AllocationId, peers: &[PeerAddr]) -> Result<(), Fault> {
        let most = self.shared.limits.permissions;
        if self.allocations[id].cold.permissions.len_with(peers) > most {
            for peer in self.allocations[id].cold.permissions.forget_expired(now) {
                if let Some(home) = self.allocations[id].home(Family::of(peer.ip())) {
                    self.strike_permit(id, home, peer);
                }
            }
        }
        if self.allocations[id].cold.permissions.len_with(peers) > most {
            return Err(Fault::InsufficientCapacity);
        }
        Ok(())
    }

    /// Returns the peer as it is seen on the wire, if the policy lets it be reached and this allocation can reach it.
    pub(super) fn admit(
        &mut self,
        now: Moment,
        id: AllocationId,
        way: Way,
        peer: SocketAddr,
    ) -> Result<PeerAddr, Fault> {
        let peer = self.peer_named(peer);
        if let Err(denied) = self.shared.policy.check(peer) {
            self.denials.note(now, way, peer, denied);
            return Err(Fault::Forbidden);
        }
        if !self.reaches(id, Family::of(peer.ip())) {
            return Err(Fault::PeerFamilyMismatch);
        }
        Ok(peer)
    }
}
