//! The server's requests to the two sides of a call, and the context of a call's events.

use super::call::CallRole;
use super::config::Times;
use super::wire::{IceDescription, MessageType, Request, RequestBody};
use crate::limits::{Exceeded, Limit, NetworkPrefix, Permit, Quota};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Approximate size of a pending request besides its text.
const REQUEST_OVERHEAD: usize = 256;

/// Transmissions of 51 to a callee whose address is not proven; with both ports three datagrams.
pub(super) const UNPROVEN_COPIES: usize = 2;

/// A request of the server that waits for its answer (S0-40).
#[derive(Debug)]
pub(super) struct PendingRequest {
    pub(super) t: MessageType,
    pub(super) mid: i64,
    pub(super) to: CallRole,
    /// Empty if it is not retransmitted.
    pub(super) text: String,
    /// Its share of the memory for pending requests.
    pub(super) permit: Option<Permit<NetworkPrefix>>,
    /// The same request with all fields, sent once the callee has answered.
    pub(super) whole: Option<String>,
    /// Maximum number of transmissions, including the first.
    pub(super) copies: usize,
    /// The waits after the remaining transmissions.
    pub(super) waits: std::vec::IntoIter<Duration>,
    pub(super) due: Option<Instant>,
}

impl PendingRequest {
    pub(super) fn new(t: MessageType, mid: i64, to: CallRole, text: String) -> Self {
        let (permit, whole, due) = (None, None, None);
        Self { t, mid, to, text, permit, whole, copies: usize::MAX, waits: Vec::new().into_iter(), due }
    }
}

/// The context of one event of a call.
pub(super) struct CallContext<'a> {
    pub(super) now: Instant,
    pub(super) times: &'a Times,
    /// Maximum number of pending requests.
    pub(super) notices: usize,
    /// The memory for pending requests.
    pub(super) texts: &'a Arc<Quota<NetworkPrefix>>,
    /// Creates a new `mid` of this call.
    pub(super) mid: &'a mut dyn FnMut() -> i64,
}

impl CallContext<'_> {
    /// Reserves memory for a request of `len` bytes, charged to `network`.
    pub(super) fn take_bytes(
        &self,
        network: NetworkPrefix,
        len: usize,
    ) -> Result<Permit<NetworkPrefix>, TooMany> {
        self.texts.acquire(network, len + REQUEST_OVERHEAD).map_err(|_| {
            Limit::SignalingCallBytes.reached(self.texts.max(Exceeded::Total));
            TooMany
        })
    }
}

/// A limit of pending requests or of their memory is reached.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooMany;

/// Encodes a request with `ice` in at most `max_len` bytes: the SDP is left out first, then candidates from the end, then all of it.
pub(super) fn fitting(
    mid: i64,
    mut ice: IceDescription,
    max_len: usize,
    ask: &impl Fn(IceDescription) -> RequestBody,
) -> String {
    loop {
        let text = Request { mid: Some(mid), body: ask(ice.clone()) }.encode();
        if text.len() <= max_len || ice == IceDescription::default() {
            return text;
        }
        if ice.sdp.take().is_none() && ice.cands.pop().is_none() {
            ice = IceDescription::default();
        }
    }
}
