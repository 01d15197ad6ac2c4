//! A file to another machine: `cargo run --example send_file -- send HOST[:PORT] KEY FILE` prints a ticket; on the other machine
//! `cargo run --example send_file -- receive TICKET FOLDER`.
//!
//! The stream has the length of the name (1 byte), the name, the length of the file (8 bytes, big-endian), and the file.

#![expect(clippy::print_stdout, reason = "an example prints to its user")]

use ginnel::agent::{Agent, Config, Connection};
use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const BUFFER: usize = 64 << 10;
const USAGE: &str = "usage: send_file send HOST[:PORT] KEY FILE | send_file receive TICKET FOLDER";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["send", server, key, file] => {
            let mut listener = Agent::new(Config::new().server(server.parse()?).key(*key)).listen().await?;
            println!("{}", listener.ticket());
            let connection = listener.accept().await.ok_or("the ticket is no longer valid")??;
            let sent = send(&connection, Path::new(file)).await;
            end(connection, sent).await
        }
        ["receive", ticket, folder] => {
            let connection = Agent::default().connect(&ticket.parse()?).await?;
            let received = receive(&connection, Path::new(folder)).await;
            end(connection, received).await
        }
        _ => Err(USAGE.into()),
    }
}

/// Ends a connection; the other side learns whether it went well.
async fn end(connection: Connection, result: Result<String, Box<dyn Error>>) -> Result<(), Box<dyn Error>> {
    match result {
        Ok(text) => {
            connection.finish().await?;
            println!("{text}");
            Ok(())
        }
        Err(error) => {
            connection.abort(&error.to_string()).await;
            Err(error)
        }
    }
}

async fn send(connection: &Connection, path: &Path) -> Result<String, Box<dyn Error>> {
    let name = path.file_name().and_then(|name| name.to_str()).ok_or("the file has no name")?;
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    let (mut stream, _answer) = connection.open_bi().await?;
    stream.write_u8(u8::try_from(name.len())?).await?;
    stream.write_all(name.as_bytes()).await?;
    stream.write_u64(len).await?;
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => stream.write_all(&buffer[..count]).await?,
        }
    }
    // The other side accepts everything or stops the stream.
    stream.finish().await?;
    Ok(format!("sent {len} bytes of {name}"))
}

async fn receive(connection: &Connection, folder: &Path) -> Result<String, Box<dyn Error>> {
    let (_answer, mut stream) = connection.accept_bi().await?;
    let mut name = vec![0; stream.read_u8().await?.into()];
    stream.read_exact(&mut name).await?;
    let path = safe_path(folder, &String::from_utf8(name)?).ok_or("the name of the file is not safe")?;
    let len = stream.read_u64().await?;
    // A file that is there is never overwritten.
    let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        match stream.read(&mut buffer).await? {
            0 => break,
            count => file.write_all(&buffer[..count])?,
        }
    }
    file.sync_all()?;
    let received = file.metadata()?.len();
    if received != len {
        return Err(format!("received {received} of {len} bytes").into());
    }
    Ok(format!("received {received} bytes: {}", path.display()))
}

/// Returns the path of a file directly in `folder`: the other side chooses only a plain name.
fn safe_path(folder: &Path, name: &str) -> Option<PathBuf> {
    let is_plain = |c: char| c.is_alphanumeric() || "-_. ".contains(c);
    let is_safe = !name.starts_with('.') && !name.is_empty() && name.chars().all(is_plain);
    is_safe.then(|| folder.join(name))
}
