//! Standard input and output through one stream of a connection, each direction to its own end.

use crate::agent::{Connection, Error};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

const CHUNK: usize = 128 * 1024;
/// How long the reason for a broken stream may take to be known.
const REASON_TIME: Duration = Duration::from_secs(2);

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
pub(super) async fn run(connection: Connection, end: End, interrupted: impl AsyncFn()) -> Outcome {
    let piped = tokio::select! {
        piped = both_ways(&connection, end) => piped,
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

async fn both_ways(connection: &Connection, end: End) -> Result<(u64, u64), Error> {
    let (mut send, recv) = match end {
        End::Opens => connection.open_bi().await?,
        End::Accepts => connection.accept_bi().await?,
    };
    let up = async {
        let total = upwards(tokio::io::stdin(), &mut send).await?;
        send.finish().await.map_err(Stop::Stream)?;
        Ok(total)
    };
    let moving = async { tokio::try_join!(up, downwards(recv, tokio::io::stdout())) };
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

/// Lets whoever reads standard output see its end while the other direction still goes on.
fn close_stdout() -> io::Result<()> {
    let nowhere = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
    Ok(rustix::stdio::dup2_stdout(nowhere)?)
}

/// Sends standard input until its end, and leaves that to be said.
pub(super) async fn upwards(
    mut input: impl AsyncRead + Unpin,
    send: &mut (impl AsyncWrite + Unpin),
) -> Result<u64, Stop> {
    let mut buffer = vec![0; CHUNK];
    let mut total = 0;
    loop {
        // An input that cannot be read is one that has ended.
        let len = input.read(&mut buffer).await.unwrap_or(0);
        if len == 0 {
            return Ok(total);
        }
        send.write_all(&buffer[..len]).await.map_err(Stop::Stream)?;
        total += len as u64;
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
