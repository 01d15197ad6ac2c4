//! What two agents tell each other over their QUIC connection beside the user's streams. Each message is a unidirectional stream.
//!
//! `done`: everything received has been used. `candidates` and one candidate a line: found after the call, whose token at the server has expired,
//! so that the signalling carries none.

use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

const DONE: &[u8] = b"done";
const CANDIDATES: &str = "candidates\n";
/// The longest message.
const MAX_MESSAGE: usize = 16 << 10;
/// Time limit of a message.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// What the call learns of the connection.
#[derive(Debug)]
pub(super) enum ControlEvent {
    /// It can carry messages.
    Opened(quinn::Connection),
    /// The other side has found candidates.
    Candidates(Vec<String>),
}

/// A message of the other side.
#[derive(Debug, PartialEq, Eq)]
enum ControlMessage {
    Done,
    Candidates(Vec<String>),
}

/// The reader of the other side's messages; dropping it ends the reader.
#[derive(Debug)]
pub(super) struct ControlStreams {
    task: JoinHandle<()>,
    done: watch::Receiver<bool>,
}

impl ControlStreams {
    /// Reads until the connection ends. `call` gets the connection and the candidates.
    pub(super) fn start(connection: quinn::Connection, call: Option<mpsc::Sender<ControlEvent>>) -> Self {
        let (done, done_rx) = watch::channel(false);
        Self { task: tokio::spawn(read(connection, call, done)), done: done_rx }
    }

    /// Waits until the other side has used everything; `false` if the connection has ended before.
    pub(super) async fn done(&self) -> bool {
        self.done.clone().wait_for(|is_done| *is_done).await.is_ok()
    }
}

impl Drop for ControlStreams {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn read(
    connection: quinn::Connection,
    call: Option<mpsc::Sender<ControlEvent>>,
    done: watch::Sender<bool>,
) {
    if let Some(call) = &call {
        let _ = call.send(ControlEvent::Opened(connection.clone())).await;
    }
    // One message at a time: the other side cannot make this side keep more.
    while let Ok(mut stream) = connection.accept_uni().await {
        let message = timeout(MESSAGE_TIMEOUT, stream.read_to_end(MAX_MESSAGE)).await;
        match (message.ok().and_then(Result::ok).and_then(|bytes| parse(&bytes)), &call) {
            (Some(ControlMessage::Done), _) => drop(done.send_replace(true)),
            (Some(ControlMessage::Candidates(candidates)), Some(call)) => {
                let _ = call.send(ControlEvent::Candidates(candidates)).await;
            }
            (Some(ControlMessage::Candidates(_)) | None, _) => {}
        }
    }
}

fn parse(message: &[u8]) -> Option<ControlMessage> {
    if message == DONE {
        return Some(ControlMessage::Done);
    }
    let candidates = std::str::from_utf8(message).ok()?.strip_prefix(CANDIDATES)?;
    Some(ControlMessage::Candidates(candidates.lines().map(str::to_owned).collect()))
}

/// Tells the other side that everything was used; the stream shows when it has arrived.
pub(super) async fn send_done(
    connection: &quinn::Connection,
) -> Result<quinn::SendStream, quinn::ConnectionError> {
    send(connection, DONE).await
}

/// Tells the other side what was found.
pub(super) async fn send_candidates(connection: quinn::Connection, candidates: Vec<String>) {
    let message = format!("{CANDIDATES}{}", candidates.join("\n"));
    if let Err(error) = send(&connection, message.as_bytes()).await {
        tracing::debug!(%error, "the candidates were not sent");
    }
}

async fn send(
    connection: &quinn::Connection,
    message: &[u8],
) -> Result<quinn::SendStream, quinn::ConnectionError> {
    let mut stream = connection.open_uni().await?;
    if stream.write_all(message).await.is_err() || stream.finish().is_err() {
        return Err(connection.closed().await);
    }
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_a_confirmation_or_candidates() {
        assert_eq!(parse(b"done"), Some(ControlMessage::Done));
        let candidates = vec!["a b".to_owned(), "c".to_owned()];
        assert_eq!(parse(b"candidates\na b\nc"), Some(ControlMessage::Candidates(candidates)));
        for other in [&b"done\n"[..], b"", b"candidates", b"candidates\n\xff", b"something"] {
            assert_eq!(parse(other), None, "{other:?}");
        }
    }
}
