//! `agent send`: offers files and folders until one receiver has them all.

use super::error::FilesError;
use super::progress_bar::TransferBar;
use super::report;
use super::state::{SendFiles, SendState, Transfers};
use super::units;
use crate::agent::{Connection, PathChanges, PathInfo, Protocol, RecvStream, SendStream};
use crate::cli::agent::error::CommandError;
use crate::cli::agent::offer::{Offer as Listening, OfferOptions};
use crate::cli::agent::path_line::PathLine;
use crate::cli::agent::report::{Reporter, VERSION};
use crate::cli::agent::terminal::interrupted;
use crate::cli::agent::{INTERRUPTED, OutputOptions};
use crate::file_transfer::{
    CancelReason, Id, Offer, OfferedRoot, Progress, Root, Source, Summary, Survey, TransferError, Visitor,
};
use crate::net::time;
use clap::Args;
use serde_json::json;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Most paths on the command line.
const MAX_PATHS: usize = 10_000;
/// Time limit for an interrupted transfer to inform the other side.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long an offer may wait for everything to be counted.
const COUNT_TIMEOUT: Duration = Duration::from_secs(1);

/// Options of `agent send`.
#[derive(Debug, Args)]
pub(in crate::cli::agent) struct Send {
    /// Files and folders to send
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    /// Send what symbolic links point to; by default links inside of a folder are sent as links, and others are left out
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    offer: OfferOptions,
    #[command(flatten)]
    output: OutputOptions,
}

type Peer = Visitor<SendStream, RecvStream>;

/// A receiver that has connected.
struct Visit {
    connection: Connection,
    peer: Peer,
}

/// How the transfer over one connection has ended.
struct Ended {
    connection: Connection,
    result: Result<Summary, TransferError>,
}

type Running = Pin<Box<dyn Future<Output = Ended>>>;

/// What is sent, and to whom.
struct Sender<'a> {
    report: &'a Reporter,
    source: Source,
    files: SendFiles,
    state: SendState,
    /// The receiver that has accepted.
    receiver: Arc<OnceLock<Id>>,
    ticket: String,
    survey: Arc<Survey>,
    progress: Arc<Progress>,
    /// When the first receiver came.
    began: Option<Instant>,
}

/// The transfer that runs, and what is shown of it.
struct Session<'a> {
    running: Option<Running>,
    /// The receiver at the other end of it.
    visitor: Option<Id>,
    paths: Option<PathChanges>,
    line: PathLine<'a>,
    bar: TransferBar<'a>,
}

impl Send {
    pub(in crate::cli::agent) fn output(&self) -> &OutputOptions {
        &self.output
    }

    fn roots(&self) -> Result<Vec<Root>, FilesError> {
        if self.paths.len() > MAX_PATHS {
            let path = format!("more than {MAX_PATHS} paths; a folder that contains them is one");
            return Err(FilesError::Path { path, source: std::io::ErrorKind::InvalidInput.into() });
        }
        let root = |path: &PathBuf| {
            Root::new(path).map_err(|source| FilesError::Path { path: path.display().to_string(), source })
        };
        self.paths.iter().map(root).collect()
    }

    /// Returns what identifies this command: the same one goes on with its transfer.
    fn key(&self, roots: &[Root]) -> [u8; 32] {
        let mut text = vec![u8::from(self.follow)];
        for root in roots {
            text.extend_from_slice(root.path.as_os_str().as_bytes());
            text.push(0);
        }
        for server in &self.offer.network.server {
            text.extend_from_slice(server.to_string().as_bytes());
            text.push(0);
        }
        let digest = ring::digest::digest(&ring::digest::SHA256, &text);
        std::array::from_fn(|at| digest.as_ref()[at])
    }

    /// Runs the command and returns the exit code.
    pub(in crate::cli::agent) async fn run(self, report: &Reporter) -> Result<u8, CommandError> {
        let roots = self.roots()?;
        let (files, state, is_begun) = Transfers::open(self.offer.state())?.open_send(&self.key(&roots))?;
        let survey = Arc::new(Survey::default());
        let (counting, counted) = (Arc::clone(&survey), roots.clone());
        let follow = self.follow;
        std::thread::spawn(move || counting.run(&counted, follow));
        if is_begun {
            report.note("goes on with the transfer that was begun; its receiver runs `agent recv` again");
        }
        let config = self.offer.network.config(Protocol::FILES)?.listen_secret(state.secret);
        let listening = self.offer.start_with(config, "recv", report).await?;
        let ticket = listening.ticket().map(ToString::to_string).unwrap_or_default();
        let source = Source { roots, follow, journal: files.journal.clone(), busy: Arc::default() };
        let progress = Arc::default();
        let receiver = Arc::new(state.receiver().map_or_else(OnceLock::new, OnceLock::from));
        let mut sender =
            Sender { report, source, files, state, receiver, ticket, survey, progress, began: None };
        let done = sender.serve(listening).await;
        sender.survey.stop();
        match done? {
            Some(summary) => {
                let exit = sender.finish(summary);
                sender.files.forget();
                exit
            }
            None => Ok(INTERRUPTED),
        }
    }
}

/// Opens the stream of a new connection and waits for its first message.
async fn greet(connection: Connection) -> Option<Visit> {
    let (writer, reader) = connection.accept_bi().await.ok()?;
    let peer = Visitor::greet(writer, reader).await.ok()?;
    Some(Visit { connection, peer })
}

async fn next_path(paths: &mut Option<PathChanges>) -> Option<PathInfo> {
    match paths {
        Some(changes) => match changes.next().await {
            Some(path) => Some(path),
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

async fn ended(running: &mut Option<Running>) -> Ended {
    match running {
        Some(running) => running.await,
        None => std::future::pending().await,
    }
}

impl Sender<'_> {
    /// Serves one receiver after the other until one has everything; `None` if a signal ends it.
    async fn serve(&mut self, mut listening: Listening<'_>) -> Result<Option<Summary>, CommandError> {
        let report = self.report;
        let mut greeted = JoinSet::new();
        let mut session = Session {
            running: None,
            visitor: None,
            paths: None,
            line: PathLine::new(report),
            bar: TransferBar::new(report),
        };
        loop {
            tokio::select! {
                accepted = listening.accept() => match accepted {
                    Ok(connection) => drop(greeted.spawn(greet(connection))),
                    Err(error) => {
                        session.bar.clear();
                        return if error.exit_code() == INTERRUPTED { self.interrupt(session).await } else { Err(error) };
                    }
                },
                Some(visit) = greeted.join_next() => {
                    if let Ok(Some(visit)) = visit {
                        self.handle_visit(visit, &mut session).await;
                    }
                }
                end = ended(&mut session.running) => {
                    session.running = None;
                    if let Some(summary) = self.handle_end(end, &mut session).await? {
                        return Ok(Some(summary));
                    }
                }
                Some(path) = next_path(&mut session.paths) => session.bar.suspend(|| session.line.show(&path)),
                () = session.line.due() => session.line.refresh(),
                () = session.bar.due(), if session.running.is_some() => {
                    let (_, total, is_counted) = self.survey.counted();
                    session.bar.show(&self.progress, Some(total).filter(|_| is_counted));
                }
            }
        }
    }

    async fn interrupt(&self, session: Session<'_>) -> Result<Option<Summary>, CommandError> {
        // The connection is closed when it is dropped; the receiver keeps what it has.
        drop(session.running);
        let wait = tokio::time::sleep(CLOSE_TIMEOUT);
        tokio::select! { () = wait => {}, () = interrupted() => {} }
        self.report.write(
            || {
                "Stopped  run the same `agent send` again to go on; the other side keeps what it has"
                    .to_owned()
            },
            || json!({"v": VERSION, "t": "stopped", "done": self.progress.figures().done}),
        );
        Ok(None)
    }

    /// Begins the transfer over a new connection. The receiver that has accepted may come again; nobody else takes its place.
    async fn handle_visit(&mut self, visit: Visit, session: &mut Session<'_>) {
        let Visit { connection, peer } = visit;
        let known = self.receiver.get().or(session.visitor.as_ref().filter(|_| session.running.is_some()));
        let is_other = known.is_some_and(|known| *known != peer.receiver);
        let is_other_transfer = peer.transfer.is_some_and(|transfer| transfer != self.state.transfer);
        let refusal = match (is_other, is_other_transfer) {
            (true, _) => Some(CancelReason::Busy),
            (_, true) => Some(CancelReason::OtherTransfer),
            _ => None,
        };
        if let Some(reason) = refusal {
            peer.refuse(reason).await;
            let _ = timeout(CLOSE_TIMEOUT, connection.finish()).await;
            return;
        }
        session.running = None;
        session.visitor = Some(peer.receiver);
        session.paths = Some(connection.path_changes());
        session.bar.begin();
        self.began.get_or_insert_with(time::mono);
        let offer = self.offer().await;
        session.running = Some(self.begin((connection, peer), offer));
    }

    async fn offer(&self) -> Offer {
        let mut waited = Duration::ZERO;
        while !self.survey.counted().2 && waited < COUNT_TIMEOUT {
            let step = Duration::from_millis(10);
            tokio::time::sleep(step).await;
            waited += step;
        }
        let (files, bytes, is_counted) = self.survey.counted();
        let roots = self.source.roots.iter();
        let roots = roots.map(|root| OfferedRoot { is_folder: root.is_folder, name: root.name.clone() });
        Offer {
            transfer: self.state.transfer,
            ticket: self.ticket.clone(),
            sender: report::machine_name(),
            files,
            bytes,
            is_counted,
            roots: roots.collect(),
        }
    }

    fn begin(&self, (connection, peer): (Connection, Peer), offer: Offer) -> Running {
        let (source, progress) = (self.source.clone(), Arc::clone(&self.progress));
        let (saver, mut state, report) = (self.files.saver(), self.state.clone(), self.report.clone());
        let known = Arc::clone(&self.receiver);
        Box::pin(async move {
            let receiver = peer.receiver;
            let result = async {
                let accepted = peer.offer(offer).await?;
                let _ = known.set(receiver);
                state.set_receiver(receiver);
                if let Err(error) = saver.save(&state) {
                    report.note(&format!("{error}: this transfer cannot go on after a restart"));
                }
                accepted.run(source, progress).await
            };
            Ended { result: result.await, connection }
        })
    }

    /// Handles the end of one connection; returns the summary if that was the last one.
    async fn handle_end(
        &mut self,
        end: Ended,
        session: &mut Session<'_>,
    ) -> Result<Option<Summary>, CommandError> {
        let Ended { connection, result } = end;
        let (_, total, is_counted) = self.survey.counted();
        session.bar.show(&self.progress, Some(total).filter(|_| is_counted));
        // The path of a short connection may be known only at its end.
        while let Ok(Some(path)) = timeout(Duration::ZERO, next_path(&mut session.paths)).await {
            session.bar.suspend(|| session.line.show(&path));
        }
        session.bar.suspend(|| {
            session.line.end();
        });
        session.paths = None;
        match result {
            Ok(summary) => {
                session.bar.clear();
                let _ = timeout(Duration::from_secs(10), connection.finish()).await;
                return Ok(Some(summary));
            }
            Err(TransferError::Cancelled(reason @ (CancelReason::Declined | CancelReason::Exists))) => {
                session.bar.clear();
                let _ = timeout(CLOSE_TIMEOUT, connection.finish()).await;
                return Err(FilesError::from(TransferError::Cancelled(reason)).into());
            }
            Err(error @ TransferError::State { .. }) => {
                session.bar.clear();
                connection.abort("the sender cannot keep its state").await;
                return Err(FilesError::from(error).into());
            }
            Err(error) => {
                let reason = timeout(CLOSE_TIMEOUT, connection.closed()).await.ok();
                let error = FilesError::from(error);
                session.bar.suspend(|| report::waiting(self.report, &error, reason.as_ref()));
                drop(connection);
            }
        }
        Ok(None)
    }

    /// Reports the end, and returns the exit code.
    fn finish(&self, summary: Summary) -> Result<u8, CommandError> {
        report::finish(self.report, summary, &self.progress, self.began.unwrap_or_else(time::mono))
    }
}

/// Returns a text such as `video.mkv` or `photos and 3 more`, and the size.
pub(super) fn title(offer: &Offer, first: &str) -> String {
    let more = match offer.roots.len() {
        0 | 1 => String::new(),
        count => format!(" and {} more", count - 1),
    };
    let is_file = offer.roots.len() == 1 && offer.roots.iter().all(|root| !root.is_folder);
    let files = if is_file { String::new() } else { format!("{}, ", units::files(offer.files)) };
    let counted = if offer.is_counted { "" } else { "at least " };
    format!("{first}{more}  {counted}{files}{}", units::bytes(offer.bytes))
}
