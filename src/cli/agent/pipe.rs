//! Standard input and output over one stream of a connection; each direction ends on its own.

use super::INTERRUPTED;
use super::error::CommandError;
use super::path_line;
use super::report::Reporter;
use super::standard_streams;
use super::terminal::{close_stdout, interrupted, is_stdout_null};
use crate::agent::{Connection, ConnectionError, RecvStream};
use bytes::{Bytes, BytesMut};
use clap::Args;
use std::io::{self, IsTerminal};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

const CHUNK: usize = 128 * 1024;
/// A buffer with less room is not read into.
const SHORTEST_READ: usize = 16 * 1024;
/// Time limit for the reason of a broken stream to arrive.
const REASON_TIMEOUT: Duration = Duration::from_secs(2);

/// Time from the end of the other side until a notice that standard input is still open.
const NOTICE_DELAY: Duration = Duration::from_secs(3);

/// The directions to use.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(super) struct Directions {
    /// Only send standard input; decline what the other side sends
    #[arg(long, conflicts_with = "recv_only")]
    pub(super) send_only: bool,
    /// Only receive; do not read standard input
    #[arg(long)]
    pub(super) recv_only: bool,
}

/// Standard input as the source of what is sent.
pub(super) struct Input<'a> {
    pub(super) directions: Directions,
    /// Notified when the other side has finished.
    pub(super) their_end: &'a Notify,
}

impl Input<'_> {
    /// Sends standard input until its end, until the other side has `declined` it, or, on a terminal, until the other side has finished.
    /// Other input than a terminal may end with an answer; `notice` is called if it takes long.
    pub(super) async fn send(
        &self,
        write: impl AsyncFnMut(Bytes) -> io::Result<()>,
        declined: impl Future<Output = ()>,
        notice: impl Fn(),
    ) -> Result<u64, Stop> {
        if self.directions.recv_only {
            return Ok(0);
        }
        let is_terminal = io::stdin().is_terminal();
        let mut total = 0;
        let abandoned = async {
            self.their_end.notified().await;
            if !is_terminal {
                sleep(NOTICE_DELAY).await;
                notice();
                std::future::pending::<()>().await;
            }
        };
        tokio::pin!(declined);
        let sent = tokio::select! {
            biased;
            () = &mut declined => Ok(()),
            () = abandoned => Ok(()),
            sent = send_input(standard_streams::input(), write, &mut total) => sent,
        };
        match sent {
            // The stream may have been declined during the write.
            Err(stop) if timeout(Duration::ZERO, declined).await.is_err() => Err(stop),
            _ => Ok(total),
        }
    }
}

/// The side that opens the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamOrigin {
    /// This side, the connector.
    Local,
    /// The other side, of a listener.
    Remote,
}

/// How a pipe ended.
#[derive(Debug)]
enum Outcome {
    /// Everything has arrived on both sides.
    Done {
        /// Bytes from standard input.
        sent: u64,
        /// Bytes to standard output.
        received: u64,
    },
    Failed(CommandError),
    /// Ended by a signal.
    Interrupted,
}

/// Why a direction stopped.
pub(super) enum Stop {
    /// The stream broke.
    Stream(io::Error),
    /// Standard output cannot be written.
    Output(io::Error),
}

/// Connects standard input and output to a connection, and reports its paths; returns the exit code.
pub(super) async fn run(
    connection: Connection,
    origin: StreamOrigin,
    directions: Directions,
    report: &Reporter,
) -> Result<u8, CommandError> {
    let changes = connection.path_changes();
    let copying = copy(connection, (origin, directions), || report.input_open());
    match path_line::show_while(report, changes, copying).await {
        Outcome::Done { sent, received } => {
            report.closed(sent, received);
            Ok(0)
        }
        Outcome::Failed(error) => Err(error),
        Outcome::Interrupted => Ok(INTERRUPTED),
    }
}

/// Copies until both directions have ended, or a signal arrives: the first informs the other side, the second ends at once.
async fn copy(connection: Connection, stream: (StreamOrigin, Directions), notice: impl Fn()) -> Outcome {
    let piped = tokio::select! {
        piped = copy_both(&connection, stream, notice) => piped,
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
                Err(error) => Outcome::Failed(error.into()),
            }
        }
        Err(error) => {
            connection.abort("it could not go on").await;
            Outcome::Failed(error)
        }
    }
}

async fn copy_both(
    connection: &Connection,
    (origin, directions): (StreamOrigin, Directions),
    notice: impl Fn(),
) -> Result<(u64, u64), CommandError> {
    let (mut send, recv) = match origin {
        StreamOrigin::Local => connection.open_bi().await?,
        StreamOrigin::Remote => connection.accept_bi().await?,
    };
    let (their_end, our_end) = (Notify::new(), Notify::new());
    let up = async {
        let declined = send.declined();
        let write = async |bytes| send.write_chunk(bytes).await;
        let total = Input { directions, their_end: &their_end }.send(write, declined, notice).await?;
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
    // A direction that waits for standard input does not see the end of the connection.
    let moved = tokio::select! {
        biased;
        moved = moving => moved,
        reason = connection.closed() => return Err(reason.into()),
    };
    match moved {
        Ok(bytes) => Ok(bytes),
        Err(Stop::Output(error)) => Err(CommandError::Output(error)),
        Err(Stop::Stream(error)) => match timeout(REASON_TIMEOUT, connection.closed()).await {
            Ok(reason) => Err(reason.into()),
            Err(_) => Err(ConnectionError::Transport(error.into()).into()),
        },
    }
}

/// Receives to standard output. Declines the stream with `--send-only`, and when this side has finished and standard output is `/dev/null`.
async fn receive(mut recv: RecvStream, directions: Directions, our_end: &Notify) -> Result<u64, Stop> {
    let unwanted = async {
        if !directions.send_only {
            our_end.notified().await;
            if !is_stdout_null() {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        received = receive_output(&mut recv, standard_streams::output()) => received,
        () = unwanted => {
            recv.decline();
            close_stdout().map_err(Stop::Output)?;
            Ok(0)
        }
    }
}

/// Sends standard input until its end, without finishing the stream.
async fn send_input(
    mut input: impl AsyncRead + Unpin,
    mut write: impl AsyncFnMut(Bytes) -> io::Result<()>,
    total: &mut u64,
) -> Result<(), Stop> {
    let mut buffer = BytesMut::new();
    loop {
        if buffer.capacity() < SHORTEST_READ {
            buffer.reserve(CHUNK);
        }
        // A read error counts as the end of the input.
        let len = input.read_buf(&mut buffer).await.unwrap_or(0);
        if len == 0 {
            return Ok(());
        }
        write(buffer.split().freeze()).await.map_err(Stop::Stream)?;
        *total += len as u64;
    }
}

/// Writes what arrives to standard output and closes it.
pub(super) async fn receive_output(
    mut recv: impl AsyncRead + Unpin,
    mut output: standard_streams::Output,
) -> Result<u64, Stop> {
    let mut buffer = vec![0; CHUNK];
    let mut total = 0;
    loop {
        let len = recv.read(&mut buffer).await.map_err(Stop::Stream)?;
        if len == 0 {
            standard_streams::close(output).await.map_err(Stop::Output)?;
            return Ok(total);
        }
        output.write_all(&buffer[..len]).await.map_err(Stop::Output)?;
        output.flush().await.map_err(Stop::Output)?;
        total += len as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn input_is_sent_as_it_was_read_whether_in_small_or_large_parts() {
        let (mut writer, reader) = tokio::io::duplex(300 * 1024);
        let text: Vec<u8> = (0..1_000_000_u32).map(|number| number.to_le_bytes()[1]).collect();
        let writing = async {
            for part in text[..1000].chunks(7).chain(text[1000..].chunks(200_000)) {
                writer.write_all(part).await.unwrap();
                tokio::task::yield_now().await;
            }
            drop(writer);
        };
        let (mut sent, mut total) = (Vec::new(), 0);
        let write = async |bytes: Bytes| {
            sent.extend_from_slice(&bytes);
            Ok(())
        };
        let (result, ()) = tokio::join!(send_input(reader, write, &mut total), writing);
        assert!(result.is_ok() && total == 1_000_000 && sent == text);
    }
}
