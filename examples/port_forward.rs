//! A local port that leads to a TCP service on the other machine: `cargo run --example port_forward -- share HOST[:PORT] KEY 127.0.0.1:22` prints a
//! ticket; on the other machine `cargo run --example port_forward -- forward TICKET 127.0.0.1:2222`, then `ssh -p 2222 127.0.0.1`.
//!
//! Each TCP connection is a stream of one connection between the two agents. The end of one direction is passed on by itself.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example prints to its user")]

use ginnel::agent::{Agent, Config, Connection, RecvStream, SendStream};
use std::error::Error;
use std::io;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

const USAGE: &str =
    "usage: port_forward share HOST[:PORT] KEY TARGET | port_forward forward TICKET ADDRESS:PORT";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["share", server, key, target] => {
            share(Config::new().server(server.parse()?).key(*key), (*target).to_owned()).await
        }
        ["forward", ticket, local] => forward(&Agent::default(), ticket, local).await,
        _ => Err(USAGE.into()),
    }
}

/// Accepts connections of all who have the ticket.
async fn share(config: Config, target: String) -> Result<(), Box<dyn Error>> {
    let mut listener = Agent::new(config).listen().await?;
    println!("{}", listener.ticket());
    while let Some(accepted) = listener.accept().await {
        match accepted {
            Ok(connection) => drop(tokio::spawn(serve(connection, target.clone()))),
            Err(error) => eprintln!("a call failed: {error}"),
        }
    }
    Err("the ticket is no longer valid".into())
}

/// Connects each stream of a connection to the target.
async fn serve(connection: Connection, target: String) {
    while let Ok(stream) = connection.accept_bi().await {
        let target = target.clone();
        tokio::spawn(async move {
            // A target that refuses resets the stream, because its halves are dropped.
            match TcpStream::connect(&target).await {
                Ok(socket) => report(splice(socket, stream).await),
                Err(error) => eprintln!("{target}: {error}"),
            }
        });
    }
}

/// Accepts TCP connections and opens a stream for each.
async fn forward(agent: &Agent, ticket: &str, local: &str) -> Result<(), Box<dyn Error>> {
    let connection = agent.connect(&ticket.parse()?).await?;
    let listener = TcpListener::bind(local).await?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (socket, _) = tokio::select! {
            accepted = listener.accept() => accepted?,
            error = connection.closed() => return Err(error.into()),
        };
        let stream = connection.open_bi().await?;
        tokio::spawn(async move { report(splice(socket, stream).await) });
    }
}

/// Copies both directions until both have ended.
async fn splice(mut socket: TcpStream, (mut send, mut recv): (SendStream, RecvStream)) -> io::Result<()> {
    let (mut from_socket, mut to_socket) = socket.split();
    let up = async {
        tokio::io::copy(&mut from_socket, &mut send).await?;
        send.finish().await
    };
    let down = async {
        tokio::io::copy(&mut recv, &mut to_socket).await?;
        to_socket.shutdown().await
    };
    tokio::try_join!(up, down).map(|_| ())
}

fn report(result: io::Result<()>) {
    if let Err(error) = result {
        eprintln!("a connection ended badly: {error}");
    }
}
