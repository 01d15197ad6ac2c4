//! The stream of a transfer: its beginning, and the exchange with the thread that does the work.

use super::error::{TransferError, ended};
use super::plan::MAX_OPEN_FILES;
use super::progress::Progress;
use super::receiving::{Channels, Destination, Receiving};
use super::sending::{Sending, Source, Summary, cancelled};
use super::wire::{CancelReason, Decoder, Id, Message, Offer, Piece, ReceiverMessage, SenderMessage};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Bytes that are read at once, and from which on a block is passed on though more may be there.
const READ: usize = 256 << 10;
const ENOUGH: usize = 128 << 10;
/// Blocks between the stream and the thread.
const BLOCKS: usize = 4;
/// Time limit for the last message to leave.
const LAST_MESSAGE: Duration = Duration::from_secs(5);
/// Time limit for the first message of a receiver.
const HELLO: Duration = Duration::from_secs(30);

/// Reads messages one by one.
#[derive(Debug)]
struct MessageReader<R, M> {
    reader: R,
    decoder: Decoder<M>,
    buffer: Vec<u8>,
    used: usize,
}

impl<R: AsyncRead + Unpin, M: Message> MessageReader<R, M> {
    fn new(reader: R) -> Self {
        Self { reader, decoder: Decoder::default(), buffer: Vec::new(), used: 0 }
    }

    async fn next(&mut self) -> Result<M, TransferError> {
        loop {
            let mut input = &self.buffer[self.used..];
            let found = self.decoder.next(&mut input)?;
            self.used = self.buffer.len() - input.len();
            match found {
                Some(Piece::Message(message)) => return Ok(message),
                Some(Piece::Data(_)) => return Err(TransferError::Protocol("it sends content too early")),
                None => {}
            }
            self.buffer.clear();
            self.used = 0;
            self.buffer.reserve(16 << 10);
            if self.reader.read_buf(&mut self.buffer).await.map_err(TransferError::Lost)? == 0 {
                return Err(ended());
            }
        }
    }
}

async fn send_message<W: AsyncWrite + Unpin>(
    writer: &mut W,
    encode: impl FnOnce(&mut Vec<u8>),
) -> Result<(), TransferError> {
    let mut frame = Vec::new();
    encode(&mut frame);
    writer.write_all(&frame).await.map_err(TransferError::Lost)?;
    writer.flush().await.map_err(TransferError::Lost)
}

/// Waits for a thread that has no more to wait for. A panic counts as a lost connection.
async fn join<T>(thread: &mut JoinHandle<Result<T, TransferError>>) -> Result<T, TransferError> {
    thread.await.unwrap_or_else(|error| Err(TransferError::Lost(error.into())))
}

/// Returns the result of a thread whose stream has broken: what it says, unless that is only that the stream broke.
async fn join_after<T>(
    thread: &mut JoinHandle<Result<T, TransferError>>,
    broken: TransferError,
) -> Result<T, TransferError> {
    match join(thread).await {
        Err(TransferError::Lost(_)) => Err(broken),
        result => result,
    }
}

/// A receiver that has connected to the sender.
#[derive(Debug)]
pub(crate) struct Visitor<W, R> {
    writer: W,
    messages: MessageReader<R, ReceiverMessage>,
    /// The receiver's number.
    pub(crate) receiver: Id,
    /// The transfer that it goes on with.
    pub(crate) transfer: Option<Id>,
}

impl<W, R> Visitor<W, R>
where
    W: AsyncWrite + Unpin + Send + 'static,
    R: AsyncRead + Unpin + Send + 'static,
{
    /// Waits for the receiver's first message.
    ///
    /// # Errors
    /// [`TransferError`] if it is another one, or does not arrive.
    pub(crate) async fn greet(writer: W, reader: R) -> Result<Self, TransferError> {
        let mut messages = MessageReader::new(reader);
        match timeout(HELLO, messages.next()).await.map_err(|_| ended())?? {
            ReceiverMessage::Hello { receiver, transfer } => {
                Ok(Self { writer, messages, receiver, transfer })
            }
            _ => Err(TransferError::Protocol("its first message is another one")),
        }
    }

    /// Ends the connection for this reason.
    pub(crate) async fn refuse(mut self, reason: CancelReason) {
        let _ = send_message(&mut self.writer, |frame| SenderMessage::Cancel(reason).encode(frame)).await;
        let _ = timeout(LAST_MESSAGE, self.writer.shutdown()).await;
    }

    /// Makes the offer and waits for the answer, which a user may have to give.
    ///
    /// # Errors
    /// [`TransferError::Cancelled`] if the receiver declines, or another one.
    pub(crate) async fn offer(mut self, offer: Offer) -> Result<Outgoing<W, R>, TransferError> {
        send_message(&mut self.writer, |frame| SenderMessage::Offer(offer).encode(frame)).await?;
        match self.messages.next().await? {
            ReceiverMessage::Accept { skipped } => {
                Ok(Outgoing { writer: self.writer, messages: self.messages, skipped })
            }
            ReceiverMessage::Cancel(reason) => Err(TransferError::Cancelled(reason)),
            _ => Err(TransferError::Protocol("it does not answer the offer")),
        }
    }
}

/// An accepted offer, on the sender's side.
#[derive(Debug)]
pub(crate) struct Outgoing<W, R> {
    writer: W,
    messages: MessageReader<R, ReceiverMessage>,
    skipped: Vec<u32>,
}

impl<W, R> Outgoing<W, R>
where
    W: AsyncWrite + Unpin + Send + 'static,
    R: AsyncRead + Unpin + Send + 'static,
{
    /// Sends everything, and waits until the receiver has it.
    ///
    /// # Errors
    /// [`TransferError`]; after [`TransferError::Lost`] the transfer can go on over another connection.
    pub(crate) async fn run(
        mut self,
        source: Source,
        progress: Arc<Progress>,
    ) -> Result<Summary, TransferError> {
        progress.begin();
        let (blocks, mut blocks_rx) = mpsc::channel::<Vec<u8>>(BLOCKS);
        let (answers, answers_rx) = mpsc::channel(2 * MAX_OPEN_FILES);
        let sending = Sending::new(source, &self.skipped, (blocks, answers_rx), progress);
        let mut thread = tokio::task::spawn_blocking(move || sending.run());
        let write = async {
            while let Some(block) = blocks_rx.recv().await {
                self.writer.write_all(&block).await.map_err(TransferError::Lost)?;
            }
            std::future::pending().await
        };
        let read = async {
            loop {
                let message = self.messages.next().await?;
                if answers.send(message).await.is_err() {
                    std::future::pending().await
                }
            }
        };
        let broken: Result<(), TransferError> = tokio::select! {
            biased;
            result = join(&mut thread) => {
                if result.is_ok() {
                    let _ = timeout(LAST_MESSAGE, self.writer.shutdown()).await;
                }
                return result;
            }
            broken = read => broken,
            broken = write => broken,
        };
        drop((blocks_rx, answers));
        match broken {
            Err(broken) => join_after(&mut thread, broken).await,
            Ok(()) => join(&mut thread).await,
        }
    }
}

/// An offer that has arrived.
#[derive(Debug)]
pub(crate) struct Incoming<W, R> {
    /// What the sender offers.
    pub(crate) offer: Offer,
    writer: W,
    messages: MessageReader<R, SenderMessage>,
}

/// Says who the receiver is, and which transfer it goes on with, if any; waits for the offer.
///
/// # Errors
/// [`TransferError::Cancelled`] if the sender refuses, or another one.
pub(crate) async fn receive_offer<W, R>(
    (mut writer, reader): (W, R),
    receiver: Id,
    transfer: Option<Id>,
) -> Result<Incoming<W, R>, TransferError>
where
    W: AsyncWrite + Unpin + Send + 'static,
    R: AsyncRead + Unpin + Send + 'static,
{
    let hello = ReceiverMessage::Hello { receiver, transfer };
    send_message(&mut writer, |frame| hello.encode(frame)).await?;
    let mut messages = MessageReader::new(reader);
    match messages.next().await? {
        SenderMessage::Offer(offer) if transfer.is_none_or(|transfer| transfer == offer.transfer) => {
            Ok(Incoming { offer, writer, messages })
        }
        SenderMessage::Offer(_) => Err(TransferError::Protocol("it offers another transfer")),
        other => Err(match cancelled(&other) {
            Some(reason) => TransferError::Cancelled(reason),
            None => TransferError::Protocol("it offers nothing"),
        }),
    }
}

impl<W, R> Incoming<W, R>
where
    W: AsyncWrite + Unpin + Send + 'static,
    R: AsyncRead + Unpin + Send + 'static,
{
    /// Declines the offer.
    pub(crate) async fn decline(mut self, reason: CancelReason) {
        let _ = send_message(&mut self.writer, |frame| ReceiverMessage::Cancel(reason).encode(frame)).await;
        let _ = timeout(LAST_MESSAGE, self.writer.shutdown()).await;
    }

    /// Accepts the offer and receives everything.
    ///
    /// # Errors
    /// [`TransferError`]; after [`TransferError::Lost`] the transfer can go on over another connection.
    pub(crate) async fn accept(
        mut self,
        destination: Destination,
        progress: Arc<Progress>,
    ) -> Result<Summary, TransferError> {
        progress.begin();
        let skipped = (0..).zip(&destination.plans).filter(|(_, plan)| plan.name().is_none());
        let skipped = skipped.map(|(root, _)| root).collect();
        let accept = ReceiverMessage::Accept { skipped };
        send_message(&mut self.writer, |frame| accept.encode(frame)).await?;
        let (blocks, blocks_rx) = mpsc::channel(BLOCKS);
        let (answers, answers_rx) = mpsc::channel(2 * MAX_OPEN_FILES);
        let (verified, verified_rx) = watch::channel(0);
        let channels = Channels { blocks: blocks_rx, answers, verified };
        let MessageReader { reader, decoder, mut buffer, used } = self.messages;
        let mut thread =
            tokio::task::spawn_blocking(move || receive(destination, (channels, decoder), progress));
        buffer.drain(..used);
        let mut write = std::pin::pin!(write_answers(&mut self.writer, answers_rx, verified_rx));
        let mut read = Box::pin(read_blocks(reader, buffer, blocks));
        let mut is_written = false;
        let result = loop {
            let broken = tokio::select! {
                biased;
                result = join(&mut thread) => break result,
                broken = &mut read => broken,
                written = &mut write, if !is_written => {
                    is_written = true;
                    match written {
                        // The thread has ended.
                        Ok(()) => continue,
                        Err(broken) => broken,
                    }
                }
            };
            // The thread ends when no more blocks can come.
            drop(read);
            break join_after(&mut thread, broken).await;
        };
        if !is_written {
            let _ = timeout(LAST_MESSAGE, write).await;
        }
        result.and_then(|summary| summary.ok_or_else(ended))
    }
}

/// The receiver's thread.
fn receive(
    destination: Destination,
    (channels, decoder): (Channels, Decoder<SenderMessage>),
    progress: Arc<Progress>,
) -> Result<Option<Summary>, TransferError> {
    let answers = channels.answers.clone();
    let received =
        Receiving::new(destination, channels, progress).and_then(|receiving| receiving.run(decoder));
    let reason = received.as_ref().err().and_then(TransferError::cancel_reason);
    if let Some(reason) = reason {
        let _ = answers.blocking_send(ReceiverMessage::Cancel(reason));
    }
    received
}

/// Passes the stream to the thread until it breaks. A block is passed on when it is full enough, or nothing more has arrived.
async fn read_blocks<R: AsyncRead + Unpin>(
    mut reader: R,
    mut block: Vec<u8>,
    blocks: mpsc::Sender<Vec<u8>>,
) -> TransferError {
    loop {
        block.reserve(READ.saturating_sub(block.len()));
        let is_empty = block.is_empty();
        let is_full = block.len() >= ENOUGH;
        let read = tokio::select! {
            biased;
            read = reader.read_buf(&mut block), if !is_full => Some(read),
            () = std::future::ready(()), if !is_empty => None,
        };
        let end = match read {
            Some(Ok(1..)) => continue,
            Some(Ok(0)) => Some(ended()),
            Some(Err(error)) => Some(TransferError::Lost(error)),
            None => None,
        };
        if !block.is_empty() && blocks.send(std::mem::take(&mut block)).await.is_err() {
            return std::future::pending().await;
        }
        if let Some(error) = end {
            return error;
        }
    }
}

/// Writes the answers of the thread until it has ended, and between them how much was verified.
async fn write_answers<W: AsyncWrite + Unpin>(
    writer: &mut W,
    mut answers: mpsc::Receiver<ReceiverMessage>,
    mut verified: watch::Receiver<u64>,
) -> Result<(), TransferError> {
    let mut frames = Vec::new();
    loop {
        tokio::select! {
            biased;
            answer = answers.recv() => match answer {
                Some(answer) => {
                    answer.encode(&mut frames);
                    while let Ok(answer) = answers.try_recv() {
                        answer.encode(&mut frames);
                    }
                }
                None => break,
            },
            Ok(()) = verified.changed() => {
                let bytes = *verified.borrow_and_update();
                ReceiverMessage::Verified(bytes).encode(&mut frames);
            }
        }
        writer.write_all(&frames).await.map_err(TransferError::Lost)?;
        frames.clear();
    }
    writer.shutdown().await.map_err(TransferError::Lost)
}
