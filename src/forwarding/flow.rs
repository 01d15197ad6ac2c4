//! One UDP flow: datagrams between a local source and a target.
//!
//! Datagrams go as QUIC datagrams. Those that do not fit, and those before the other side's reply, go over the flow's stream: none is lost only
//! because of its size, and the first one does not wait for a round trip. The queue of the stream is bounded; beyond it they are dropped and
//! counted. A flow without datagrams ends after [`IDLE_TIMEOUT`].

use super::session::{DatagramSink, OpenError, Session, read_reply};
use super::wire::{self, Request, Target};
use crate::agent::{RecvStream, SendStream};
use std::collections::HashMap;
use std::hash::Hash;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

/// Time without a datagram in either direction after which a flow ends; RFC 4787 section 4.3 asks for two minutes at least.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// Datagrams that wait for the stream.
const STREAM_QUEUE: usize = 64;

/// The sending end of a flow. The flow ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Flow {
    id: u32,
    session: Arc<Session>,
    state: Arc<FlowState>,
    queue: mpsc::Sender<Vec<u8>>,
}

/// What both ends of a flow share.
#[derive(Debug, Default)]
struct FlowState {
    /// When the last datagram passed, in milliseconds since the session started.
    last_used: AtomicU64,
    /// The other side knows the flow.
    is_confirmed: AtomicBool,
}

/// The rest of a flow, which runs until the flow ends.
pub(super) struct FlowTask {
    id: u32,
    session: Arc<Session>,
    state: Arc<FlowState>,
    queue: mpsc::Receiver<Vec<u8>>,
    sink: DatagramSink,
}

impl Flow {
    /// Creates a flow whose datagrams go to `deliver`.
    ///
    /// # Errors
    /// There are too many.
    pub(super) fn new(
        session: &Arc<Session>,
        id: u32,
        is_confirmed: bool,
        deliver: impl Fn(&[u8]) + Send + Sync + 'static,
    ) -> Result<(Self, FlowTask), wire::Refusal> {
        let (queue, queue_rx) = mpsc::channel(STREAM_QUEUE);
        let state = Arc::new(FlowState {
            last_used: AtomicU64::new(session.elapsed_millis()),
            is_confirmed: AtomicBool::new(is_confirmed),
        });
        let sink: DatagramSink = {
            let (state, session) = (Arc::clone(&state), Arc::downgrade(session));
            Arc::new(move |payload: &[u8]| {
                let Some(session) = session.upgrade() else { return };
                state.last_used.store(session.elapsed_millis(), Ordering::Relaxed);
                session.traffic.received.fetch_add(payload.len() as u64, Ordering::Relaxed);
                deliver(payload);
            })
        };
        session.insert_flow(id, Arc::clone(&sink))?;
        session.traffic.connections.fetch_add(1, Ordering::Relaxed);
        let flow = Self { id, session: Arc::clone(session), state: Arc::clone(&state), queue };
        Ok((flow, FlowTask { id, session: Arc::clone(session), state, queue: queue_rx, sink }))
    }

    /// Opens a flow to a target; `deliver` gets its datagrams, and `on_end` why it ended if that was a failure.
    ///
    /// # Errors
    /// There are too many.
    pub(super) fn open(
        session: &Arc<Session>,
        target: Target,
        deliver: impl Fn(&[u8]) + Send + Sync + 'static,
        on_end: impl FnOnce(OpenError) + Send + 'static,
    ) -> Result<Self, wire::Refusal> {
        let id = session.next_flow_id();
        let (flow, task) = Self::new(session, id, false, deliver)?;
        tokio::spawn(async move {
            let request = Request::Flow { id, target };
            let ended = match task.session.open(&request).await {
                Ok(stream) => task.run(stream).await,
                Err(error) => {
                    task.session.remove_flow(id);
                    Err(error)
                }
            };
            if let Err(error) = ended {
                on_end(error);
            }
        });
        Ok(flow)
    }

    /// Sends a datagram, or drops it.
    pub(super) fn send(&self, payload: &[u8]) {
        self.state.last_used.store(self.session.elapsed_millis(), Ordering::Relaxed);
        let traffic = &self.session.traffic;
        let is_sent =
            self.state.is_confirmed.load(Ordering::Relaxed) && self.session.send_datagram(self.id, payload);
        if is_sent || self.queue.try_send(wire::emit_stream_datagram(payload)).is_ok() {
            traffic.sent.fetch_add(payload.len() as u64, Ordering::Relaxed);
        } else {
            traffic.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns when it was last used, in milliseconds since the session started.
    pub(super) fn last_used(&self) -> u64 {
        self.state.last_used.load(Ordering::Relaxed)
    }

    /// Returns whether it has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.session.remove_flow(self.id);
    }
}

impl FlowTask {
    /// Runs until the flow ends: at either side, with the connection, or because it is idle.
    pub(super) async fn run(self, (mut send, mut recv): (SendStream, RecvStream)) -> Result<(), OpenError> {
        let Self { id, session, state, mut queue, sink } = self;
        let write = async {
            while let Some(datagram) = queue.recv().await {
                send.write_all(&datagram).await?;
            }
            Ok(())
        };
        let read = async {
            if !state.is_confirmed.load(Ordering::Relaxed) {
                read_reply(&mut recv).await?;
                state.is_confirmed.store(true, Ordering::Relaxed);
            }
            read_datagrams(&mut recv, &sink).await
        };
        let ended = tokio::select! {
            ended = write => ended,
            ended = read => ended,
            () = idle(&session, &state) => Ok(()),
        };
        session.remove_flow(id);
        if ended.is_ok() {
            let _ = send.shutdown().await;
        }
        ended
    }
}

/// Reads datagrams from the stream of a flow until its end.
async fn read_datagrams(recv: &mut RecvStream, sink: &DatagramSink) -> Result<(), OpenError> {
    loop {
        let length = match recv.read_u16().await {
            Ok(length) => usize::from(length),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if length > wire::MAX_DATAGRAM {
            return Err(wire::WireError::Malformed.into());
        }
        let mut payload = vec![0; length];
        recv.read_exact(&mut payload).await?;
        sink(&payload);
    }
}

/// Resolves when the flow has been idle for long enough.
async fn idle(session: &Session, state: &FlowState) {
    loop {
        let unused = session.elapsed_millis().saturating_sub(state.last_used.load(Ordering::Relaxed));
        match IDLE_TIMEOUT.checked_sub(Duration::from_millis(unused)) {
            Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
            _ => return,
        }
    }
}

/// The flows of one local socket, by who sends and to whom. The one that was idle for longest makes room for a new one.
#[derive(Debug)]
pub(super) struct FlowTable<K> {
    flows: HashMap<K, Flow>,
}

impl<K: Clone + Eq + Hash> FlowTable<K> {
    pub(super) fn new() -> Self {
        Self { flows: HashMap::new() }
    }

    /// Returns a flow that has not ended.
    pub(super) fn get(&self, key: &K) -> Option<&Flow> {
        self.flows.get(key).filter(|flow| !flow.is_closed())
    }

    /// Inserts the flow that `open` opens, in place of the oldest one if there are too many.
    ///
    /// # Errors
    /// That of `open`.
    pub(super) fn insert(
        &mut self,
        key: K,
        open: impl Fn() -> Result<Flow, wire::Refusal>,
    ) -> Result<&Flow, wire::Refusal> {
        self.flows.retain(|_, flow| !flow.is_closed());
        let opened = match open() {
            Err(_) => {
                self.remove_oldest();
                open()?
            }
            Ok(flow) => flow,
        };
        Ok(self.flows.entry(key).insert_entry(opened).into_mut())
    }

    fn remove_oldest(&mut self) {
        let oldest = self.flows.iter().min_by_key(|(_, flow)| flow.last_used()).map(|(key, _)| key.clone());
        if let Some(key) = oldest {
            self.flows.remove(&key);
        }
    }
}
