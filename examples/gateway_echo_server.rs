//! Sends back whatever clients send to its id: `cargo run --example gateway_echo_server -- GATEWAY ID KEY`.
//!
//! GATEWAY is `ws://HOST[:PORT]`, `wss://HOST[:PORT]`, or `HOST:PORT` of the HMAC listener; `ginnel key --gateway` prints the KEY. Goes on until
//! it is stopped, and connects again when the gateway was away.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example prints to its user")]

use ginnel::gateway::client::{Key, Raw, ServerBuilder, VirtualConnection};
use std::error::Error;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [gateway, id, key] = arguments.as_slice() else {
        return Err("usage: gateway_echo_server GATEWAY ID KEY".into());
    };
    let server = ServerBuilder::hmac(gateway, id.parse()?, Key::new(key.as_bytes())?).connect().await?;
    println!("serving {id}");
    loop {
        let connection = server.accept().await?;
        tokio::spawn(async move {
            let (id, client) = (connection.id(), connection.remote());
            match echo(connection).await {
                Ok(messages) => eprintln!("echoed {messages} messages of client {client} on {id}"),
                Err(error) => eprintln!("client {client} on {id}: {error}"),
            }
        });
    }
}

async fn echo(mut connection: VirtualConnection<Raw>) -> Result<u64, Box<dyn Error + Send + Sync>> {
    let mut messages = 0;
    while let Some(message) = connection.receive().await? {
        connection.send(message).await?;
        messages += 1;
    }
    Ok(messages)
}
