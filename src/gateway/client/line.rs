//! One connection to the gateway as its users see it: the machine behind a lock, and who sleeps until it has news.

use super::error::{Fault, Loss, ReceiveError, SendError};
use super::machine::{DialKey, End, Event, Mux, Offered, Outgoing, Taken};
use crate::gateway::wire::ConnId;
use bytes::{Bytes, BytesMut};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio::sync::{Notify, oneshot, watch};

/// Who waits for one virtual connection: its one receiver and its one sender.
#[derive(Debug, Default)]
struct Sleepers {
    receiver: Option<Waker>,
    sender: Option<Waker>,
}

#[derive(Debug)]
struct State {
    mux: Mux,
    sleepers: HashMap<ConnId, Sleepers>,
    dials: HashMap<DialKey, oneshot::Sender<Option<ConnId>>>,
    lost: Option<Loss>,
    finishing: bool,
}

/// One connection to the gateway.
#[derive(Debug)]
pub(super) struct Line {
    state: Mutex<State>,
    transmit: Notify,
    arrived: Notify,
    resume: Notify,
    ready: watch::Sender<bool>,
    /// How often something has come.
    heard: AtomicU64,
    /// This side's address, where that is known.
    pub(super) local: Option<SocketAddr>,
}

impl Line {
    pub(super) fn new(mux: Mux, local: Option<SocketAddr>) -> Self {
        Self {
            state: Mutex::new(State {
                mux,
                sleepers: HashMap::new(),
                dials: HashMap::new(),
                lost: None,
                finishing: false,
            }),
            transmit: Notify::new(),
            arrived: Notify::new(),
            resume: Notify::new(),
            ready: watch::Sender::new(false),
            heard: AtomicU64::new(0),
            local,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and tells everybody what came of it.
    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        while let Some(event) = state.mux.poll_event() {
            match event {
                Event::Ready => drop(self.ready.send_replace(true)),
                Event::Transmit => self.transmit.notify_one(),
                Event::Arrived => self.arrived.notify_one(),
                Event::Resume => self.resume.notify_one(),
                Event::Readable(conn) => wake(state.sleepers.get_mut(&conn).map(|who| &mut who.receiver)),
                Event::Writable(conn) => wake(state.sleepers.get_mut(&conn).map(|who| &mut who.sender)),
                Event::Dialled(key, conn) => state.dialled(key, conn),
            }
        }
        result
    }

    /// Resolves when the gateway has answered for the first time.
    pub(super) async fn ready(&self) {
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// Resolves when there is something to send, or the end has come near.
    pub(super) async fn wait_to_transmit(&self) {
        self.transmit.notified().await;
    }

    /// Resolves when a held message may have found its place.
    pub(super) async fn wait_to_resume(&self) {
        self.resume.notified().await;
    }

    /// Takes what has come by a stream; says whether a message is held.
    pub(super) fn handle_bytes(&self, bytes: &mut BytesMut) -> Result<bool, Fault> {
        self.heard.fetch_add(1, Ordering::Relaxed);
        self.with(|state| state.mux.handle_bytes(bytes).map(|()| state.mux.held().is_some()))
    }

    /// Takes a WebSocket message; says whether it is held.
    pub(super) fn handle_frame(&self, frame: Bytes) -> Result<bool, Fault> {
        self.heard.fetch_add(1, Ordering::Relaxed);
        self.with(|state| state.mux.handle_frame(frame).map(|()| state.mux.held().is_some()))
    }

    pub(super) fn held(&self) -> bool {
        self.lock().mux.held().is_some()
    }

    pub(super) fn give_up_held(&self) {
        self.with(|state| state.mux.give_up_held());
    }

    /// Returns a number that grows whenever something comes.
    pub(super) fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    pub(super) fn probe(&self) {
        self.with(|state| state.mux.probe());
    }

    /// Takes what leaves next; says whether anything will come after it.
    pub(super) fn poll_transmit(&self, batch: &mut Vec<Outgoing>) -> bool {
        self.with(|state| {
            state.mux.poll_transmit(batch);
            !state.finishing
        })
    }

    /// Accepts nothing from outside any more.
    pub(super) fn deafen(&self) {
        self.with(|state| state.mux.deafen());
    }

    /// Closes all virtual connections, politely; nothing is sent after that.
    pub(super) fn finish(&self) {
        self.with(|state| {
            state.mux.close_all();
            state.finishing = true;
        });
        self.lose(Loss::Here);
        self.transmit.notify_one();
    }

    /// Ends everything that ran through this line.
    pub(super) fn lose(&self, loss: Loss) {
        let mut state = self.lock();
        state.lost.get_or_insert(loss);
        state.dials.clear();
        for who in state.sleepers.values_mut() {
            wake(Some(&mut who.receiver));
            wake(Some(&mut who.sender));
        }
    }

    pub(super) fn loss(&self) -> Option<Loss> {
        self.lock().lost.clone()
    }

    /// Waits for a virtual connection from outside; its id, and who is at its other end. Never resolves on a line that is lost.
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
        if state.lost.is_some() {
            return None;
        }
        let arrived = state.mux.accept()?;
        state.sleepers.insert(arrived.0, Sleepers::default());
        Some(arrived)
    }

    /// Asks for a virtual connection; `None`: it was refused. A dial that is dropped is given up.
    pub(super) async fn dial(&self, remote: u32) -> Result<Option<ConnId>, Loss> {
        let (told, answer) = oneshot::channel();
        let key = self.with(|state| match &state.lost {
            Some(loss) => Err(loss.clone()),
            None => {
                let key = state.mux.dial(remote);
                state.dials.insert(key, told);
                Ok(key)
            }
        })?;
        let mut dial = Dial { line: self, key, answer };
        match (&mut dial.answer).await {
            Ok(conn) => Ok(conn),
            Err(_) => Err(self.loss().unwrap_or(Loss::Closed)),
        }
    }

    /// Lets go of a virtual connection.
    pub(super) fn close(&self, conn: ConnId) {
        self.with(|state| {
            state.sleepers.remove(&conn);
            state.mux.close(conn);
        });
    }

    /// Bytes that a message may have.
    pub(super) fn max_message(&self) -> usize {
        self.lock().mux.max_message()
    }

    /// Takes the next message of a virtual connection; `None` at its end.
    pub(super) fn poll_receive(
        &self,
        conn: ConnId,
        cx: &Context<'_>,
    ) -> Poll<Result<Option<Bytes>, ReceiveError>> {
        self.with(|state| match (state.mux.take(conn), &state.lost) {
            (Taken::Message(message), _) => Poll::Ready(Ok(Some(message))),
            (Taken::End(End::Overrun), _) => Poll::Ready(Err(ReceiveError::Overrun)),
            (Taken::End(End::Closed), None) => Poll::Ready(Ok(None)),
            (_, Some(loss)) => Poll::Ready(Err(loss.clone().into())),
            (Taken::Nothing, None) => {
                sleep(state.sleepers.get_mut(&conn).map(|who| &mut who.receiver), cx);
                Poll::Pending
            }
        })
    }

    /// Sends a message of `len` bytes, which is made only when there is room for it.
    pub(super) fn poll_send(
        &self,
        conn: ConnId,
        cx: &Context<'_>,
        len: usize,
        message: impl FnOnce() -> Bytes,
    ) -> Poll<Result<(), SendError>> {
        self.with(|state| {
            if let Some(loss) = &state.lost {
                return Poll::Ready(Err(loss.clone().into()));
            }
            match state.mux.offer(conn, len, message) {
                Offered::Taken => Poll::Ready(Ok(())),
                Offered::End => Poll::Ready(Err(SendError::Closed)),
                Offered::TooLong => {
                    Poll::Ready(Err(SendError::TooLong { len, max: state.mux.max_message() }))
                }
                Offered::Full => {
                    sleep(state.sleepers.get_mut(&conn).map(|who| &mut who.sender), cx);
                    Poll::Pending
                }
            }
        })
    }
}

impl State {
    fn dialled(&mut self, key: DialKey, conn: Option<ConnId>) {
        if let Some(conn) = conn {
            self.sleepers.insert(conn, Sleepers::default());
        }
        // Nobody waits any more only where the dial was given up, and then the machine says nothing.
        if let Some(told) = self.dials.remove(&key) {
            let _ = told.send(conn);
        }
    }
}

fn sleep(who: Option<&mut Option<Waker>>, cx: &Context<'_>) {
    match who {
        Some(Some(waker)) => waker.clone_from(cx.waker()),
        Some(none) => *none = Some(cx.waker().clone()),
        None => {}
    }
}

fn wake(who: Option<&mut Option<Waker>>) {
    if let Some(waker) = who.and_then(Option::take) {
        waker.wake();
    }
}

/// A dial under way.
struct Dial<'a> {
    line: &'a Line,
    key: DialKey,
    answer: oneshot::Receiver<Option<ConnId>>,
}

impl Drop for Dial<'_> {
    fn drop(&mut self) {
        let unanswered = self.line.with(|state| {
            let unanswered = state.dials.remove(&self.key).is_some();
            if unanswered {
                state.mux.abandon(self.key);
            }
            unanswered
        });
        // An answer that came and was not taken brought a virtual connection that nobody will use.
        if !unanswered && let Ok(Some(conn)) = self.answer.try_recv() {
            self.line.close(conn);
        }
    }
}
