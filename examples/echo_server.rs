//! Sends back whatever the holder of its ticket sends: `cargo run --example echo_server -- HOST[:PORT] [KEY]`.
//!
//! It prints the ticket for `echo_client` and accepts connections until it is stopped.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example prints to its user")]

use ginnel::agent::{Agent, Config, Connection};
use std::error::Error;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let server = arguments.next().ok_or("usage: echo_server HOST[:PORT] [KEY]")?;
    let mut config = Config::new().server(server.parse()?);
    if let Some(key) = arguments.next() {
        config = config.key(key);
    }
    let mut listener = Agent::new(config).listen().await?;
    println!("{}", listener.ticket());
    while let Some(accepted) = listener.accept().await {
        match accepted {
            Ok(connection) => {
                tokio::spawn(async move {
                    if let Err(error) = echo(connection).await {
                        eprintln!("a connection ended badly: {error}");
                    }
                });
            }
            Err(error) => eprintln!("a call failed: {error}"),
        }
    }
    Ok(())
}

async fn echo(connection: Connection) -> Result<(), Box<dyn Error + Send + Sync>> {
    let (mut send, mut recv) = connection.accept_bi().await?;
    let bytes = tokio::io::copy(&mut recv, &mut send).await?;
    send.finish().await?;
    eprintln!("echoed {bytes} bytes, {}", connection.path().map(|path| path.to_string()).unwrap_or_default());
    connection.finish().await?;
    Ok(())
}
