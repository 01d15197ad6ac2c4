//! ChannelBind: [RFC 8656 section 12.2](https://www.rfc-editor.org/rfc/rfc8656#section-12.2).

use super::allocation::{BindError, PeerTransport};
use super::create_permission::permission_limit_reached;
use super::denial_counters::PeerOperation;
use super::machine::Relay;
use super::peers::AddPeerError;
use super::requests::Request;
use super::response::StunErrorCode;
use crate::clock::Now;
use crate::stun::attr;

impl Relay {
    pub(super) fn handle_channel_bind(
        &mut self,
        now: Now,
        request: &Request<'_>,
    ) -> Result<(), StunErrorCode> {
        let id = self.owned_allocation(now, request)?;
        if self.allocations[id].control.peer_transport == PeerTransport::Tcp {
            return Err(StunErrorCode::BadRequest);
        }
        // CHANNEL-NUMBER and XOR-PEER-ADDRESS must be present and valid (400).
        let Some(&[high, low, _, _]) = request.attributes.get(attr::CHANNEL_NUMBER) else {
            return Err(StunErrorCode::BadRequest);
        };
        let number = u16::from_be_bytes([high, low]);
        let peer = request.attributes.xor_address(attr::XOR_PEER_ADDRESS).ok().flatten();
        let peer = peer.ok_or(StunErrorCode::BadRequest)?;
        // The policy must allow the peer (403), and its family needs a relayed address (443).
        let ticks = self.tick_base.ticks(now.mono);
        let peer = self.authorize_peer(ticks, id, PeerOperation::ChannelBind, peer)?;
        if peer.port() == 0 {
            return Err(StunErrorCode::BadRequest);
        }
        // The number must be in range, and neither it nor the peer bound to another (400).
        let max = self.shared.limits.permissions;
        self.allocations[id].check_channel(ticks, number, peer, max).map_err(|error| match error {
            BindError::Conflict => StunErrorCode::BadRequest,
            BindError::Full => permission_limit_reached(max),
        })?;
        // There must be capacity for the permission and the peer (508).
        self.reserve_permissions(ticks, id, &[peer])?;
        self.add_peer(ticks, id, peer).map_err(|error| match error {
            AddPeerError::Family => StunErrorCode::PeerFamilyMismatch,
            AddPeerError::TooMany => StunErrorCode::InsufficientCapacity,
        })?;
        // A ChannelBind installs or refreshes both the channel and the permission.
        self.allocations[id].bind_channel(ticks, number, peer);
        self.allocations[id].permit(ticks, peer);
        if let Some(events) = &self.shared.event_handler {
            events.on_permission(&request.client, &request.user, peer.ip());
            events.on_channel(&request.client, &request.user, number, peer.socket_addr());
        }
        let bytes = request.responder.success(|builder| builder);
        self.respond(request.client, bytes);
        Ok(())
    }
}
