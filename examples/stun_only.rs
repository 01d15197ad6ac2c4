//! A STUN server in a page: the library's codec and Binding rules over a socket of one's own.
//!
//! `cargo run --example stun_only -- 127.0.0.1:3478`, then any STUN client.

#![expect(clippy::print_stdout, reason = "an example prints to its user")]

use ginnel::stun::Message;
use ginnel::stun_server;
use std::net::UdpSocket;

fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let socket = UdpSocket::bind(address)?;
    println!("listening on {}", socket.local_addr()?);
    let mut buffer = [0; 1500];
    loop {
        let (len, client) = socket.recv_from(&mut buffer)?;
        let answer =
            Message::parse(&buffer[..len]).ok().and_then(|request| stun_server::respond(&request, client));
        if let Some(answer) = answer {
            socket.send_to(&answer, client)?;
        }
    }
}
