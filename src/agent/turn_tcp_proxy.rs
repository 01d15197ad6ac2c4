//! TURN over TCP for a TURN client that supports only UDP: a loopback socket that forwards to one TCP connection to the server.
//!
//! Messages on the stream have no framing of their own: a STUN header has a length, ChannelData is padded to four bytes
//! ([RFC 8656 section 12.5](https://www.rfc-editor.org/rfc/rfc8656#section-12.5)).

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tokio::time::timeout;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest message of either kind and one more read.
const STREAM_BUFFER: usize = 2 * 65_536;

/// The first message in a stream buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TurnMessageLen {
    /// Length of the message in bytes.
    message: usize,
    /// Length of the message and its padding.
    advance: usize,
}

/// The buffer does not start with a TURN message, so that the stream cannot be parsed any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FramingError;

/// Returns the first message in `bytes`; `None` while it is incomplete.
fn frame(bytes: &[u8]) -> Result<Option<TurnMessageLen>, FramingError> {
    let &[kind, _, high, low, ..] = bytes else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([high, low]));
    let (message, advance) = match kind {
        0x00..=0x3F => (20 + length, 20 + length),
        0x40..=0x7F => (4 + length, (4 + length).next_multiple_of(4)),
        _ => return Err(FramingError),
    };
    Ok((bytes.len() >= advance).then_some(TurnMessageLen { message, advance }))
}

/// Returns the message in a datagram and the length of its padding on the stream; `None` if it is not a complete TURN message.
fn to_stream(datagram: &[u8]) -> Option<(&[u8], usize)> {
    let &[kind, _, high, low, ..] = datagram else { return None };
    let length = usize::from(u16::from_be_bytes([high, low]));
    let message = datagram.get(..length + if kind < 0x40 { 20 } else { 4 })?;
    let padding = if kind < 0x40 { 0 } else { message.len().next_multiple_of(4) - message.len() };
    Some((message, padding))
}

/// A running proxy; dropping it closes the connection.
#[derive(Debug)]
pub(super) struct TurnTcpProxy {
    local: SocketAddr,
    task: JoinHandle<()>,
}

impl TurnTcpProxy {
    /// Connects to `server` and opens the loopback socket.
    pub(super) async fn open(server: SocketAddr) -> io::Result<Self> {
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(server)).await??;
        stream.set_nodelay(true)?;
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let local = socket.local_addr()?;
        let task = tokio::spawn(async move {
            if let Err(error) = run(socket, stream).await {
                tracing::debug!(%error, "the TCP connection to the relay ended");
            }
        });
        Ok(Self { local, task })
    }

    /// Returns the loopback address to use as the TURN server's.
    pub(super) fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

impl Drop for TurnTcpProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(socket: UdpSocket, stream: TcpStream) -> io::Result<()> {
    // The first sender owns the proxy; datagrams of other local programs are ignored.
    let mut first = [0; 65_536];
    let (len, client) = socket.recv_from(&mut first).await?;
    socket.connect(client).await?;
    let (reader, mut writer) = stream.into_split();
    write_message(&mut writer, first.get(..len).unwrap_or_default()).await?;
    tokio::select! {
        result = upstream(&socket, writer) => result,
        result = downstream(&socket, reader) => result,
    }
}

async fn upstream(socket: &UdpSocket, mut writer: OwnedWriteHalf) -> io::Result<()> {
    let mut buffer = vec![0; 65_536];
    loop {
        let len = socket.recv(&mut buffer).await?;
        write_message(&mut writer, &buffer[..len]).await?;
    }
}

async fn write_message(writer: &mut OwnedWriteHalf, datagram: &[u8]) -> io::Result<()> {
    let Some((message, padding)) = to_stream(datagram) else { return Ok(()) };
    writer.write_all(message).await?;
    writer.write_all(&[0; 3][..padding]).await
}

async fn downstream(socket: &UdpSocket, mut reader: OwnedReadHalf) -> io::Result<()> {
    let mut buffer = vec![0; STREAM_BUFFER];
    let mut filled = 0;
    loop {
        let read = reader.read(&mut buffer[filled..]).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        filled += read;
        let mut used = 0;
        while let Some(next) = frame(&buffer[used..filled])
            .map_err(|FramingError| io::Error::from(io::ErrorKind::InvalidData))?
        {
            // The client's socket may be full; then the datagram is lost, as on any UDP path.
            let _ = socket.send(&buffer[used..used + next.message]).await;
            used += next.advance;
        }
        buffer.copy_within(used..filled, 0);
        filled -= used;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    fn stun(body: &[u8]) -> Vec<u8> {
        let len = u8::try_from(body.len()).unwrap();
        [&[0, 1, 0, len, 0x21, 0x12, 0xA4, 0x42][..], &[9; 12], body].concat()
    }

    #[test]
    fn messages_are_found_wherever_the_stream_is_cut() {
        let data = [0x40, 1, 0, 5, 1, 2, 3, 4, 5, 0, 0, 0];
        let whole = [stun(&[1; 8]), data.to_vec(), stun(&[])].concat();
        for cut in 0..=whole.len() {
            let mut at = 0;
            let mut found = Vec::new();
            while let Some(next) = frame(&whole[at..cut]).unwrap() {
                found.push(next.message);
                at += next.advance;
            }
            let expected: &[usize] = match cut {
                0..28 => &[],
                28..40 => &[28],
                40..60 => &[28, 9],
                _ => &[28, 9, 20],
            };
            assert_eq!(found, expected, "cut at {cut}");
        }
        assert_eq!(frame(&[0x80, 0, 0, 0]), Err(FramingError));
    }

    #[test]
    fn channel_data_is_padded_and_other_datagrams_are_dropped() {
        assert_eq!(
            to_stream(&[0x40, 0, 0, 5, 1, 2, 3, 4, 5]),
            Some((&[0x40, 0, 0, 5, 1, 2, 3, 4, 5][..], 3))
        );
        assert_eq!(to_stream(&[0x40, 0, 0, 1, 1, 0, 0, 0]), Some((&[0x40, 0, 0, 1, 1][..], 3)));
        assert_eq!(to_stream(&[0x40, 0, 0, 9, 1]), None);
        assert_eq!(to_stream(&stun(&[])), Some((&stun(&[])[..], 0)));
        assert_eq!(to_stream(&[0, 1]), None);
    }

    #[tokio::test]
    async fn datagrams_cross_the_stream_both_ways() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let proxy = TurnTcpProxy::open(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        client.connect(proxy.local_addr()).await.unwrap();
        client.send(&stun(&[1; 4])).await.unwrap();
        client.send(&[0x40, 0, 0, 2, 7, 8]).await.unwrap();
        let mut seen = [0; 32];
        server.read_exact(&mut seen).await.unwrap();
        assert_eq!(seen[..24], stun(&[1; 4]));
        assert_eq!(seen[24..], [0x40, 0, 0, 2, 7, 8, 0, 0]);
        server.write_all(&seen[24..]).await.unwrap();
        let mut back = [0; 64];
        let len = client.recv(&mut back).await.unwrap();
        assert_eq!(back[..len], [0x40, 0, 0, 2, 7, 8]);
    }
}
