//! What the targets of the messaging machine share: the machine before its backend, connections in slots, and the events that belong to no
//! protocol.

use super::backend::{Backend, Completion, config};
use super::input::Input;
use ginnel::Now;
use ginnel::internals::messaging::machine::{ConnectionId, Machine, Output};
use ginnel::internals::net::time;
use ginnel::internals::store::{Party, StoreLimits};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use std::collections::BTreeMap;
use std::time::Duration;

pub(crate) const SLOTS: u8 = 5;
/// Messages that a mailbox may have.
pub(crate) const MESSAGES: u64 = 6;
const MAX_EVENTS: usize = 150;
const WAITS: [u64; 4] = [0, 11, 100, 151];

/// The machine and its connections, each with what its client sees.
pub(crate) struct Harness<C> {
    pub(crate) now: Now,
    pub(crate) machine: Machine,
    pub(crate) backend: Backend,
    pub(crate) slots: BTreeMap<u8, ConnectionId>,
    pub(crate) clients: BTreeMap<ConnectionId, C>,
    /// How many connections were opened.
    opened: u64,
    /// Successful appends whose answer has not left, by sender and message id.
    pub(crate) acknowledgeable: BTreeMap<(Party, String), usize>,
}

impl<C: Default> Harness<C> {
    /// `setup` chooses the policy and the rates. `key` is what the server sends to clients of the TCP protocol.
    pub(crate) fn new(setup: u8, limits: StoreLimits, key: &'static [u8]) -> Self {
        let now = time::now();
        let limits = StoreLimits { messages_per_mailbox: MESSAGES, contacts_per_party: 2, ..limits };
        Self {
            now,
            machine: Machine::new(now, config(setup), key.into(), &mut ChaCha20Rng::from_seed([7; 32])),
            backend: Backend::new(limits),
            slots: BTreeMap::new(),
            clients: BTreeMap::new(),
            opened: 0,
            acknowledgeable: BTreeMap::new(),
        }
    }

    /// Puts a connection into a slot; the machine does not know it yet.
    pub(crate) fn insert_client(&mut self, slot: u8) -> ConnectionId {
        self.opened += 1;
        let connection = ConnectionId(self.opened);
        self.slots.insert(slot, connection);
        self.clients.insert(connection, C::default());
        connection
    }

    /// Closes the connection in a slot, if there is one.
    pub(crate) fn close(&mut self, slot: u8) {
        let Some(connection) = self.slots.remove(&slot) else { return };
        self.clients.remove(&connection);
        self.machine.handle_closed(connection);
    }

    pub(crate) fn wait(&mut self, time: Duration) {
        self.now = self.now.after(time);
        self.machine.handle_timeout(self.now);
    }

    /// Passes a result to the machine; returns false if none waits.
    fn complete_one(&mut self, which: usize) -> bool {
        match self.backend.take(which) {
            None => return false,
            Some(Completion::Append(id, message, result)) => {
                if result.is_ok() {
                    let key = (message.sender, message.message_id);
                    *self.acknowledgeable.entry(key).or_default() += 1;
                }
                self.machine.handle_store_result(self.now, id, result);
            }
            Some(Completion::Store(id, result)) => self.machine.handle_store_result(self.now, id, result),
            Some(Completion::Job(id, result)) => self.machine.handle_job_result(self.now, id, result),
        }
        true
    }

    /// Notes an acknowledgement that a client got; `senders` are those that its message may be of.
    pub(crate) fn take_acknowledgeable(&mut self, senders: impl Iterator<Item = Party>, message_id: &str) {
        let mut keys = senders.map(|sender| (sender, message_id.to_owned()));
        let key = keys.find(|key| self.acknowledgeable.get(key).is_some_and(|count| *count > 0));
        let key = key.expect("what is acknowledged is stored");
        *self.acknowledgeable.entry(key).or_default() -= 1;
    }
}

/// Clients of one protocol, and what they check.
pub(crate) trait Model {
    type Client: Default;

    fn harness(&mut self) -> &mut Harness<Self::Client>;

    /// An event of the client in a slot, with a number from 5 to 15.
    fn client_event(&mut self, event: u8, slot: u8, input: &mut Input<'_>);

    /// An output that belongs to the protocol or to the store.
    fn handle_output(&mut self, output: Output);

    /// Bytes of a client that the machine is not done with.
    fn unhandled(client: &mut Self::Client) -> &mut usize;

    /// Panics if a request of the client is unanswered.
    fn check_answered(client: &Self::Client);

    /// What must hold when everything has happened.
    fn end(&mut self);

    /// Runs events, each of one byte and its operands.
    fn run(&mut self, input: &mut Input<'_>) {
        for _ in 0..MAX_EVENTS {
            if input.0.is_empty() {
                break;
            }
            let event = input.byte() % 16;
            match event {
                0 => self.complete(usize::MAX),
                1 | 2 => self.complete(usize::from(input.byte())),
                3 => self.harness().backend.failures = input.byte() % 4,
                4 => self.harness().wait(Duration::from_secs(input.pick(&WAITS))),
                event => {
                    let slot = input.byte() % SLOTS;
                    self.client_event(event, slot, input);
                }
            }
            self.drain();
        }
        self.end();
    }

    /// Passes results to the machine: all of them, or one.
    fn complete(&mut self, which: usize) {
        self.drain();
        while self.harness().complete_one(which) {
            self.drain();
            if which != usize::MAX {
                return;
            }
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.harness().machine.poll_output() {
            let harness = self.harness();
            match output {
                Output::Close(connection) => {
                    harness.clients.remove(&connection);
                    harness.slots.retain(|_, open| *open != connection);
                }
                Output::Handled { connection, bytes } => {
                    let Some(client) = harness.clients.get_mut(&connection) else { continue };
                    let unhandled = Self::unhandled(client);
                    *unhandled = unhandled.checked_sub(bytes).expect("handled once");
                }
                Output::Authenticated(_) => {}
                Output::Job { id, job } => harness.backend.start(id, job),
                output => self.handle_output(output),
            }
        }
    }

    /// Completes everything; then every request is answered. Waits until the silent clients are closed, and rates are full again.
    fn settle(&mut self) {
        self.harness().backend.failures = 0;
        self.complete(usize::MAX);
        let harness = self.harness();
        for client in harness.clients.values_mut() {
            Self::check_answered(client);
            assert_eq!(*Self::unhandled(client), 0, "the machine is done with everything");
        }
        // Nobody gets the answers of a connection that has ended.
        let has_closed = harness.opened as usize > harness.clients.len();
        assert!(has_closed || harness.acknowledgeable.values().all(|count| *count == 0));
        harness.wait(Duration::from_secs(3600));
        self.drain();
        assert!(self.harness().clients.is_empty(), "silent clients are closed");
        self.complete(usize::MAX);
        let counters = self.harness().machine.counters();
        assert_eq!((counters.connections, counters.websockets, counters.online), (0, 0, 0));
    }
}
