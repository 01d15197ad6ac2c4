//! A TCP proxy: one connection to the server per connection, and tokio copies between them.

use std::net::SocketAddr;
use tokio::io::{copy_bidirectional, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};

/// The large buffers.
const LARGE_BUFFER: usize = 64 * 1024;

/// Runs the proxy, with buffers of 64 KiB or with tokio's of 8 KiB.
pub(super) fn run(own: SocketAddr, server: SocketAddr, has_large_buffers: bool) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(own).await?;
        loop {
            let (mut client, _) = listener.accept().await?;
            let mut server = TcpStream::connect(server).await?;
            client.set_nodelay(true)?;
            server.set_nodelay(true)?;
            tokio::spawn(async move {
                match has_large_buffers {
                    true => {
                        copy_bidirectional_with_sizes(&mut client, &mut server, LARGE_BUFFER, LARGE_BUFFER)
                            .await
                    }
                    false => copy_bidirectional(&mut client, &mut server).await,
                }
            });
        }
    })
}
