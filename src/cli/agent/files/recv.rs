//! `agent recv`: receives what `agent send` offers into a folder.
//!
//! A code or ticket says from whom, not what or how much: without a terminal to ask on, `--yes` is needed, and nothing that exists is replaced
//! without a flag. A transfer that was accepted goes on without a question.

use super::error::FilesError;
use super::progress_bar::TransferBar;
use super::report;
use super::send::title;
use super::state::{RecvState, StateOptions, Transfers};
use crate::agent::{Connection, Protocol, RecvStream, SendStream, Ticket};
use crate::cli::agent::error::{CommandError, UsageError};
use crate::cli::agent::escape;
use crate::cli::agent::path_line::PathLine;
use crate::cli::agent::reach::{ReachOptions, Target};
use crate::cli::agent::report::{Reporter, VERSION};
use crate::cli::agent::terminal::{PromptAnswer, ask, can_ask, interrupted};
use crate::cli::agent::{BACKOFF, INTERRUPTED, OutputOptions};
use crate::file_transfer::{
    CancelReason, Destination, ExistingPolicy, Id, Incoming, Offer, Progress, RootPlan, Summary,
    TransferError, plan_roots, receive_offer,
};
use crate::limits::Backoff;
use crate::net::time;
use clap::Args;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

/// Time without progress after which another connection is attempted beside the one that is silent: without a path, and with one.
const LOST_STALL: Duration = Duration::from_secs(4);
const STALL: Duration = Duration::from_secs(20);
const STALL_CHECK: Duration = Duration::from_secs(1);
/// Time limit for the other side to be informed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Options of `agent recv`.
#[derive(Debug, Args)]
pub(in crate::cli::agent) struct Recv {
    /// The code or ticket that `agent send` printed on the other machine. Without one: goes on with the unfinished transfer of this folder, or --ticket-file, AGENT_TICKET, or a prompt
    #[arg(value_name = "CODE")]
    peer: Vec<String>,
    /// The folder to receive into [default: this one]
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// Accept without a question
    #[arg(long, short)]
    yes: bool,
    /// Receive what exists already under another name
    #[arg(long, conflicts_with_all = ["overwrite", "skip"])]
    keep_both: bool,
    /// Replace files that exist, and merge folders
    #[arg(long, conflicts_with = "skip")]
    overwrite: bool,
    /// Do not receive what exists already
    #[arg(long)]
    skip: bool,
    /// Do not go on with an unfinished transfer
    #[arg(long)]
    new: bool,
    #[command(flatten)]
    state: StateOptions,
    #[command(flatten)]
    reach: ReachOptions,
    #[command(flatten)]
    output: OutputOptions,
}

type Arrived = Incoming<SendStream, RecvStream>;

/// A transfer on the receiver's side.
struct Receiver<'a> {
    options: &'a Recv,
    report: &'a Reporter,
    transfers: Transfers,
    folder: PathBuf,
    /// What an earlier connection has begun.
    state: Option<RecvState>,
    receiver: Id,
    busy: Arc<std::sync::Mutex<()>>,
    progress: Arc<Progress>,
    /// Bytes of everything, if the sender has counted them.
    total: Option<u64>,
    began: Instant,
}

/// How a connection ended.
enum Outcome {
    Done(Summary),
    Interrupted,
    /// The connection is to be made again, perhaps over this one.
    Again(Option<Box<Connection>>),
}

impl Recv {
    pub(in crate::cli::agent) fn output(&self) -> &OutputOptions {
        &self.output
    }

    fn policy(&self) -> Option<ExistingPolicy> {
        match (self.keep_both, self.overwrite, self.skip) {
            (true, ..) => Some(ExistingPolicy::KeepBoth),
            (_, true, _) => Some(ExistingPolicy::Overwrite),
            (_, _, true) => Some(ExistingPolicy::Skip),
            _ => None,
        }
    }

    fn folder(&self) -> Result<PathBuf, FilesError> {
        let folder = self.to.as_deref().unwrap_or(Path::new("."));
        let found = fs::canonicalize(folder).and_then(|path| match path.is_dir() {
            true => Ok(path),
            false => Err(std::io::ErrorKind::NotADirectory.into()),
        });
        found.map_err(|source| FilesError::Folder { path: folder.display().to_string(), source })
    }

    /// Returns whom to connect to, and the transfer that goes on.
    fn target(
        &self,
        report: &Reporter,
        unfinished: Vec<RecvState>,
    ) -> Result<(Target, Option<RecvState>), CommandError> {
        let peer = self.peer.join(" ");
        let named = Some(peer.as_str()).filter(|_| !self.peer.is_empty());
        if named.is_none() && !self.reach.is_given() && !self.new {
            if let Some(state) = unfinished.into_iter().next() {
                let ticket: Ticket = state.ticket.parse().map_err(UsageError::from)?;
                return Ok((Target::Ticket(ticket), Some(state)));
            }
            self.require_consent()?;
            return Ok((self.reach.target(None, report)?, None));
        }
        let target = self.reach.target(named, report)?;
        let ticket = target.ticket().map(ToString::to_string);
        let same = unfinished.into_iter().find(|state| Some(&state.ticket) == ticket.as_ref() && !self.new);
        if same.is_none() {
            self.require_consent()?;
        }
        Ok((target, same))
    }

    /// Fails before a code is used up.
    fn require_consent(&self) -> Result<(), FilesError> {
        if self.yes || can_ask() { Ok(()) } else { Err(FilesError::NobodyToAsk) }
    }

    /// Runs the command and returns the exit code.
    pub(in crate::cli::agent) async fn run(self, report: &Reporter) -> Result<u8, CommandError> {
        let folder = self.folder()?;
        let transfers = Transfers::open(self.state.state.clone())?;
        let (mut target, state) = self.target(report, transfers.unfinished(&folder))?;
        if let Some(state) = &state {
            let shown = escape::line(&state.title);
            report.write(
                || format!("Going on {shown}     (agent recv --new begins another transfer)"),
                || json!({"v": VERSION, "t": "going_on", "what": shown}),
            );
        }
        let receiver = state.as_ref().map_or_else(rand::random, |state| state.receiver);
        let mut receiver = Receiver {
            options: &self,
            report,
            transfers,
            folder,
            state,
            receiver,
            busy: Arc::default(),
            progress: Arc::default(),
            total: None,
            began: time::mono(),
        };
        let mut next = None;
        loop {
            let connection = match next.take() {
                Some(connection) => connection,
                None => receiver.connect(&target).await?,
            };
            match receiver.receive(connection).await? {
                Outcome::Done(summary) => {
                    if let Some(state) = &receiver.state {
                        receiver.transfers.forget_recv(&state.transfer);
                    }
                    return report::finish(report, summary, &receiver.progress, receiver.began);
                }
                Outcome::Interrupted => {
                    if receiver.state.is_some() {
                        report::kept(report, receiver.progress.figures().done);
                    }
                    return Ok(INTERRUPTED);
                }
                Outcome::Again(connection) => next = connection.map(|connection| *connection),
            }
            if let Some(ticket) = receiver.ticket() {
                target = Target::Ticket(ticket);
            }
        }
    }
}

impl Receiver<'_> {
    /// Returns the ticket that outlives the first connection.
    fn ticket(&self) -> Option<Ticket> {
        self.state.as_ref()?.ticket.parse().ok()
    }

    /// Connects. A transfer that was begun waits for its sender.
    async fn connect(&self, target: &Target) -> Result<Connection, CommandError> {
        let mut backoff = Backoff::new(BACKOFF, ChaCha20Rng::from_os_rng());
        let mut is_reported = false;
        loop {
            let error = match self.options.reach.connect(target, Protocol::FILES, self.report).await {
                Ok(connection) => return Ok(connection),
                Err(error) => error,
            };
            // Usage, interruption and refusals are final.
            let is_final = matches!(error.exit_code(), 1 | 2 | 4 | INTERRUPTED);
            if is_final || self.state.is_none() {
                return Err(error);
            }
            if !std::mem::replace(&mut is_reported, true) {
                self.report.note("the sender does not answer; waiting for it (Ctrl-C keeps what is here)");
            }
            tokio::select! {
                () = sleep(backoff.wait()) => {}
                () = interrupted() => {
                    report::kept(self.report, self.progress.figures().done);
                    return Err(UsageError::Interrupted.into());
                }
            }
        }
    }

    /// Opens the stream and waits for the offer.
    async fn arrive(&self, connection: &Connection) -> Result<Arrived, CommandError> {
        let transfer = self.state.as_ref().map(|state| state.transfer);
        let stream = connection.open_bi().await?;
        let arrived = receive_offer(stream, self.receiver, transfer).await;
        arrived.map_err(|error| CommandError::Files(error.into()))
    }

    async fn receive(&mut self, connection: Connection) -> Result<Outcome, CommandError> {
        let incoming: Arrived = tokio::select! {
            arrived = self.arrive(&connection) => match arrived {
                Ok(incoming) => incoming,
                Err(error) => return self.after_error(connection, error).await,
            },
            () = interrupted() => return Ok(self.stop(connection).await),
        };
        let is_resumed = self.state.is_some();
        self.total = Some(incoming.offer.bytes).filter(|_| incoming.offer.is_counted);
        let plans = match self.plans(&incoming.offer) {
            Ok(plans) => plans,
            Err(error) => {
                let reason = match &error {
                    CommandError::Files(FilesError::Exists(_)) => CancelReason::Exists,
                    _ => CancelReason::Declined,
                };
                incoming.decline(reason).await;
                let _ = timeout(CLOSE_TIMEOUT, connection.finish()).await;
                return Err(error);
            }
        };
        let destination = Destination {
            folder: self.folder.clone(),
            transfer: incoming.offer.transfer,
            plans,
            is_resumed,
            busy: Arc::clone(&self.busy),
        };
        self.run(connection, incoming, destination).await
    }

    /// Returns what becomes of each root: as decided before, or by asking.
    fn plans(&mut self, offer: &Offer) -> Result<Vec<RootPlan>, CommandError> {
        if let Some(state) = &self.state {
            let plans = state.plans();
            // The sender's list is that of the first connection.
            return match plans.len() == offer.roots.len() {
                true => Ok(plans),
                false => Err(FilesError::from(TransferError::Cancelled(CancelReason::OtherTransfer)).into()),
            };
        }
        let first = offer.roots.first().map(|root| String::from_utf8_lossy(&root.name).into_owned());
        let shown = title(offer, &escape::name(&first.unwrap_or_default()));
        let sender = escape::name(&offer.sender);
        self.report.write(
            || format!("Offered  {shown} from {sender}"),
            || {
                json!({
                    "v": VERSION, "t": "offer", "files": offer.files, "bytes": offer.bytes,
                    "counted": offer.is_counted, "roots": offer.roots.len(), "from": sender,
                })
            },
        );
        if !self.options.yes {
            match ask("Accept? [Y/n]") {
                PromptAnswer::Line(answer) if !is_yes(&answer) => return Err(FilesError::Declined.into()),
                PromptAnswer::Interrupted => return Err(UsageError::Interrupted.into()),
                _ => {}
            }
        }
        let plans = self.plans_of_existing(offer)?;
        let ids = (offer.transfer, self.receiver);
        let mut state =
            RecvState::new(ids, offer.ticket.clone(), &self.folder, format!("{shown} from {sender}"));
        state.set_plans(&plans);
        self.transfers.save_recv(&state)?;
        self.state = Some(state);
        Ok(plans)
    }

    /// Plans the roots; asks once what to do with names that exist.
    fn plans_of_existing(&self, offer: &Offer) -> Result<Vec<RootPlan>, CommandError> {
        let exists = |name: &str| self.folder.join(name).symlink_metadata().is_ok();
        let names = match plan_roots(&offer.roots, self.options.policy(), exists) {
            Ok(plans) => return Ok(plans),
            Err(names) => names,
        };
        let error = FilesError::Exists(names);
        if !can_ask() {
            return Err(error.into());
        }
        let policy = loop {
            match ask(&format!("{error}. Keep [b]oth, [o]verwrite, [s]kip, or [c]ancel? [b]")) {
                PromptAnswer::Line(answer) => match answer.chars().next().map(|c| c.to_ascii_lowercase()) {
                    Some('b') => break ExistingPolicy::KeepBoth,
                    Some('o') => break ExistingPolicy::Overwrite,
                    Some('s') => break ExistingPolicy::Skip,
                    Some('c') => return Err(FilesError::Declined.into()),
                    _ => {}
                },
                PromptAnswer::None => break ExistingPolicy::KeepBoth,
                PromptAnswer::Interrupted => return Err(UsageError::Interrupted.into()),
            }
        };
        plan_roots(&offer.roots, Some(policy), exists).map_err(|names| FilesError::Exists(names).into())
    }

    async fn run(
        &mut self,
        connection: Connection,
        incoming: Arrived,
        destination: Destination,
    ) -> Result<Outcome, CommandError> {
        let mut paths = connection.path_changes();
        let mut line = PathLine::new(self.report);
        let mut bar = TransferBar::new(self.report);
        let result = {
            let accepted = incoming.accept(destination, Arc::clone(&self.progress));
            let mut accepted = std::pin::pin!(accepted);
            let mut interrupt = std::pin::pin!(interrupted());
            let again = (&self.options.reach, self.report);
            let newer = connect_after_stall(again, self.ticket(), &connection, &self.progress);
            let mut newer = std::pin::pin!(newer);
            loop {
                tokio::select! {
                    result = &mut accepted => break Some(result),
                    () = &mut interrupt => break None,
                    Some(path) = paths.next() => bar.suspend(|| line.show(&path)),
                    () = line.due() => line.refresh(),
                    () = bar.due() => bar.show(&self.progress, self.total),
                    newer = &mut newer => {
                        bar.clear();
                        return Ok(Outcome::Again(Some(Box::new(newer))));
                    }
                }
            }
        };
        bar.show(&self.progress, self.total);
        // The path of a short connection may be known only at its end.
        while let Ok(Some(path)) = timeout(Duration::ZERO, paths.next()).await {
            bar.suspend(|| line.show(&path));
        }
        bar.suspend(|| {
            line.end();
        });
        bar.clear();
        match result {
            None => Ok(self.stop(connection).await),
            Some(Ok(summary)) => {
                let _ = timeout(Duration::from_secs(10), connection.finish()).await;
                Ok(Outcome::Done(summary))
            }
            Some(Err(error)) => self.after_error(connection, FilesError::from(error).into()).await,
        }
    }

    async fn stop(&self, connection: Connection) -> Outcome {
        tokio::select! {
            () = connection.abort("the receiver stopped") => {}
            () = interrupted() => {}
        }
        Outcome::Interrupted
    }

    /// A lost connection is made again if the transfer was accepted; any other error ends the command.
    async fn after_error(
        &self,
        connection: Connection,
        error: CommandError,
    ) -> Result<Outcome, CommandError> {
        let is_lost = matches!(
            &error,
            CommandError::Files(FilesError::Transfer(TransferError::Lost(_))) | CommandError::Connection(_)
        );
        if !is_lost {
            // The last message says why.
            let _ = timeout(CLOSE_TIMEOUT, connection.finish()).await;
            if self.state.is_some() {
                report::kept(self.report, self.progress.figures().done);
            }
            return Err(error);
        }
        let reason = timeout(CLOSE_TIMEOUT, connection.closed()).await.ok();
        if self.state.is_none() {
            return Err(reason.map_or(error, CommandError::from));
        }
        if let CommandError::Files(error) = &error {
            report::waiting(self.report, error, reason.as_ref());
        }
        Ok(Outcome::Again(None))
    }
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.to_ascii_lowercase().as_str(), "y" | "yes" | "")
}

/// Connects again when nothing has arrived for some time: the sender may have died and come again, which the old connection would learn of much
/// later. Resolves with the new connection.
async fn connect_after_stall(
    (reach, report): (&ReachOptions, &Reporter),
    ticket: Option<Ticket>,
    connection: &Connection,
    progress: &Progress,
) -> Connection {
    let Some(ticket) = ticket else { return std::future::pending().await };
    let target = Target::Ticket(ticket);
    let (mut transferred, mut since) = (0, time::mono());
    loop {
        sleep(STALL_CHECK).await;
        let now = progress.figures().transferred;
        if now != transferred {
            (transferred, since) = (now, time::mono());
        }
        let is_path_lost = connection.path().is_none_or(|path| path.is_lost);
        let limit = if is_path_lost { LOST_STALL } else { STALL };
        if since.elapsed() < limit {
            continue;
        }
        if let Ok(newer) = reach.connect(&target, Protocol::FILES, report).await {
            return newer;
        }
    }
}
