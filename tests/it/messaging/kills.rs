//! SIGKILL at random moments under load: what is acknowledged is delivered, in order. The rounds are the same for both protocols.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;

use super::{CHEAP, Messaging};
use crate::tools;
use crate::waiting::{pace, pause_under_test};

/// Senders, and the pause of each between two messages: 500 messages a second in all.
const SENDERS: usize = 5;
const PAUSE: Duration = Duration::from_millis(10);
/// Receives while it is sent to, and acknowledges.
pub(super) const ONLINE: &str = "online";
/// Receives after the server has been killed.
pub(super) const OFFLINE: &str = "offline";

/// Sends a message of this number; fails when the server has ended.
pub(super) type SendMessage = Box<dyn FnMut(u64) -> io::Result<()> + Send>;
/// Reads until the server has ended; returns the numbers that were acknowledged.
pub(super) type ReadAcknowledgements = Box<dyn FnOnce() -> Vec<u64> + Send>;

/// How clients of a protocol do what the rounds need.
pub(super) trait Protocol: Sync {
    /// Registers everybody.
    fn register(&mut self, messaging: &Messaging, names: &[&str]);

    /// Logs a sender in.
    fn sender(&self, messaging: &Messaging, name: &str) -> (SendMessage, ReadAcknowledgements);

    /// Logs a recipient in, which then receives and acknowledges until the server has ended.
    fn follow(&self, messaging: &Messaging, name: &str) -> Box<dyn FnOnce(&mut Inbox) + Send>;

    /// Fetches and acknowledges everything that is stored for a recipient. The marker differs in each call.
    fn fetch(&self, messaging: &Messaging, name: &str, marker: &str, inbox: &mut Inbox);
}

/// Returns the recipient of a sender's message.
pub(super) fn recipient(number: u64) -> &'static str {
    if number.is_multiple_of(2) { ONLINE } else { OFFLINE }
}

/// Returns the text of a message.
pub(super) fn text(number: u64) -> String {
    format!("message {number}")
}

/// A sender and what it remembers over the kills, as a program does that keeps its messages until they are acknowledged.
#[derive(Default)]
struct Sender {
    name: String,
    sent: u64,
    unacknowledged: VecDeque<u64>,
    acknowledged: BTreeSet<u64>,
}

impl Sender {
    /// Sends until the server ends; what was not acknowledged before comes first.
    fn run(&mut self, (mut send, read): (SendMessage, ReadAcknowledgements)) {
        let reading = std::thread::spawn(read);
        let mut is_alive = self.unacknowledged.iter().all(|number| send(*number).is_ok());
        while is_alive {
            self.unacknowledged.push_back(self.sent);
            self.sent += 1;
            is_alive = send(self.sent - 1).is_ok();
            pace(PAUSE);
        }
        self.acknowledged.extend(reading.join().unwrap());
        self.unacknowledged.retain(|number| !self.acknowledged.contains(number));
    }
}

/// What a recipient has received: per sender, each message once, and how many came again.
#[derive(Default)]
pub(super) struct Inbox {
    received: BTreeMap<String, Vec<u64>>,
    seen: BTreeSet<(String, u64)>,
    repeated: u64,
}

impl Inbox {
    /// Adds a message; others than those of the senders do not count.
    pub(super) fn add(&mut self, from: &str, id: &str, body: &str) {
        let Ok(number) = id.parse::<u64>() else { return };
        assert_eq!(body, text(number));
        if self.seen.insert((from.to_owned(), number)) {
            self.received.entry(from.to_owned()).or_default().push(number);
        } else {
            self.repeated += 1;
        }
    }

    fn check(&self, senders: &[Sender], name: &str) {
        for sender in senders {
            let received = self.received.get(&sender.name).map_or(&[][..], Vec::as_slice);
            assert!(received.is_sorted(), "{}'s messages to {name} are in order", sender.name);
            assert!(received.iter().all(|number| *number < sender.sent && recipient(*number) == name));
            for number in sender.acknowledged.iter().filter(|number| recipient(**number) == name) {
                let is_received = received.binary_search(number).is_ok();
                assert!(
                    is_received,
                    "{}'s message {number} to {name} was acknowledged and is lost",
                    sender.name
                );
            }
        }
    }
}

/// What several kills have shown.
#[derive(Debug, Default)]
pub(super) struct Kills {
    sent: u64,
    pub(super) acknowledged: usize,
    /// Acknowledged only after a kill, when they were sent again.
    resent: u64,
    received: usize,
    repeated: u64,
    /// Time in which messages were sent.
    sending: Duration,
}

impl Kills {
    pub(super) fn print(&self) {
        let rate = self.sent as f64 / self.sending.as_secs_f64();
        tools::print(&format!("{self:?}, {rate:.0} messages a second"));
    }
}

/// Kills a server at random moments under load, and checks after each that all acknowledged messages are delivered, in order.
pub(super) fn check_kills(mut protocol: impl Protocol, rounds: usize) -> Kills {
    let plenty = "{ burst = 1000, per_second = 1000 }";
    let limits =
        format!("[messaging.limits]\nlogins_per_network = {plenty}\nregistrations_per_network = {plenty}\n");
    let mut messaging = Messaging::start(&format!("{limits}{CHEAP}"));
    let mut random = ChaCha20Rng::seed_from_u64(14);
    let mut senders: Vec<_> =
        (0..SENDERS).map(|index| Sender { name: format!("sender-{index}"), ..Sender::default() }).collect();
    let mut inboxes = [(ONLINE, Inbox::default()), (OFFLINE, Inbox::default())];
    let names: Vec<_> = senders.iter().map(|sender| &*sender.name).chain([ONLINE, OFFLINE]).collect();
    protocol.register(&messaging, &names);
    let mut kills = Kills::default();
    for round in 0..rounds {
        let life = Duration::from_millis(random.random_range(20..700));
        let follow = protocol.follow(&messaging, ONLINE);
        let clients: Vec<_> =
            senders.iter().map(|sender| protocol.sender(&messaging, &sender.name)).collect();
        kills.resent += senders.iter().map(|sender| sender.unacknowledged.len() as u64).sum::<u64>();
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let (_, inbox) = &mut inboxes[0];
            scope.spawn(move || follow(inbox));
            for (sender, client) in senders.iter_mut().zip(clients) {
                scope.spawn(move || sender.run(client));
            }
            pause_under_test(life);
            messaging.server.kill();
            kills.sending += begun.elapsed();
        });
        messaging.server.begin();
        for (name, inbox) in &mut inboxes {
            let before = inbox.seen.len();
            protocol.fetch(&messaging, name, &format!("{name} {round}"), inbox);
            let fetched = inbox.seen.len();
            protocol.fetch(&messaging, name, &format!("{name} {round} again"), inbox);
            assert_eq!(inbox.seen.len(), fetched, "{name}: the first fetch, from {before}, is complete");
            inbox.check(&senders, name);
        }
    }
    kills.sent = senders.iter().map(|sender| sender.sent).sum();
    kills.acknowledged = senders.iter().map(|sender| sender.acknowledged.len()).sum();
    kills.received = inboxes.iter().map(|(_, inbox)| inbox.seen.len()).sum();
    kills.repeated = inboxes.iter().map(|(_, inbox)| inbox.repeated).sum();
    kills
}
