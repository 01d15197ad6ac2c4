//! One connection to the gateway: the state machine behind a lock, and the wakers of waiting tasks.

use super::error::{ConnectionError, ProtocolError, ReceiveError, SendError};
use super::machine::{DialKey, EndReason, Mux, MuxEvent, OutgoingFrame, ReceiveOutcome, SendOutcome};
use crate::gateway::wire::ConnId;
use bytes::{Bytes, BytesMut};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio::sync::{Notify, oneshot, watch};

/// The wakers of one virtual connection's receiver and sender.
#[derive(Debug, Default)]
struct Wakers {
    receiver: Option<Waker>,
    sender: Option<Waker>,
}

#[derive(Debug)]
struct LockedState {
    mux: Mux,
    wakers: HashMap<ConnId, Wakers>,
    dials: HashMap<DialKey, oneshot::Sender<Option<ConnId>>>,
    error: Option<ConnectionError>,
    finishing: bool,
}

/// One connection to the gateway.
#[derive(Debug)]
pub(super) struct GatewayConnection {
    state: Mutex<LockedState>,
    transmit: Notify,
    arrived: Notify,
    resume: Notify,
    ready: watch::Sender<bool>,
    /// Counts reads.
    received_count: AtomicU64,
    /// The local address, where it is known.
    pub(super) local: Option<SocketAddr>,
}

impl GatewayConnection {
    pub(super) fn new(mux: Mux, local: Option<SocketAddr>) -> Self {
        Self {
            state: Mutex::new(LockedState {
                mux,
                wakers: HashMap::new(),
                dials: HashMap::new(),
                error: None,
                finishing: false,
            }),
            transmit: Notify::new(),
            arrived: Notify::new(),
            resume: Notify::new(),
            ready: watch::Sender::new(false),
            received_count: AtomicU64::new(0),
            local,
        }
    }

    fn lock(&self) -> MutexGuard<'_, LockedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes the tasks that wait for its events.
    fn with<T>(&self, change: impl FnOnce(&mut LockedState) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        while let Some(event) = state.mux.poll_event() {
            match event {
                MuxEvent::Ready => drop(self.ready.send_replace(true)),
                MuxEvent::Transmit => self.transmit.notify_one(),
                MuxEvent::Incoming => self.arrived.notify_one(),
                MuxEvent::Resume => self.resume.notify_one(),
                MuxEvent::Readable(conn) => {
                    wake(state.wakers.get_mut(&conn).map(|wakers| &mut wakers.receiver))
                }
                MuxEvent::Writable(conn) => {
                    wake(state.wakers.get_mut(&conn).map(|wakers| &mut wakers.sender))
                }
                MuxEvent::DialDone(key, conn) => state.dialled(key, conn),
            }
        }
        result
    }

    /// Resolves when the gateway has answered for the first time.
    pub(super) async fn ready(&self) {
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// Resolves when there is something to send, or the connection is closing.
    pub(super) async fn wait_to_transmit(&self) {
        self.transmit.notified().await;
    }

    /// Resolves when the blocked message may have been delivered.
    pub(super) async fn wait_to_resume(&self) {
        self.resume.notified().await;
    }

    /// Handles received bytes; returns whether a message is blocked.
    pub(super) fn handle_bytes(&self, bytes: &mut BytesMut) -> Result<bool, ProtocolError> {
        self.received_count.fetch_add(1, Ordering::Relaxed);
        self.with(|state| state.mux.handle_bytes(bytes).map(|()| state.mux.blocked().is_some()))
    }

    /// Handles a WebSocket message; returns whether it is blocked.
    pub(super) fn handle_frame(&self, frame: Bytes) -> Result<bool, ProtocolError> {
        self.received_count.fetch_add(1, Ordering::Relaxed);
        self.with(|state| state.mux.handle_frame(frame).map(|()| state.mux.blocked().is_some()))
    }

    /// Returns whether a message is blocked.
    pub(super) fn is_blocked(&self) -> bool {
        self.lock().mux.blocked().is_some()
    }

    pub(super) fn close_blocked(&self) {
        self.with(|state| state.mux.close_blocked());
    }

    /// Returns the number of reads.
    pub(super) fn received_count(&self) -> u64 {
        self.received_count.load(Ordering::Relaxed)
    }

    pub(super) fn probe(&self) {
        self.with(|state| state.mux.probe());
    }

    /// Takes the next frames to send; returns whether more may follow.
    pub(super) fn poll_transmit(&self, batch: &mut Vec<OutgoingFrame>) -> bool {
        self.with(|state| {
            state.mux.poll_transmit(batch);
            !state.finishing
        })
    }

    /// Stops accepting incoming virtual connections.
    pub(super) fn stop_accepting(&self) {
        self.with(|state| state.mux.stop_accepting());
    }

    /// Closes all virtual connections; nothing is sent after their Close.
    pub(super) fn finish(&self) {
        self.with(|state| {
            state.mux.close_all();
            state.finishing = true;
        });
        self.fail(ConnectionError::LocallyClosed);
        self.transmit.notify_one();
    }

    /// Ends everything that uses this connection.
    pub(super) fn fail(&self, error: ConnectionError) {
        let mut state = self.lock();
        state.error.get_or_insert(error);
        state.dials.clear();
        for wakers in state.wakers.values_mut() {
            wake(Some(&mut wakers.receiver));
            wake(Some(&mut wakers.sender));
        }
    }

    pub(super) fn error(&self) -> Option<ConnectionError> {
        self.lock().error.clone()
    }

    /// Waits for an incoming virtual connection; returns its id and its remote end. Does not resolve on a failed connection.
    pub(super) async fn accept(&self) -> (ConnId, u32) {
        loop {
            if let Some(arrived) = self.take_arrived() {
                return arrived;
            }
            self.arrived.notified().await;
        }
    }

    fn take_arrived(&self) -> Option<(ConnId, u32)> {
        let mut state = self.lock();
        if state.error.is_some() {
            return None;
        }
        let arrived = state.mux.accept()?;
        state.wakers.insert(arrived.0, Wakers::default());
        Some(arrived)
    }

    /// Dials; `None` where the gateway refuses. Dropping the future cancels the dial.
    pub(super) async fn dial(&self, remote: u32) -> Result<Option<ConnId>, ConnectionError> {
        let (result, answer) = oneshot::channel();
        let key = self.with(|state| match &state.error {
            Some(error) => Err(error.clone()),
            None => {
                let key = state.mux.dial(remote);
                state.dials.insert(key, result);
                Ok(key)
            }
        })?;
        let mut dial = Dial { connection: self, key, answer };
        match (&mut dial.answer).await {
            Ok(conn) => Ok(conn),
            Err(_) => Err(self.error().unwrap_or(ConnectionError::Closed)),
        }
    }

    /// Releases a virtual connection.
    pub(super) fn close(&self, conn: ConnId) {
        self.with(|state| {
            state.wakers.remove(&conn);
            state.mux.close(conn);
        });
    }

    /// Returns the bytes that a message may have.
    pub(super) fn max_message(&self) -> usize {
        self.lock().mux.max_message()
    }

    /// Takes the next message of a virtual connection; `None` after its close.
    pub(super) fn poll_receive(
        &self,
        conn: ConnId,
        cx: &Context<'_>,
    ) -> Poll<Result<Option<Bytes>, ReceiveError>> {
        self.with(|state| match (state.mux.take(conn), &state.error) {
            (ReceiveOutcome::Message(message), _) => Poll::Ready(Ok(Some(message))),
            (ReceiveOutcome::Closed(EndReason::Overflow), _) => Poll::Ready(Err(ReceiveError::Overflow)),
            (ReceiveOutcome::Closed(EndReason::Closed), None) => Poll::Ready(Ok(None)),
            (_, Some(error)) => Poll::Ready(Err(error.clone().into())),
            (ReceiveOutcome::Pending, None) => {
                set_waker(state.wakers.get_mut(&conn).map(|wakers| &mut wakers.receiver), cx);
                Poll::Pending
            }
        })
    }

    /// Sends a message of `len` bytes, which is created only when there is space for it.
    pub(super) fn poll_send(
        &self,
        conn: ConnId,
        cx: &Context<'_>,
        len: usize,
        message: impl FnOnce() -> Bytes,
    ) -> Poll<Result<(), SendError>> {
        self.with(|state| {
            if let Some(error) = &state.error {
                return Poll::Ready(Err(error.clone().into()));
            }
            match state.mux.offer(conn, len, message) {
                SendOutcome::Queued => Poll::Ready(Ok(())),
                SendOutcome::Closed => Poll::Ready(Err(SendError::Closed)),
                SendOutcome::TooLong => {
                    Poll::Ready(Err(SendError::TooLong { len, max: state.mux.max_message() }))
                }
                SendOutcome::Full => {
                    set_waker(state.wakers.get_mut(&conn).map(|wakers| &mut wakers.sender), cx);
                    Poll::Pending
                }
            }
        })
    }
}

impl LockedState {
    fn dialled(&mut self, key: DialKey, conn: Option<ConnId>) {
        if let Some(conn) = conn {
            self.wakers.insert(conn, Wakers::default());
        }
        // A missing sender means that the dial was cancelled.
        if let Some(result) = self.dials.remove(&key) {
            let _ = result.send(conn);
        }
    }
}

/// Stores the task's waker.
fn set_waker(slot: Option<&mut Option<Waker>>, cx: &Context<'_>) {
    match slot {
        Some(Some(waker)) => waker.clone_from(cx.waker()),
        Some(empty) => *empty = Some(cx.waker().clone()),
        None => {}
    }
}

fn wake(slot: Option<&mut Option<Waker>>) {
    if let Some(waker) = slot.and_then(Option::take) {
        waker.wake();
    }
}

/// A dial in progress.
struct Dial<'a> {
    connection: &'a GatewayConnection,
    key: DialKey,
    answer: oneshot::Receiver<Option<ConnId>>,
}

impl Drop for Dial<'_> {
    fn drop(&mut self) {
        let unanswered = self.connection.with(|state| {
            let unanswered = state.dials.remove(&self.key).is_some();
            if unanswered {
                state.mux.cancel_dial(self.key);
            }
            unanswered
        });
        // An answer that was not received has created an unused virtual connection.
        if !unanswered && let Ok(Some(conn)) = self.answer.try_recv() {
            self.connection.close(conn);
        }
    }
}
