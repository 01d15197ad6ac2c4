//! Sends lines of standard input as end-to-end encrypted messages, and prints what arrives.
//!
//! ```text
//! cargo run --example messaging_client -- SERVER USER FOLDER PEER
//! ```
//!
//! SERVER runs `ginnel serve` with `messaging.enabled = true`. The account is registered at the first start; its keys are in FOLDER.

#![expect(clippy::print_stdout, reason = "an example prints to its user")]

use ginnel::messaging_client::{Account, Client, Event, PartyName, Protection, Receive};
use std::error::Error;
use std::path::Path;
use tokio::io::{AsyncBufReadExt, BufReader};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [server, user, folder, peer] = &arguments[..] else {
        return Err("usage: messaging_client SERVER USER FOLDER PEER".into());
    };
    let folder = Path::new(folder);
    let account = match Account::open(folder)? {
        Some(account) => account,
        None => Account::register(folder, &server.parse()?, user).await?,
    };
    if let Some(fingerprint) = account.fingerprint()? {
        println!("{user}: {fingerprint}");
    }
    let peer: PartyName = peer.parse()?;
    let mut client = Client::connect(&account, Receive::Everything).await?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    loop {
        tokio::select! {
            line = lines.next_line() => match line? {
                Some(line) => {
                    let sent = client.send(&peer, &line).await?;
                    println!("stored {}", sent.message_id);
                }
                None => break,
            },
            event = client.next_event() => {
                if let Some(number) = show(event?) {
                    client.acknowledge(number).await?;
                }
            }
        }
    }
    client.close().await?;
    Ok(())
}

/// Prints an event; returns its number if it is to be acknowledged. A program for a terminal must escape the text.
fn show(event: Event) -> Option<u64> {
    match event {
        Event::Message(message) => {
            let is_protected = message.protection == Protection::EndToEnd;
            let mark = if is_protected { "" } else { " (NOT ENCRYPTED)" };
            println!("{}{mark}: {:?}", message.from, message.text);
            Some(message.number)
        }
        Event::Receipt { number, message_id, state, .. } => {
            println!("{state:?} {message_id}");
            Some(number)
        }
        Event::Refused { number, from, reason, .. } => {
            println!("refused a message in the name of {from}: {reason}");
            Some(number)
        }
        Event::Pinned { party, fingerprint } => {
            println!("{party}: {fingerprint}");
            None
        }
        _ => None,
    }
}
