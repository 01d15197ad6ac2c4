//! Sends a line to `echo_server` and prints what comes back: `cargo run --example echo_client -- TICKET TEXT [KEY]`.

#![expect(clippy::print_stdout, reason = "an example prints to its user")]

use ginnel::agent::{Agent, Config};
use std::error::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: echo_client TICKET TEXT [KEY]";
    let (ticket, text) = (arguments.next().ok_or(usage)?, arguments.next().ok_or(usage)?);
    let config = arguments.next().map_or_else(Config::new, |key| Config::new().key(key));
    let connection = Agent::new(config).connect(&ticket.parse()?).await?;
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_all(text.as_bytes()).await?;
    send.finish().await?;
    let mut echo = String::new();
    recv.read_to_string(&mut echo).await?;
    connection.finish().await?;
    println!("{echo}");
    Ok(())
}
