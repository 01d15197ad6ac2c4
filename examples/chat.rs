//! Lines of text between two terminals: `cargo run --example chat -- listen HOST[:PORT] [KEY]` prints a ticket; on the other machine
//! `cargo run --example chat -- connect TICKET [KEY]`.
//!
//! Standard input goes to the other side, its lines to standard output; standard error shows the path whenever it changes. The end of standard
//! input ends the chat once the other side has ended too.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example prints to its user")]

use ginnel::agent::{Agent, Config, Connection, PathChanges, RecvStream, SendStream};
use std::error::Error;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

const USAGE: &str = "usage: chat listen HOST[:PORT] [KEY] | chat connect TICKET [KEY]";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (mode, place) = (arguments.next().ok_or(USAGE)?, arguments.next().ok_or(USAGE)?);
    let config = arguments.next().map_or_else(Config::new, |key| Config::new().key(key));
    let (connection, streams) = match mode.as_str() {
        "listen" => {
            let connection = accept_one(config.server(place.parse()?)).await?;
            let streams = connection.accept_bi().await?;
            (connection, streams)
        }
        "connect" => {
            let connection = Agent::new(config).connect(&place.parse()?).await?;
            let mut streams = connection.open_bi().await?;
            // The other side learns of a stream when the first bytes arrive.
            streams.0.write_all(b"*** connected\n").await?;
            (connection, streams)
        }
        _ => return Err(USAGE.into()),
    };
    let paths = tokio::spawn(show_paths(connection.path_changes()));
    let (send, recv) = streams;
    tokio::try_join!(send_lines(send), print_lines(recv))?;
    connection.finish().await?;
    paths.abort();
    Ok(())
}

/// Prints the ticket and waits for whoever has it.
async fn accept_one(config: Config) -> Result<Connection, Box<dyn Error>> {
    let mut listener = Agent::new(config).listen().await?;
    println!("{}", listener.ticket());
    loop {
        match listener.accept().await.ok_or("the ticket is no longer valid")? {
            Ok(connection) => return Ok(connection),
            Err(error) => eprintln!("a call failed: {error}"),
        }
    }
}

async fn show_paths(mut changes: PathChanges) {
    while let Some(path) = changes.next().await {
        eprintln!("*** {path}");
    }
}

async fn send_lines(mut send: SendStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        send.write_all(format!("{line}\n").as_bytes()).await?;
    }
    send.finish().await
}

async fn print_lines(recv: RecvStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(recv).lines();
    while let Some(line) = lines.next_line().await? {
        println!("{}", line.escape_debug());
    }
    Ok(())
}
