//! TCP and Unix sockets of this host, with the same operations.

use super::wire::{HostPort, Refusal, RefusalCode};
use socket2::SockRef;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
#[cfg(unix)]
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

/// Time limit for one address of a target to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The same if others are left to try.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(3);
/// Time limit for a name to be resolved.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Most addresses of a name that are tried.
const MAX_ADDRESSES: usize = 8;
/// Pause after a connection could not be accepted, such as for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection to a program on this host or in its network.
#[derive(Debug)]
pub(crate) enum LocalStream {
    /// TCP.
    Tcp(TcpStream),
    /// The Unix domain.
    #[cfg(unix)]
    Unix(UnixStream),
}

/// Calls a method that both kinds of socket have.
macro_rules! each {
    ($stream:expr, $inner:ident => $call:expr) => {
        match $stream {
            Self::Tcp($inner) => $call,
            #[cfg(unix)]
            Self::Unix($inner) => $call,
        }
    };
}

impl From<TcpStream> for LocalStream {
    fn from(stream: TcpStream) -> Self {
        let _ = stream.set_nodelay(true);
        Self::Tcp(stream)
    }
}

impl LocalStream {
    /// Waits until there is something to read, without a buffer for it.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        each!(self, stream => stream.readable().await)
    }

    /// Reads what is there.
    pub(crate) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        each!(self, stream => stream.try_read(buffer))
    }

    /// Writes all bytes.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            each!(self, stream => stream.writable().await)?;
            match each!(self, stream => stream.try_write(bytes)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Ends the sending direction.
    pub(crate) fn finish(&self) {
        // The other end may have closed it already.
        let _ = each!(self, stream => SockRef::from(stream).shutdown(Shutdown::Write));
    }

    /// Closes a TCP connection with a reset; the program at the other end sees that bytes are missing.
    pub(crate) fn reset(self) {
        if let Self::Tcp(stream) = &self {
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }

    /// Waits until the connection was reset, even if nothing is read or written.
    pub(crate) async fn broken(&self) -> io::Error {
        loop {
            if let Err(error) = each!(self, stream => stream.ready(Interest::ERROR).await) {
                return error;
            }
            match each!(self, stream => stream.take_error()) {
                Ok(Some(error)) | Err(error) => return error,
                Ok(None) => {}
            }
            let clear = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
            let _ = each!(self, stream => stream.try_io(Interest::ERROR, clear));
        }
    }
}

/// A local address to listen at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LocalAddress {
    /// TCP or UDP.
    Ip(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl std::fmt::Display for LocalAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Accepts connections at a local address.
#[derive(Debug)]
pub(crate) enum LocalListener {
    /// TCP.
    Tcp(TcpListener),
    /// The Unix domain; the file is removed when this is dropped.
    #[cfg(unix)]
    Unix(UnixListener, PathBuf),
}

impl LocalListener {
    /// Listens.
    ///
    /// # Errors
    /// The address is in use, or is not one of this host.
    pub(crate) async fn bind(address: &LocalAddress) -> io::Result<Self> {
        match address {
            LocalAddress::Ip(address) => Ok(Self::Tcp(TcpListener::bind(address).await?)),
            #[cfg(unix)]
            LocalAddress::Unix(path) => Ok(Self::Unix(bind_unix(path).await?, path.clone())),
            #[cfg(not(unix))]
            LocalAddress::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Returns the address that it listens at.
    pub(crate) fn address(&self) -> io::Result<LocalAddress> {
        match self {
            Self::Tcp(listener) => Ok(LocalAddress::Ip(listener.local_addr()?)),
            #[cfg(unix)]
            Self::Unix(_, path) => Ok(LocalAddress::Unix(path.clone())),
        }
    }

    /// Waits for a connection. If none can be accepted, as without a free descriptor, it tries again.
    pub(crate) async fn accept(&self) -> LocalStream {
        loop {
            let accepted = match self {
                Self::Tcp(listener) => listener.accept().await.map(|(stream, _)| stream.into()),
                #[cfg(unix)]
                Self::Unix(listener, _) => {
                    listener.accept().await.map(|(stream, _)| LocalStream::Unix(stream))
                }
            };
            match accepted {
                Ok(stream) => return stream,
                Err(error) => {
                    tracing::debug!(%error, "a connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

impl Drop for LocalListener {
    fn drop(&mut self) {
        #[cfg(unix)]
        if let Self::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Listens at a path. A socket that nobody listens at any more is replaced.
#[cfg(unix)]
async fn bind_unix(path: &std::path::Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::FileTypeExt;
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let is_socket = std::fs::symlink_metadata(path).is_ok_and(|data| data.file_type().is_socket());
            let abandoned = UnixStream::connect(path).await;
            if !is_socket || !abandoned.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
}

/// Returns the refusal that an error of this host becomes.
pub(crate) fn refusal(error: &io::Error) -> Refusal {
    let code = match error.kind() {
        io::ErrorKind::ConnectionRefused => RefusalCode::ConnectionRefused,
        io::ErrorKind::TimedOut => RefusalCode::TimedOut,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => RefusalCode::HostUnreachable,
        io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable => RefusalCode::AddressInUse,
        _ => RefusalCode::Failed,
    };
    let detail = match error.kind() {
        io::ErrorKind::ConnectionRefused => "nothing listens there".to_owned(),
        io::ErrorKind::TimedOut => "no answer in time".to_owned(),
        io::ErrorKind::NotFound => "there is no such socket".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    };
    Refusal::new(code, detail)
}

/// Returns the addresses of a host that are permitted.
///
/// # Errors
/// The name does not exist, or none of its addresses is permitted.
pub(crate) async fn resolve(
    target: &HostPort,
    permits: impl Fn(std::net::IpAddr) -> bool,
) -> Result<Vec<SocketAddr>, Refusal> {
    let looked_up =
        timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((target.host.as_str(), target.port))).await;
    let unknown =
        |detail: &str| Refusal::new(RefusalCode::HostUnreachable, format!("{}: {detail}", target.host));
    let all: Vec<SocketAddr> = match looked_up {
        Ok(Ok(addresses)) => addresses.take(MAX_ADDRESSES).collect(),
        Ok(Err(_)) => return Err(unknown("the name has no address")),
        Err(_) => return Err(unknown("the name was not resolved in time")),
    };
    let permitted: Vec<SocketAddr> = all.iter().copied().filter(|address| permits(address.ip())).collect();
    match (&all[..], &permitted[..]) {
        ([], _) => Err(unknown("the name has no address")),
        ([first, ..], []) => {
            let detail = format!(
                "{} is not a public address, and its network is not shared (--allow-net)",
                first.ip()
            );
            Err(Refusal::new(RefusalCode::NotPermitted, detail))
        }
        _ => Ok(permitted),
    }
}

/// Connects to the first address that accepts.
///
/// # Errors
/// The refusal of the last address.
pub(crate) async fn connect_tcp(addresses: &[SocketAddr]) -> Result<LocalStream, Refusal> {
    let mut refused = Refusal::new(RefusalCode::HostUnreachable, "no address");
    for (index, address) in addresses.iter().enumerate() {
        let is_last = index + 1 == addresses.len();
        let limit = if is_last { CONNECT_TIMEOUT } else { ADDRESS_TIMEOUT };
        match timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream.into()),
            Ok(Err(error)) => refused = refusal(&error),
            Err(elapsed) => refused = refusal(&elapsed.into()),
        }
    }
    Err(refused)
}

/// Connects to a Unix socket.
///
/// # Errors
/// There is none, or nobody listens at it.
#[cfg(unix)]
pub(crate) async fn connect_unix(path: &str) -> Result<LocalStream, Refusal> {
    match timeout(CONNECT_TIMEOUT, UnixStream::connect(path)).await {
        Ok(Ok(stream)) => Ok(LocalStream::Unix(stream)),
        Ok(Err(error)) => Err(refusal(&error)),
        Err(elapsed) => Err(refusal(&elapsed.into())),
    }
}

/// This system has no Unix sockets.
#[cfg(not(unix))]
pub(crate) async fn connect_unix(_path: &str) -> Result<LocalStream, Refusal> {
    Err(Refusal::new(RefusalCode::Unsupported, "this system has no Unix sockets"))
}
