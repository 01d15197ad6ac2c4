//! Lines on their way to the log. A thread of their own writes them, so that neither a reader that is slow nor one that is gone holds anybody up.

use crate::limits::{QueueBounds, QueueError, QueueReceiver, QueueSender, queue};
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::Duration;
use tracing_subscriber::fmt::MakeWriter;

/// The capacity of the queue in lines and bytes.
const MAX_LINES: usize = 8192;
const MAX_BYTES: usize = 1 << 20;
/// How long the end of a program waits for its log.
const FLUSH_TIME: Duration = Duration::from_secs(1);
/// The interval and the number of retries of a log that would block.
const RETRY_TIME: Duration = Duration::from_millis(10);
const RETRIES: usize = 100;

/// Lines that were dropped since the start.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Returns how many lines were dropped since the start of the process.
pub(super) fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

#[derive(Debug)]
enum Item {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// A way into the log.
#[derive(Debug, Clone)]
pub(super) struct LogQueue {
    items: QueueSender<Item>,
}

impl LogQueue {
    /// Starts the thread that writes to `out`.
    pub(super) fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let (items, received) = queue(QueueBounds { items: MAX_LINES, bytes: MAX_BYTES });
        let writer = LogWriter { out, is_torn: false };
        thread::Builder::new().name("log".to_owned()).spawn(move || writer.run(received))?;
        Ok(Self { items })
    }

    /// Queues a line; drops and counts it where the queue is full.
    pub(super) fn push(&self, line: Vec<u8>) {
        let length = line.len();
        if self.items.try_send(Item::Line(line), length).is_err() {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until everything before is written, or dropped; not for ever.
    pub(super) fn flush(&self) {
        let (done, is_done) = sync_channel(1);
        let mut left = FLUSH_TIME;
        // The queue may be full of what is to be written first.
        while let Err((_, QueueError::Items)) = self.items.try_send(Item::Flush(done.clone()), 0) {
            if left.is_zero() {
                return;
            }
            thread::sleep(RETRY_TIME);
            left = left.saturating_sub(RETRY_TIME);
        }
        drop(done);
        let _ = is_done.recv_timeout(left);
    }
}

/// One line, queued when it is dropped.
pub(super) struct Line<'a> {
    queue: &'a LogQueue,
    bytes: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        self.queue.push(std::mem::take(&mut self.bytes));
    }
}

impl<'a> MakeWriter<'a> for LogQueue {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { queue: self, bytes: Vec::new() }
    }
}

struct LogWriter<W> {
    out: W,
    /// Whether the last line was written in part.
    is_torn: bool,
}

impl<W: Write> LogWriter<W> {
    fn run(mut self, mut items: QueueReceiver<Item>) {
        let mut reported = 0;
        let mut next = items.blocking_recv().ok();
        while let Some(item) = next {
            let mut works = false;
            match item {
                Item::Line(line) => {
                    works = self.write(&line);
                    items.release(1, line.len());
                    DROPPED.fetch_add(u64::from(!works), Ordering::Relaxed);
                }
                Item::Flush(done) => {
                    // The caller may have given up.
                    let _ = done.try_send(());
                    items.release(1, 0);
                }
            }
            next = match items.try_recv() {
                Some(item) => Some(item),
                None => {
                    let dropped = dropped();
                    if works && dropped > reported {
                        tracing::warn!(lines = dropped - reported, "log lines were dropped");
                        reported = dropped;
                    }
                    items.blocking_recv().ok()
                }
            };
        }
    }

    /// Writes a line; returns whether that succeeded.
    fn write(&mut self, line: &[u8]) -> bool {
        if self.is_torn && self.put(b"\n") < 1 {
            return false;
        }
        let written = self.put(line);
        self.is_torn = written < line.len() && (written > 0 || self.is_torn);
        written == line.len()
    }

    /// Writes as much as can be written; returns how much that was.
    fn put(&mut self, bytes: &[u8]) -> usize {
        let (mut written, mut retries) = (0, 0);
        while written < bytes.len() {
            match self.out.write(&bytes[written..]) {
                Ok(0) => break,
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && retries < RETRIES => {
                    retries += 1;
                    thread::sleep(RETRY_TIME);
                }
                Err(_) => break,
            }
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::Receiver;
    use std::sync::{Arc, Mutex};

    /// A log with limited space.
    #[derive(Clone, Default)]
    struct Disk(Arc<Mutex<(Vec<u8>, usize)>>);

    impl Disk {
        fn set_space(&self, bytes: usize) {
            self.0.lock().unwrap().1 = bytes;
        }

        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().0.clone()).unwrap()
        }
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut disk = self.0.lock().unwrap();
            let space = bytes.len().min(disk.1);
            if space == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            disk.1 -= space;
            disk.0.extend_from_slice(&bytes[..space]);
            Ok(space)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_costs_lines_which_are_counted_and_whole_ones_follow_when_there_is_room() {
        let disk = Disk::default();
        let queue = LogQueue::start(disk.clone()).unwrap();
        disk.set_space(9);
        let before = dropped();
        for line in ["first\n", "second\n", "third\n"] {
            queue.push(line.into());
        }
        queue.flush();
        assert_eq!(disk.text(), "first\nsec");
        assert!(dropped() >= before + 2);
        disk.set_space(1000);
        queue.push(b"fourth\n".into());
        queue.flush();
        assert_eq!(disk.text(), "first\nsec\nfourth\n");
        assert_eq!(queue.items.bytes(), 0);
    }

    /// A log whose reader does not read, until it is let go.
    struct Stalled(Receiver<()>);

    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_queue_is_written_to_its_end_too() {
        let (go, stalled) = sync_channel(0);
        let queue = LogQueue::start(Stalled(stalled)).unwrap();
        for _ in 0..2 * MAX_LINES {
            queue.push(b"line\n".to_vec());
        }
        drop(go);
        queue.flush();
        assert_eq!(queue.items.bytes(), 0);
    }

    #[test]
    fn a_reader_that_does_not_read_holds_nobody_up_and_takes_bounded_memory() {
        let (go, stalled) = sync_channel(0);
        let queue = LogQueue::start(Stalled(stalled)).unwrap();
        let before = dropped();
        for _ in 0..3000 {
            queue.push(vec![b'x'; 1024]);
        }
        assert!(queue.items.bytes() <= MAX_BYTES);
        assert!(dropped() >= before + 3000 - 1025, "{}", dropped() - before);
        drop(go);
        queue.flush();
        assert_eq!(queue.items.bytes(), 0);
    }
}
