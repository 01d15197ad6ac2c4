//! Sends a text to a server behind a gateway and prints what comes back: `cargo run --example gateway_echo_client -- GATEWAY ID TEXT`.
//!
//! GATEWAY is `HOST[:PORT]`, `ws://HOST[:PORT]` or `wss://HOST[:PORT]`.

#![expect(clippy::print_stdout, reason = "an example prints to its user")]

use ginnel::gateway::client::ClientBuilder;
use std::error::Error;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [gateway, id, text] = arguments.as_slice() else {
        return Err("usage: gateway_echo_client GATEWAY ID TEXT".into());
    };
    let client = ClientBuilder::new(gateway).connect().await?;
    let mut connection = client.dial(id.parse()?).await?;
    connection.send(text.clone().into()).await?;
    let answer = connection.receive().await?.ok_or("the server closed the connection")?;
    println!("{}", String::from_utf8_lossy(&answer));
    client.close().await;
    Ok(())
}
