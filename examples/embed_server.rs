//! Embeds the whole server: configure, start, print ICE servers, stop.
//!
//! `cargo run --example embed_server -- 127.0.0.1 STATE_FOLDER`; it runs until its standard input ends.

#![expect(clippy::print_stdout, reason = "an example prints to its user")]

use ginnel::{Server, ServerConfig, State};
use std::path::Path;
use tokio::io::AsyncReadExt;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let listen = arguments.next().unwrap_or_else(|| "127.0.0.1".to_owned());
    let folder = arguments.next().unwrap_or_else(|| "state".to_owned());

    let state = State::open(Path::new(&folder))?;
    // One port, which the system chooses; `ServerConfig::default()` has the others and the gateway too.
    let config = ServerConfig { listen: vec![listen.parse()?], port: 0, ..ServerConfig::minimal() };
    let server = Server::start(config, &state).await?;
    println!("listening on {}", server.info().listen[0]);
    println!("{}", server.info().ice_servers("guest"));

    tokio::io::stdin().read_to_end(&mut Vec::new()).await?;
    server.shutdown().await;
    Ok(())
}
