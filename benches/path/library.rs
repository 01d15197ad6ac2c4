//! A transfer with the library only: a `Connection` between two processes, without pipes.

use anyhow::Context;
use ginnel::agent::{Agent, Config, PathPolicy};
use ginnel::internals::net::time;
use std::io::Write;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const CHUNK: usize = 128 << 10;

fn config() -> Config {
    Config::new().policy(PathPolicy::DirectOnly)
}

/// Prints a ticket, then receives one stream.
pub(super) async fn receive(server: &str, key: &str) -> anyhow::Result<()> {
    let mut listener = Agent::new(config().server(server.parse()?).key(key)).listen().await?;
    writeln!(std::io::stdout(), "{}", listener.ticket())?;
    let connection = listener.accept().await.context("the ticket is no longer valid")??;
    let (_send, mut recv) = connection.accept_bi().await?;
    let mut buffer = vec![0; CHUNK];
    while recv.read(&mut buffer).await? > 0 {}
    connection.finish().await?;
    Ok(())
}

/// Sends this many bytes to the holder of a ticket; returns how long it took.
pub(super) async fn send(ticket: &str, mut bytes: u64) -> anyhow::Result<Duration> {
    let connection = Agent::new(config()).connect(&ticket.parse()?).await?;
    let begin = time::mono();
    let (mut send, _recv) = connection.open_bi().await?;
    let buffer = vec![7; CHUNK];
    while bytes > 0 {
        let len = bytes.min(CHUNK as u64);
        send.write_all(&buffer[..usize::try_from(len)?]).await?;
        bytes -= len;
    }
    send.finish().await?;
    let took = begin.elapsed();
    connection.finish().await?;
    Ok(took)
}
