//! The server's requests to the two sides of a call, and what they need.

use super::call::CallRole;
use super::config::Times;
use super::wire::{IceDescription, MessageType, Request, RequestBody};
use crate::limits::{Exceeded, Limit, NetworkPrefix, Permit, Quota};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a pending request takes besides its bytes, roughly.
const REQUEST_OVERHEAD: usize = 256;

/// Sendings of 51 to a callee that was never shown to be at its address; with both ports that makes three datagrams.
pub(super) const UNPROVEN_COPIES: usize = 2;

/// A request of the server's that waits for its answer (S0-40).
#[derive(Debug)]
pub(super) struct PendingRequest {
    pub(super) t: MessageType,
    pub(super) mid: i64,
    pub(super) to: CallRole,
    /// Empty if it is never sent again.
    pub(super) text: String,
    /// Its share of the memory for outstanding requests.
    pub(super) permit: Option<Permit<NetworkPrefix>>,
    /// The same with all that it leaves out, for a callee that has answered.
    pub(super) whole: Option<String>,
    /// Most sendings, the first one counted.
    pub(super) copies: usize,
    /// The waits after the sendings still to come.
    pub(super) waits: std::vec::IntoIter<Duration>,
    pub(super) due: Option<Instant>,
}

impl PendingRequest {
    pub(super) fn new(t: MessageType, mid: i64, to: CallRole, text: String) -> Self {
        let (permit, whole, due) = (None, None, None);
        Self { t, mid, to, text, permit, whole, copies: usize::MAX, waits: Vec::new().into_iter(), due }
    }
}

/// What a call needs from outside at one event.
pub(super) struct CallContext<'a> {
    pub(super) now: Instant,
    pub(super) times: &'a Times,
    /// Most notices that may wait.
    pub(super) notices: usize,
    /// The memory for outstanding requests.
    pub(super) texts: &'a Arc<Quota<NetworkPrefix>>,
    /// Draws a fresh mid of this call.
    pub(super) mid: &'a mut dyn FnMut() -> i64,
}

impl CallContext<'_> {
    /// Takes memory for a request of `len` bytes that `network` has caused.
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

/// A notice more, or its text, would be over a cap.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooMany;

/// Writes a request that carries `ice`, without what does not fit: the SDP is dropped first, then candidates
/// from the end, then all.
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
