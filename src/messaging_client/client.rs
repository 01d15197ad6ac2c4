//! The connection of a device to its server: carries out what the state machine wants.

use super::account::Account;
use super::error::{ClientError, RequestError};
use super::event::{Event, ReceiptState, Sent};
use super::keys::{DeviceCode, Fingerprint};
use super::machine::{AccountChange, Answer, Machine, Operation, Output, Receive};
use super::party_name::PartyName;
use super::sending::Draft;
use super::server_url::{ServerUrl, Socket};
use super::state::Change;
use super::storage::Storage;
use crate::limits::Backoff;
use crate::messaging_wire::{self, Device, Empty, OtherParty, Request};
use crate::net::dialer::Dialer;
use crate::net::network_changes::NetworkChanges;
use crate::net::time;
use futures_util::{SinkExt, StreamExt};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use serde_json::Value;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{sleep_until, timeout};
use tokio_tungstenite::tungstenite::Message as Frame;

/// The first and the longest wait before a connection that was lost is opened again.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Time limit of a polite end.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(300);
/// Requests that wait for the task.
const QUEUE: usize = 64;

/// A device of an account, connected to its server. A connection that is lost is opened again, with back-off.
///
/// Dropped, it ends; [`Client::close`] also says so to the server.
#[derive(Debug)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    events: mpsc::UnboundedReceiver<Event>,
    task: JoinHandle<Result<(), ClientError>>,
    storage: Storage,
}

/// A contact.
#[derive(Debug, Clone)]
pub(crate) struct Contact {
    pub(crate) party: PartyName,
    /// Known only if the party has this one among its contacts.
    pub(crate) is_online: Option<bool>,
}

/// The devices of a party.
#[derive(Debug, Clone)]
pub(crate) struct PartyDevices {
    /// The pinned fingerprint; absent for a party without keys.
    pub(crate) fingerprint: Option<Fingerprint>,
    pub(crate) devices: Vec<Device>,
}

type Reply = oneshot::Sender<Result<Answer, RequestError>>;

#[derive(Debug)]
enum Command {
    Send(Draft, Reply),
    Ask(Box<Request>, Reply),
    LookUp(PartyName, Reply),
    AddDevice(DeviceCode, Reply),
    ChangeAccount(AccountChange, Reply),
    Acknowledge(u64, Reply),
    Trust(PartyName, Fingerprint, Reply),
    Close,
}

impl Client {
    /// Connects and logs in. A first attempt that fails is not repeated.
    ///
    /// Two clients of one device cannot read its mailbox at once, in one process or several.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn connect(account: &Account, receive: Receive) -> Result<Self, ClientError> {
        let storage = account.storage().clone();
        let mailbox_lock = match receive {
            Receive::Nothing => None,
            _ => Some(storage.lock_mailbox()?.ok_or(ClientError::Replaced)?),
        };
        let random = ChaCha20Rng::from_os_rng();
        let machine = Machine::new(account.local()?, storage.load_state()?, receive, random);
        let (address, dialer) = (account.server().clone(), account.dialer());
        let socket = address.connect(&dialer).await?;
        let (commands, commands_rx) = mpsc::channel(QUEUE);
        // Bounded by what the machine takes from the server before an acknowledgement.
        let (events, events_rx) = mpsc::unbounded_channel();
        let (ready, is_ready) = oneshot::channel();
        let task = ClientTask {
            machine,
            storage: storage.clone(),
            address,
            dialer,
            commands: commands_rx,
            events,
            replies: HashMap::new(),
            next_operation: 1,
            ready: Some(ready),
            is_closing: false,
            _mailbox_lock: mailbox_lock,
        };
        let task = tokio::spawn(task.run(socket));
        let mut client = Self { commands, events: events_rx, task, storage };
        match is_ready.await {
            Ok(()) => Ok(client),
            Err(_) => Err(client.end().await),
        }
    }

    /// Sends a message; returns when the server has stored it durably. After a lost connection it is sent again under the same id.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn send(&self, to: &PartyName, text: &str) -> Result<Sent, RequestError> {
        self.send_draft(Draft { to: to.clone(), text: text.to_owned(), encrypted_only: false }).await
    }

    /// Sends a message as [`Client::send`] does, and only if it can be encrypted.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn send_encrypted(&self, to: &PartyName, text: &str) -> Result<Sent, RequestError> {
        self.send_draft(Draft { to: to.clone(), text: text.to_owned(), encrypted_only: true }).await
    }

    async fn send_draft(&self, draft: Draft) -> Result<Sent, RequestError> {
        match self.command(|reply| Command::Send(draft, reply)).await? {
            Answer::Sent(sent) => Ok(sent),
            _ => Err(RequestError::Ended),
        }
    }

    /// Sends a message as [`Client::send`] does, and passes the events that arrive meanwhile to `on_event`.
    pub(crate) async fn send_reporting(
        &mut self,
        to: &PartyName,
        text: &str,
        encrypted_only: bool,
        mut on_event: impl FnMut(Event),
    ) -> Result<Sent, RequestError> {
        let (reply, mut answer) = oneshot::channel();
        let draft = Draft { to: to.clone(), text: text.to_owned(), encrypted_only };
        self.commands.send(Command::Send(draft, reply)).await.map_err(|_| RequestError::Ended)?;
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return match answer {
                    Ok(Ok(Answer::Sent(sent))) => Ok(sent),
                    Ok(Err(error)) => Err(error),
                    Ok(Ok(_)) | Err(_) => Err(RequestError::Ended),
                },
                Some(event) = self.events.recv() => on_event(event),
            }
        }
    }

    /// Waits for the next event.
    ///
    /// # Errors
    /// [`ClientError`] when the client has ended.
    pub async fn next_event(&mut self) -> Result<Event, ClientError> {
        match self.events.recv().await {
            Some(event) => Ok(event),
            None => Err(self.end().await),
        }
    }

    /// Acknowledges the events up to this number: the user has seen them. They do not arrive again, and the senders get their receipts.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn acknowledge(&self, number: u64) -> Result<(), RequestError> {
        self.command(|reply| Command::Acknowledge(number, reply)).await.map(drop)
    }

    pub(crate) async fn contacts(&self) -> Result<Vec<Contact>, RequestError> {
        let fields = self.ask(Request::Contacts(Empty {})).await?;
        let contacts: messaging_wire::Contacts =
            messaging_wire::answer_fields(fields).map_err(|_| RequestError::Ended)?;
        let contact = |contact: messaging_wire::Contact| Contact {
            party: PartyName::from_wire(&contact.party),
            is_online: contact.online,
        };
        Ok(contacts.contacts.into_iter().map(contact).collect())
    }

    pub(crate) async fn add_contact(&self, party: &PartyName) -> Result<(), RequestError> {
        let party = party.as_wire().to_owned();
        self.ask(Request::AddContact(OtherParty { party })).await.map(drop)
    }

    pub(crate) async fn remove_contact(&self, party: &PartyName) -> Result<(), RequestError> {
        let party = party.as_wire().to_owned();
        self.ask(Request::RemoveContact(OtherParty { party })).await.map(drop)
    }

    /// Asks for the devices of a party; pins its identity key if it is new.
    pub(crate) async fn devices(&self, party: &PartyName) -> Result<PartyDevices, RequestError> {
        match self.command(|reply| Command::LookUp(party.clone(), reply)).await? {
            Answer::Devices { fingerprint, devices } => {
                Ok(PartyDevices { fingerprint, devices: devices.devices })
            }
            _ => Err(RequestError::Ended),
        }
    }

    /// Adds a device to this account. Only a device with the identity key can.
    pub(crate) async fn add_device(&self, code: DeviceCode) -> Result<(), RequestError> {
        self.command(|reply| Command::AddDevice(code, reply)).await.map(drop)
    }

    /// Changes the account and ends: the session becomes one of the identity key, unless the change is of this device only.
    pub(crate) async fn change_account(self, change: AccountChange) -> Result<(), RequestError> {
        self.command(|reply| Command::ChangeAccount(change, reply)).await.map(drop)
    }

    /// Pins an identity key in place of the one before.
    pub(crate) async fn trust(
        &self,
        party: &PartyName,
        fingerprint: Fingerprint,
    ) -> Result<(), RequestError> {
        self.command(|reply| Command::Trust(party.clone(), fingerprint, reply)).await.map(drop)
    }

    /// Returns what became of a message, if a client of this device has received a receipt for it.
    pub(crate) fn receipt_of(&self, message_id: &str) -> Result<Option<ReceiptState>, ClientError> {
        let state = self.storage.load_state()?;
        let receipt = state.receipts.iter().rev().find(|receipt| receipt.message_id == message_id);
        Ok(receipt.map(|receipt| receipt.state))
    }

    /// Ends the client.
    ///
    /// # Errors
    /// [`ClientError`] if it had ended before.
    pub async fn close(mut self) -> Result<(), ClientError> {
        let _ = self.commands.send(Command::Close).await;
        match (&mut self.task).await {
            Ok(ended) => ended,
            Err(_) => Ok(()),
        }
    }

    async fn ask(&self, request: Request) -> Result<Value, RequestError> {
        match self.command(|reply| Command::Ask(Box::new(request), reply)).await? {
            Answer::Fields(fields) => Ok(fields),
            _ => Err(RequestError::Ended),
        }
    }

    async fn command(&self, command: impl FnOnce(Reply) -> Command) -> Result<Answer, RequestError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| RequestError::Ended)?;
        answer.await.unwrap_or(Err(RequestError::Ended))
    }

    /// Returns why the task has ended.
    async fn end(&mut self) -> ClientError {
        match (&mut self.task).await {
            Ok(Err(error)) => error,
            _ => ClientError::Protocol("the client has ended".to_owned()),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The task that owns the connection.
struct ClientTask {
    machine: Machine,
    storage: Storage,
    address: ServerUrl,
    dialer: Dialer,
    commands: mpsc::Receiver<Command>,
    events: mpsc::UnboundedSender<Event>,
    replies: HashMap<Operation, Reply>,
    next_operation: u64,
    /// Until the first login.
    ready: Option<oneshot::Sender<()>>,
    is_closing: bool,
    _mailbox_lock: Option<File>,
}

/// Why a connection is no longer used.
enum Stop {
    /// Open another one.
    Lost(String),
    Failed(ClientError),
    Closed,
}

impl ClientTask {
    async fn run(mut self, mut socket: Socket) -> Result<(), ClientError> {
        let mut backoff = Backoff::new(BACKOFF, ChaCha20Rng::from_os_rng());
        let mut network = NetworkChanges::start();
        loop {
            let opened_at = time::mono();
            let stop = self.serve(&mut socket).await;
            let _ = timeout(CLOSE_TIMEOUT, socket.close(None)).await;
            let reason = match stop {
                Stop::Closed => return Ok(()),
                Stop::Failed(error) => return Err(error),
                Stop::Lost(reason) if self.ready.is_some() => {
                    let source = io::Error::other(reason);
                    return Err(ClientError::Unreachable { server: self.address.to_string(), source });
                }
                Stop::Lost(reason) => reason,
            };
            tracing::debug!(reason, "the messaging connection was lost");
            self.machine.handle_disconnected(&reason);
            self.machine.set_state(self.storage.load_state()?);
            backoff.reset_after(opened_at.elapsed());
            socket = match self.reconnect(&mut backoff, &mut network).await {
                Ok(socket) => socket,
                Err(Stop::Failed(error)) => return Err(error),
                Err(_) => return Ok(()),
            };
        }
    }

    /// Opens a connection; serves commands meanwhile, most of which fail.
    async fn reconnect(
        &mut self,
        backoff: &mut Backoff,
        network: &mut NetworkChanges,
    ) -> Result<Socket, Stop> {
        loop {
            self.carry_out(None).await?;
            let (address, dialer) = (self.address.clone(), self.dialer.clone());
            let connecting = async {
                network.wait_to_retry(backoff).await;
                address.connect(&dialer).await
            };
            tokio::pin!(connecting);
            let connected = loop {
                tokio::select! {
                    connected = &mut connecting => break connected,
                    command = self.commands.recv() => {
                        self.handle_command(command);
                        self.carry_out(None).await?;
                    }
                }
            };
            match connected {
                Ok(socket) => return Ok(socket),
                Err(error) => tracing::debug!(%error, "cannot connect"),
            }
        }
    }

    /// Serves a connection until it ends.
    async fn serve(&mut self, socket: &mut Socket) -> Stop {
        self.machine.handle_connected(time::now());
        loop {
            if let Err(stop) = self.carry_out(Some(socket)).await {
                return stop;
            }
            let due = self.machine.poll_timeout();
            let timer = async {
                match due {
                    Some(due) => sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                frame = socket.next() => match frame {
                    Some(Ok(Frame::Text(text))) => self.machine.handle_frame(&text, time::now()),
                    Some(Ok(Frame::Close(_))) | None => return Stop::Lost("the server closed the connection".to_owned()),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Stop::Lost(error.to_string()),
                },
                command = self.commands.recv() => self.handle_command(command),
                () = timer => self.machine.handle_timeout(time::now()),
            }
        }
    }

    fn handle_command(&mut self, command: Option<Command>) {
        let now = time::now();
        match command {
            Some(Command::Send(draft, reply)) => {
                let operation = self.operation(reply);
                self.machine.send(operation, draft, now);
            }
            Some(Command::Ask(request, reply)) => {
                let operation = self.operation(reply);
                self.machine.ask(operation, &request, now);
            }
            Some(Command::LookUp(party, reply)) => {
                let operation = self.operation(reply);
                self.machine.look_up(operation, party, now);
            }
            Some(Command::AddDevice(code, reply)) => {
                let operation = self.operation(reply);
                self.machine.add_device(operation, code, now);
            }
            Some(Command::ChangeAccount(change, reply)) => {
                let operation = self.operation(reply);
                self.machine.change_account(operation, change, now);
            }
            Some(Command::Acknowledge(number, reply)) => {
                let operation = self.operation(reply);
                self.machine.acknowledge(operation, number, now);
            }
            Some(Command::Trust(party, fingerprint, reply)) => {
                let operation = self.operation(reply);
                self.machine.trust(operation, party, fingerprint);
            }
            Some(Command::Close) | None => self.is_closing = true,
        }
    }

    fn operation(&mut self, reply: Reply) -> Operation {
        let operation = Operation(self.next_operation);
        self.next_operation += 1;
        self.replies.insert(operation, reply);
        operation
    }

    /// Carries out the outputs in their order; without a socket there are no frames among them.
    async fn carry_out(&mut self, mut socket: Option<&mut Socket>) -> Result<(), Stop> {
        // After a conflict nothing is sent any more on what this process believed.
        let mut conflict = false;
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Save(change) if !conflict => conflict = !self.save(change).await?,
                Output::Frame(frame) if !conflict => {
                    let Some(socket) = socket.as_deref_mut() else { continue };
                    let sent = socket.send(Frame::text(frame)).await;
                    sent.map_err(|error| Stop::Lost(error.to_string()))?;
                }
                Output::Save(_) | Output::Frame(_) => {}
                Output::Event(event) => {
                    if matches!(event, Event::Connected { .. })
                        && let Some(ready) = self.ready.take()
                    {
                        let _ = ready.send(());
                    }
                    let _ = self.events.send(event);
                }
                Output::Done(operation, result) => {
                    if let Some(reply) = self.replies.remove(&operation) {
                        let _ = reply.send(result);
                    }
                }
                Output::Reconnect { reason } => return Err(Stop::Lost(reason)),
                Output::End(error) => return Err(Stop::Failed(error)),
            }
        }
        match (self.is_closing, conflict) {
            (true, _) => Err(Stop::Closed),
            (false, true) => Err(Stop::Lost("another process has pinned other keys".to_owned())),
            (false, false) => Ok(()),
        }
    }

    /// Makes a change durable; returns false if another process has decided otherwise.
    async fn save(&mut self, change: Change) -> Result<bool, Stop> {
        let storage = self.storage.clone();
        let saved = spawn_blocking(move || storage.apply(&change)).await;
        match saved {
            Ok(Ok(Ok(_))) => Ok(true),
            Ok(Ok(Err(_))) => Ok(false),
            Ok(Err(error)) => Err(Stop::Failed(error)),
            Err(_) => Err(Stop::Closed),
        }
    }
}
