//! The gateway's WebSockets: frames pass through as their bytes come, and who is idle keeps no buffer.

use crate::dataplane::stream_limits::CLOSE_TIME;
use crate::gateway::Handle;
use crate::gateway::handshake::ANSWER;
use crate::gateway::service::Proven;
use crate::gateway::websocket::{Inflow, Outflow, Whole, write_close, write_message, write_pong};
use crate::net::upgrade;
use axum::extract::Request;
use axum::response::Response;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Bytes read at a time.
const READ_ROOM: usize = 8 * 1024;

/// A client's WebSocket, without its framing.
pub(super) type Stream = TokioIo<Upgraded>;

/// Accepts a WebSocket, which `serve` serves from then on.
pub(super) fn accept<F: Future<Output = ()> + Send + 'static>(
    mut request: Request,
    serve: impl FnOnce(Stream) -> F + Send + 'static,
) -> Response {
    let Some(accept) = upgrade::accept(request.headers()) else { return upgrade::refusal() };
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(stream) = upgraded.await {
            serve(TokioIo::new(stream)).await;
        }
    });
    upgrade::switching(accept, None)
}

/// Reads once, into room that is there for the moment alone; `None` at the end.
async fn receive<T>(
    stream: &mut (impl AsyncRead + Unpin),
    mut take: impl FnMut(&[u8]) -> T,
) -> io::Result<Option<T>> {
    poll_fn(|context| {
        let mut room = [const { MaybeUninit::uninit() }; READ_ROOM];
        let mut room = ReadBuf::uninit(&mut room);
        ready!(Pin::new(&mut *stream).poll_read(context, &mut room))?;
        let filled = room.filled();
        Poll::Ready(Ok(if filled.is_empty() { None } else { Some(take(filled)) }))
    })
    .await
}

async fn say(stream: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let mut out = Vec::new();
    write_message(message, &mut out);
    stream.write_all(&out).await?;
    stream.flush().await
}

/// Shakes hands with a server, each piece one message; returns what it sends next as well, as far as that was read.
pub(super) async fn handshake(stream: &mut Stream, handle: &Handle) -> io::Result<(Proven, Inflow, Vec<u8>)> {
    let refused = || io::Error::from(io::ErrorKind::PermissionDenied);
    let longest = longest(handle);
    let mut inflow = Inflow::new(Whole::Exactly(ANSWER), longest);
    let challenge = handle.challenge()?;
    say(stream, &challenge).await?;
    let (mut answer, mut early) = (Vec::new(), Vec::new());
    while answer.len() < ANSWER {
        let taken = receive(stream, |bytes| {
            let count = inflow.take(bytes, &mut answer)?;
            early.extend_from_slice(&bytes[count..]);
            Ok::<_, crate::gateway::websocket::WebSocketError>(())
        });
        taken.await?.ok_or_else(refused)?.map_err(io::Error::other)?;
        if inflow.is_closed {
            return Err(refused());
        }
    }
    let answer: &[u8; ANSWER] = answer[..].try_into().map_err(|_| refused())?;
    let (proven, proof) = handle.check(&challenge, answer).ok_or_else(refused)?;
    say(stream, &proof).await?;
    inflow.expect(Whole::Frame);
    Ok((proven, inflow, early))
}

/// Returns the longest message of an endpoint.
pub(super) fn longest(handle: &Handle) -> usize {
    4 + handle.config().rules.limits.max_packet
}

/// Carries frames, a message each, until either side ends. `early` was read before.
pub(super) async fn carry(stream: Stream, (inflow, early): (Inflow, Vec<u8>), pair: UnixStream) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (mut from, mut to) = pair.into_split();
    let (pings, mut pinged) = mpsc::channel(1);
    let is_between = AtomicBool::new(true);
    let ended = tokio::select! {
        ended = to_gateway(&mut reader, &mut to, (inflow, early), pings) => ended,
        ended = from_gateway(&mut writer, &mut from, &mut pinged, &is_between) => ended,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a gateway WebSocket ended");
    }
    if is_between.load(Ordering::Relaxed) {
        let mut out = Vec::new();
        write_close(&mut out);
        let shut_down = async { writer.write_all(&out).await.and(writer.shutdown().await) };
        // A client that does not hear that it is over will find out.
        let _ = timeout(CLOSE_TIME, shut_down).await;
    }
}

async fn to_gateway(
    reader: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    (mut inflow, early): (Inflow, Vec<u8>),
    pings: mpsc::Sender<Vec<u8>>,
) -> io::Result<()> {
    let mut out = Vec::new();
    let mut taken = Some(inflow.take(&early, &mut out));
    drop(early);
    while let Some(result) = taken {
        result.map_err(io::Error::other)?;
        if !out.is_empty() {
            to.write_all(&std::mem::take(&mut out)).await?;
        }
        if let Some(pong) = inflow.pong.take() {
            // One that waits is answer enough.
            let _ = pings.try_send(pong);
        }
        if inflow.is_closed {
            return Ok(());
        }
        taken = receive(reader, |bytes| inflow.take(bytes, &mut out)).await?;
    }
    Ok(())
}

/// What is next to be written.
enum Next {
    Frames(Option<Vec<u8>>),
    Pong(Option<Vec<u8>>),
}

async fn from_gateway(
    writer: &mut (impl AsyncWrite + Unpin),
    from: &mut (impl AsyncRead + Unpin),
    pinged: &mut mpsc::Receiver<Vec<u8>>,
    is_between: &AtomicBool,
) -> io::Result<()> {
    let mut outflow = Outflow::default();
    loop {
        let next = tokio::select! {
            pong = pinged.recv(), if outflow.is_between() => Next::Pong(pong),
            read = receive(from, <[u8]>::to_vec) => Next::Frames(read?),
        };
        let mut out = Vec::new();
        match next {
            Next::Pong(Some(pong)) => write_pong(&pong, &mut out),
            Next::Frames(Some(bytes)) => outflow.take(&bytes, &mut out),
            Next::Pong(None) | Next::Frames(None) => return Ok(()),
        }
        is_between.store(false, Ordering::Relaxed);
        writer.write_all(&out).await?;
        writer.flush().await?;
        is_between.store(outflow.is_between(), Ordering::Relaxed);
    }
}
