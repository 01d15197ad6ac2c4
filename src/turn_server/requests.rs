//! Requests: authentication, dispatch by method, and error responses.

use super::FiveTuple;
use super::auth::{AllocationOwner, Authenticated};
use super::forward::DropReason;
use super::machine::{AllocationId, Relay};
use super::response::{Responder, StunErrorCode};
use crate::clock::Now;
use crate::stun::{Attributes, Message, Method, attr};
use std::sync::Arc;
use std::time::Duration;

/// Comprehension-required attributes understood in requests.
const KNOWN_IN_REQUESTS: [u16; 16] = [
    attr::CONNECTION_ID,
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

/// An authenticated request and how to respond to it.
pub(super) struct Request<'a> {
    pub(super) client: FiveTuple,
    pub(super) user: Arc<str>,
    pub(super) owner: AllocationOwner,
    /// The longest lifetime that the credentials allow.
    pub(super) lifetime_cap: Option<Duration>,
    pub(super) attributes: Attributes<'a>,
    /// The whole message.
    pub(super) bytes: &'a [u8],
    pub(super) responder: Responder,
}

impl Relay {
    /// Handles a request; the response, if there is one, is an output.
    ///
    /// # Errors
    /// [`DropReason::UnexpectedMessage`] for a method that is not TURN's.
    pub(super) fn handle_request(
        &mut self,
        now: Now,
        client: FiveTuple,
        message: &Message<'_>,
    ) -> Result<(), DropReason> {
        let handler = match message.method() {
            Method::ALLOCATE => Self::handle_allocate,
            Method::REFRESH => Self::handle_refresh,
            Method::CREATE_PERMISSION => Self::handle_create_permission,
            Method::CHANNEL_BIND => Self::handle_channel_bind,
            Method::CONNECT => Self::handle_connect,
            Method::CONNECTION_BIND => Self::handle_connection_bind,
            _ => return Err(DropReason::UnexpectedMessage),
        };
        // RFC 8656 section 5: first the long-term credentials, then unknown attributes, then the method's own rules.
        let Some(authenticated) = self.authenticate(now, client, message) else { return Ok(()) };
        let (owner, lifetime_cap) = (authenticated.owner(), authenticated.lifetime_cap);
        let Authenticated { user, key, attributes, .. } = authenticated;
        let responder = Responder::to(message).signed(key);
        let unknown = attributes.unknown(&KNOWN_IN_REQUESTS);
        if !unknown.is_empty() {
            tracing::debug!(?unknown, "unknown attributes");
            self.respond(client, responder.unknown_attributes(&unknown));
            return Ok(());
        }
        let request =
            Request { client, user, owner, lifetime_cap, attributes, bytes: message.as_bytes(), responder };
        if let Err(error) = handler(self, now, &request) {
            tracing::debug!(method = ?message.method(), ?error, "request refused");
            self.respond(client, request.responder.error(error));
        }
        Ok(())
    }

    /// Returns the client's allocation if it has not expired and the same user created it.
    pub(super) fn owned_allocation(
        &self,
        now: Now,
        request: &Request<'_>,
    ) -> Result<AllocationId, StunErrorCode> {
        let id = self.allocation_of(request.client).ok_or(StunErrorCode::AllocationMismatch)?;
        let allocation = &self.allocations[id];
        if !allocation.is_live(self.tick_base.ticks(now.mono)) {
            return Err(StunErrorCode::AllocationMismatch);
        }
        if *allocation.user() != request.user {
            return Err(StunErrorCode::WrongCredentials);
        }
        Ok(id)
    }
}

/// Returns the value of LIFETIME.
pub(super) fn lifetime_value(lifetime: Duration) -> [u8; 4] {
    u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX).to_be_bytes()
}
