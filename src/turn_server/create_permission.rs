//! CreatePermission: [RFC 8656 section 10.2](https://www.rfc-editor.org/rfc/rfc8656#section-10.2).

use super::denial_counters::PeerOperation;
use super::machine::{AllocationId, Relay};
use super::policy::PeerAddr;
use super::requests::Request;
use super::response::StunErrorCode;
use crate::clock::Now;
use crate::clock::Ticks;
use crate::limits::Limit;
use crate::stun::attr;

impl Relay {
    pub(super) fn handle_create_permission(
        &mut self,
        now: Now,
        request: &Request<'_>,
    ) -> Result<(), StunErrorCode> {
        let id = self.owned_allocation(now, request)?;
        let ticks = self.tick_base.ticks(now.mono);
        // XOR-PEER-ADDRESS must be present at least once, and each of them valid (400).
        let peers: Result<Vec<_>, _> = request.attributes.xor_addresses(attr::XOR_PEER_ADDRESS).collect();
        let peers = peers.map_err(|_| StunErrorCode::BadRequest)?;
        if peers.is_empty() {
            return Err(StunErrorCode::BadRequest);
        }
        // The policy must allow each peer (403), and its family needs a relayed address (443).
        let peers: Result<Vec<_>, StunErrorCode> = peers
            .into_iter()
            .map(|peer| self.authorize_peer(ticks, id, PeerOperation::CreatePermission, peer))
            .collect();
        let peers = peers?;
        // All permissions are installed or none (508).
        self.reserve_permissions(ticks, id, &peers)?;
        for peer in peers {
            self.allocations[id].permit(ticks, peer);
            if let Some(events) = &self.shared.event_handler {
                events.on_permission(&request.client, &request.user, peer.ip());
            }
        }
        let bytes = request.responder.success(|builder| builder);
        self.respond(request.client, bytes);
        Ok(())
    }

    /// Checks that the allocation may have permissions for `peers` too; expired ones are removed if it has too many.
    pub(super) fn reserve_permissions(
        &mut self,
        now: Ticks,
        id: AllocationId,
        peers: &[PeerAddr],
    ) -> Result<(), StunErrorCode> {
        let max = self.shared.limits.permissions;
        let permissions = &mut self.allocations[id].control.permissions;
        if permissions.len_with(peers) > max {
            permissions.remove_expired(now);
        }
        if permissions.len_with(peers) > max { Err(permission_limit_reached(max)) } else { Ok(()) }
    }
}

/// Counts that an allocation has reached its limit of permissions or channels.
pub(super) fn permission_limit_reached(max: usize) -> StunErrorCode {
    Limit::PermissionsPerAllocation.reached(max);
    StunErrorCode::InsufficientCapacity
}
