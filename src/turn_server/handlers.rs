//! What an embedder may implement: authentication, permission, quota and events. All handlers are called for requests only, never for a
//! relayed packet, and must not block.

use super::FiveTuple;
use super::auth::UserKeys;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// Supplies keys of users that the configuration does not have
/// ([`AuthenticatorConfig::handler`](super::AuthenticatorConfig::handler)).
pub trait AuthHandler: fmt::Debug + Send + Sync {
    /// Returns the keys of a user name in a realm, or `None` to refuse the request (401).
    fn user_keys(&self, user: &str, realm: &str, client: &FiveTuple) -> Option<UserKeys>;
}

/// Decides about peers that the policy allows.
pub trait PermissionHandler: fmt::Debug + Send + Sync {
    /// Returns whether the client may reach the peer; `false` refuses the CreatePermission, ChannelBind or Connect request (403).
    /// The port of `peer` counts only for channels and connections: a permission is for all ports of an address.
    fn permits(&self, client: &FiveTuple, user: &str, peer: SocketAddr) -> bool;
}

/// Decides about allocations besides the configured quota.
pub trait QuotaHandler: fmt::Debug + Send + Sync {
    /// Returns whether the user may have another allocation; `false` refuses the Allocate request (486).
    fn admits(&self, client: &FiveTuple, user: &str) -> bool;
}

/// Receives events of a relay. Each method does nothing by default.
pub trait EventHandler: fmt::Debug + Send + Sync {
    /// A request was refused for its credentials (401, 438). Every client's first request is.
    fn on_unauthorized(&self, client: &FiveTuple) {
        let _ = client;
    }

    /// An allocation was created; `relayed` are its relayed addresses as clients see them.
    fn on_allocation_created(&self, client: &FiveTuple, user: &str, relayed: &[SocketAddr]) {
        let _ = (client, user, relayed);
    }

    /// An allocation has ended.
    fn on_allocation_ended(&self, client: &FiveTuple, user: &str, reason: &str) {
        let _ = (client, user, reason);
    }

    /// A permission was installed or refreshed.
    fn on_permission(&self, client: &FiveTuple, user: &str, peer: IpAddr) {
        let _ = (client, user, peer);
    }

    /// A channel was bound or refreshed.
    fn on_channel(&self, client: &FiveTuple, user: &str, number: u16, peer: SocketAddr) {
        let _ = (client, user, number, peer);
    }
}
