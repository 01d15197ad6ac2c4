//! The application protocol `ping/1`: every listener answers it beside its own, without using up what it offers.
//!
//! Each request is a stream. Its first byte is the kind:
//!
//! | kind | request | answer |
//! | --- | --- | --- |
//! | 0 | 8 bytes | the same bytes |
//! | 1 | nothing | a description of the answering side's network: JSON of at most 4096 bytes; nothing if it has none |

use super::config::Config;
use super::connection::{Connection, RecvStream, SendStream};
#[cfg(feature = "cli")]
use super::error::ConnectionError;
#[cfg(feature = "cli")]
use crate::net::time;
use futures_util::future::BoxFuture;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

const ECHO: u8 = 0;
const DESCRIBE: u8 = 1;
const ECHO_LEN: usize = 8;
/// Longest description.
#[cfg(feature = "cli")]
const MAX_DESCRIPTION: u64 = 4096;
/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection is served.
const SERVE_TIME: Duration = Duration::from_secs(600);
/// Connections that are served at a time, and requests of one.
const MAX_CONNECTIONS: usize = 8;
const MAX_REQUESTS: usize = 4;

static CONNECTIONS: Semaphore = Semaphore::const_new(MAX_CONNECTIONS);

/// Describes the network of this side, as text.
pub(super) type Describe = Arc<dyn Fn() -> BoxFuture<'static, String> + Send + Sync>;

/// Returns what describes the network of an agent with this configuration.
#[cfg(feature = "cli")]
pub(super) fn describe(config: &Config) -> Describe {
    let config = config.clone();
    Arc::new(move || {
        let config = config.clone();
        Box::pin(async move { super::diagnosis::describe(&config).await })
    })
}

/// Without the commands nothing diagnoses a network.
#[cfg(not(feature = "cli"))]
pub(super) fn describe(_config: &Config) -> Describe {
    Arc::new(|| Box::pin(async { String::new() }))
}

/// Answers the requests of a connection until it ends.
pub(super) async fn respond(connection: Connection, describe: Describe) {
    let Ok(_permit) = CONNECTIONS.try_acquire() else {
        return connection.abort("too many pings at a time").await;
    };
    let _ = timeout(SERVE_TIME, serve(&connection, &describe)).await;
    connection.abort("done").await;
}

async fn serve(connection: &Connection, describe: &Describe) {
    let mut requests = JoinSet::new();
    while let Ok(stream) = connection.accept_bi().await {
        if requests.len() == MAX_REQUESTS {
            let _ = requests.join_next().await;
        }
        requests.spawn(timeout(REQUEST_TIMEOUT, answer(stream, Arc::clone(describe))));
        while requests.try_join_next().is_some() {}
    }
}

async fn answer((mut send, mut recv): (SendStream, RecvStream), describe: Describe) -> io::Result<()> {
    match recv.read_u8().await? {
        ECHO => {
            let mut bytes = [0; ECHO_LEN];
            recv.read_exact(&mut bytes).await?;
            send.write_all(&bytes).await?;
        }
        DESCRIBE => send.write_all(describe().await.as_bytes()).await?,
        _ => return Err(io::ErrorKind::InvalidData.into()),
    }
    send.finish().await
}

/// Asks the other side once; returns the round-trip time.
#[cfg(feature = "cli")]
pub(crate) async fn echo(connection: &Connection) -> Result<Duration, ConnectionError> {
    let bytes: [u8; ECHO_LEN] = rand::random();
    let started = time::mono();
    let (mut send, mut recv) = connection.open_bi().await?;
    let exchange = async {
        send.write_u8(ECHO).await?;
        send.write_all(&bytes).await?;
        let mut answer = [0; ECHO_LEN];
        recv.read_exact(&mut answer).await?;
        if answer == bytes { Ok(()) } else { Err(io::Error::from(io::ErrorKind::InvalidData)) }
    };
    exchange.await.map_err(|error| ConnectionError::Transport(error.into()))?;
    let round_trip = started.elapsed();
    let _ = send.finish().await;
    Ok(round_trip)
}

/// Asks the other side for a description of its network; empty if it has none.
#[cfg(feature = "cli")]
pub(crate) async fn description(connection: &Connection) -> Result<String, ConnectionError> {
    let (mut send, recv) = connection.open_bi().await?;
    let exchange = async {
        send.write_u8(DESCRIBE).await?;
        let mut text = String::new();
        recv.take(MAX_DESCRIPTION).read_to_string(&mut text).await?;
        io::Result::Ok(text)
    };
    let text = timeout(REQUEST_TIMEOUT, exchange).await.map_err(|_| ConnectionError::PeerTimedOut)?;
    text.map_err(|error| ConnectionError::Transport(error.into()))
}
