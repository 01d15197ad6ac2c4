//! A proxy that knows nothing of frames: for each connection one to the server, and tokio copies between them.

use std::net::SocketAddr;
use tokio::io::{copy_bidirectional, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};

/// Buffers of the roomy one.
const ROOM: usize = 64 * 1024;

/// Is the proxy until it is ended; with buffers of 64 KiB if it is `roomy`, and of 8 KiB, as tokio has them, if not.
pub(super) fn run(own: SocketAddr, server: SocketAddr, roomy: bool) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(own).await?;
        loop {
            let (mut client, _) = listener.accept().await?;
            let mut server = TcpStream::connect(server).await?;
            client.set_nodelay(true)?;
            server.set_nodelay(true)?;
            tokio::spawn(async move {
                match roomy {
                    true => copy_bidirectional_with_sizes(&mut client, &mut server, ROOM, ROOM).await,
                    false => copy_bidirectional(&mut client, &mut server).await,
                }
            });
        }
    })
}
