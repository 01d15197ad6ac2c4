//! TCP to a name that has several addresses ([RFC 8305 section 5](https://www.rfc-editor.org/rfc/rfc8305#section-5)).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// The delay before the next address is tried.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Connects to the address that accepts first. Each attempt starts when the one before fails or after a delay.
///
/// # Errors
/// The error of the last attempt, when all fail.
pub(crate) async fn connect(addresses: &[SocketAddr]) -> io::Result<(TcpStream, SocketAddr)> {
    let mut waiting = addresses.iter().copied();
    let mut attempts = JoinSet::new();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        let next = waiting.next();
        let is_last = next.is_none();
        if let Some(address) = next {
            attempts.spawn(async move { TcpStream::connect(address).await.map(|stream| (stream, address)) });
        }
        let delay = if is_last { Duration::MAX } else { ATTEMPT_DELAY };
        match timeout(delay, attempts.join_next()).await {
            Ok(Some(Ok(Ok(connected)))) => return Ok(connected),
            Ok(Some(Ok(Err(error)))) => last = error,
            Ok(None) if is_last => return Err(last),
            Ok(_) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn an_address_that_refuses_or_is_silent_does_not_keep_the_next_one_from_being_tried() {
        let there = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = there.local_addr().unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        // A queue that is full answers no SYN.
        let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        full.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        full.listen(0).unwrap();
        let silent = full.local_addr().unwrap().as_socket().unwrap();
        let _fills = TcpStream::connect(silent).await.unwrap();
        for addresses in [&[address][..], &[closed, address], &[silent, address], &[silent, closed, address]]
        {
            assert_eq!(connect(addresses).await.unwrap().1, address, "{addresses:?}");
        }
        assert!(connect(&[closed]).await.is_err());
        assert!(connect(&[]).await.is_err());
    }
}
