//! What an [`IceEngine`] prepares before the first answer: permissions for the peer's addresses, and the paths of the first datagrams.

use super::*;

/// Addresses of the peer that relays are made to permit before a check is sent from them.
const MAX_PERMITTED: usize = 8;

impl IceEngine {
    /// Has the relays pass what an address of the peer sends.
    pub(super) fn permit(&mut self, now: Instant, ip: IpAddr) {
        let permitted = &mut self.relays.permitted;
        if permitted.len() < MAX_PERMITTED && !permitted.contains(&ip) {
            permitted.push(ip);
            for relay in &mut self.relays.clients {
                relay.permit(now, ip);
            }
        }
    }

    /// Sends the first datagrams on this pair, beside others of the kind.
    pub(super) fn add_provisional(&mut self, now: Instant, pair: &SelectedPair, datagrams: usize) {
        let ip = pair.remote.address.ip();
        let is_public = candidate::is_global(ip) || ip == self.config.server.ip();
        if self.active.is_some() || !is_public {
            return;
        }
        let Some(outlet) = self.outlet(now, pair) else { return };
        // The request for a permission or a channel goes first.
        for relay in &mut self.relays.clients {
            relay.send_waiting();
        }
        tracing::debug!(local = %pair.local.base, remote = %pair.remote.address, "data may go over this pair");
        self.provisional.push(Arc::new(ProvisionalPath::new(outlet, datagrams)));
        self.tunnel.set_outlet(Some(Outlet::Provisional(self.provisional.clone())));
        self.queues.send(EngineEvent::Provisional);
    }
}
