//! Standard input and output through one stream of a connection, each direction to its own end.

use crate::agent::{Connection, Error, RecvStream};
use clap::Args;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

const CHUNK: usize = 128 * 1024;
/// How long the reason for a broken stream may take to be known.
const REASON_TIME: Duration = Duration::from_secs(2);

/// How long standard input may say nothing after the other side has ended before people are told why the pipe does not.
const NOTICE_TIME: Duration = Duration::from_secs(3);

/// Which directions are wanted.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(super) struct Directions {
    /// Only send standard input; what the other side sends is not taken
    #[arg(long, conflicts_with = "recv_only")]
    pub(super) send_only: bool,
    /// Only receive; standard input is not read
    #[arg(long)]
    pub(super) recv_only: bool,
}

/// Standard input as what is to be sent.
pub(super) struct Input<'a> {
    pub(super) directions: Directions,
    /// Notified when the other side has sent all.
    pub(super) their_end: &'a Notify,
}

impl Input<'_> {
    /// Sends standard input until its end, until it is `declined`, or, on a terminal, until the other side has sent all: who sits there would wait
    /// for nothing. Anywhere else an answer may still come, and `notice` is called when it takes long.
    pub(super) async fn send(
        &self,
        send: &mut (impl AsyncWrite + Unpin),
        declined: impl Future<Output = ()>,
        notice: impl Fn(),
    ) -> Result<u64, Stop> {
        if self.directions.recv_only {
            return Ok(0);
        }
        let is_terminal = io::stdin().is_terminal();
        let mut total = 0;
        let left_alone = async {
            self.their_end.notified().await;
            if !is_terminal {
                sleep(NOTICE_TIME).await;
                notice();
                std::future::pending::<()>().await;
            }
        };
        tokio::pin!(declined);
        let sent = tokio::select! {
            biased;
            () = &mut declined => Ok(()),
            () = left_alone => Ok(()),
            sent = upwards(tokio::io::stdin(), send, &mut total) => sent,
        };
        match sent {
            // It may have been declined while it was written to.
            Err(stop) if timeout(Duration::ZERO, declined).await.is_err() => Err(stop),
            _ => Ok(total),
        }
    }
}

/// Says whether nobody will ever see standard output.
fn is_output_nowhere() -> bool {
    let device =
        |file: &std::fs::File| file.metadata().ok().map(|data| data.rdev()).filter(|device| *device != 0);
    let output = io::stdout().as_fd().try_clone_to_owned().map(std::fs::File::from);
    let null = std::fs::File::open("/dev/null");
    matches!((output, null), (Ok(output), Ok(null)) if device(&output).is_some() && device(&output) == device(&null))
}

/// Which side opens the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The connector.
    Opens,
    /// The listener.
    Accepts,
}

/// How a pipe ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Everything arrived on both sides.
    Done {
        /// Bytes from standard input.
        sent: u64,
        /// Bytes to standard output.
        received: u64,
    },
    /// It did not.
    Failed(Error),
    /// Ended by a signal; the other side was told.
    Interrupted,
}

/// Why a direction stopped.
pub(super) enum Stop {
    /// The stream broke.
    Stream(io::Error),
    /// Standard output takes no more.
    Output(io::Error),
}

/// Pipes until both directions have ended, or `interrupted` resolves: once it is polite, twice it is now.
pub(super) async fn run(
    connection: Connection,
    ends: (End, Directions),
    interrupted: impl AsyncFn(),
    notice: impl Fn(),
) -> Outcome {
    let piped = tokio::select! {
        piped = both_ways(&connection, ends, notice) => piped,
        () = interrupted() => {
            tokio::select! {
                () = connection.abort("interrupted") => {}
                () = interrupted() => {}
            }
            return Outcome::Interrupted;
        }
    };
    match piped {
        Ok((sent, received)) => {
            let finished = tokio::select! {
                finished = connection.finish() => finished,
                () = interrupted() => return Outcome::Interrupted,
            };
            match finished {
                Ok(()) => Outcome::Done { sent, received },
                Err(error) => Outcome::Failed(error),
            }
        }
        Err(error) => {
            connection.abort("it could not go on").await;
            Outcome::Failed(error)
        }
    }
}

async fn both_ways(
    connection: &Connection,
    (end, directions): (End, Directions),
    notice: impl Fn(),
) -> Result<(u64, u64), Error> {
    let (mut send, recv) = match end {
        End::Opens => connection.open_bi().await?,
        End::Accepts => connection.accept_bi().await?,
    };
    let (their_end, our_end) = (Notify::new(), Notify::new());
    let up = async {
        let declined = send.declined();
        let total = Input { directions, their_end: &their_end }.send(&mut send, declined, notice).await?;
        send.finish().await.map_err(Stop::Stream)?;
        our_end.notify_one();
        Ok(total)
    };
    let down = async {
        let total = receive(recv, directions, &our_end).await;
        their_end.notify_one();
        total
    };
    let moving = async { tokio::try_join!(up, down) };
    // A direction that waits for standard input would not notice the end.
    let moved = tokio::select! {
        biased;
        moved = moving => moved,
        reason = connection.closed() => return Err(reason),
    };
    match moved {
        Ok(bytes) => Ok(bytes),
        Err(Stop::Output(error)) => Err(Error::Local(format!("standard output: {error}"))),
        Err(Stop::Stream(error)) => match timeout(REASON_TIME, connection.closed()).await {
            Ok(reason) => Err(reason),
            Err(_) => Err(Error::PeerEnded(error.to_string())),
        },
    }
}

/// Receives to standard output. Nothing is wanted where that was asked for, and nothing more where this side has sent all and nobody sees the output.
async fn receive(mut recv: RecvStream, directions: Directions, our_end: &Notify) -> Result<u64, Stop> {
    let useless = async {
        if !directions.send_only {
            our_end.notified().await;
            if !is_output_nowhere() {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        received = downwards(&mut recv, tokio::io::stdout()) => received,
        () = useless => {
            recv.decline();
            close_stdout().map_err(Stop::Output)?;
            Ok(0)
        }
    }
}

/// Lets whoever reads standard output see its end while the other direction still goes on.
fn close_stdout() -> io::Result<()> {
    let nowhere = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
    Ok(rustix::stdio::dup2_stdout(nowhere)?)
}

/// Sends standard input until its end, and leaves that to be said.
async fn upwards(
    mut input: impl AsyncRead + Unpin,
    send: &mut (impl AsyncWrite + Unpin),
    total: &mut u64,
) -> Result<(), Stop> {
    let mut buffer = vec![0; CHUNK];
    loop {
        // An input that cannot be read is one that has ended.
        let len = input.read(&mut buffer).await.unwrap_or(0);
        if len == 0 {
            return Ok(());
        }
        send.write_all(&buffer[..len]).await.map_err(Stop::Stream)?;
        *total += len as u64;
    }
}

/// Writes what comes to standard output, and ends that.
pub(super) async fn downwards(
    mut recv: impl AsyncRead + Unpin,
    mut output: impl AsyncWrite + Unpin,
) -> Result<u64, Stop> {
    let mut buffer = vec![0; CHUNK];
    let mut total = 0;
    loop {
        let len = recv.read(&mut buffer).await.map_err(Stop::Stream)?;
        if len == 0 {
            output.flush().await.map_err(Stop::Output)?;
            close_stdout().map_err(Stop::Output)?;
            return Ok(total);
        }
        output.write_all(&buffer[..len]).await.map_err(Stop::Output)?;
        output.flush().await.map_err(Stop::Output)?;
        total += len as u64;
    }
}
