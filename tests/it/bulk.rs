//! Seeded bytes into one end of a pipe, and their hash at the other.

use std::io::{Read, Write};
use std::process::{ChildStdin, ChildStdout};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use ring::digest::{Context, SHA256};

const CHUNK: usize = 64 * 1024;

/// What came out of a pipe.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) bytes: usize,
    pub(crate) hash: Vec<u8>,
}

/// What [`feed`] with the same arguments sends.
pub(crate) fn expected(seed: u64, bytes: usize) -> Received {
    let mut hash = Context::new(&SHA256);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for_each_chunk(&mut rng, bytes, |chunk| {
        hash.update(chunk);
        true
    });
    Received { bytes, hash: hash.finish().as_ref().to_vec() }
}

/// Writes `bytes` seeded bytes, the first chunk at once and the rest after a signal of the returned sender, then closes.
pub(crate) fn feed(mut pipe: ChildStdin, seed: u64, bytes: usize) -> Sender<()> {
    let (go, wait) = channel();
    std::thread::spawn(move || {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut first = true;
        for_each_chunk(&mut rng, bytes, |chunk| {
            let written = pipe.write_all(chunk).is_ok();
            if std::mem::take(&mut first) {
                wait.recv().ok();
            }
            written
        });
    });
    go
}

fn for_each_chunk(rng: &mut ChaCha8Rng, bytes: usize, mut each: impl FnMut(&[u8]) -> bool) {
    let mut chunk = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let now = left.min(CHUNK);
        rng.fill_bytes(&mut chunk);
        if !each(&chunk[..now]) {
            return;
        }
        left -= now;
    }
}

/// Reads a pipe to its end; the receiver is notified of the first chunk.
pub(crate) fn drain(mut pipe: ChildStdout) -> (Receiver<()>, JoinHandle<Received>) {
    let (first, arrival) = channel();
    let handle = std::thread::spawn(move || {
        let mut hash = Context::new(&SHA256);
        let mut buffer = vec![0; CHUNK];
        let mut bytes = 0;
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            hash.update(&buffer[..count]);
            let before = bytes;
            bytes += count;
            if before < CHUNK && bytes >= CHUNK {
                first.send(()).ok();
            }
        }
        Received { bytes, hash: hash.finish().as_ref().to_vec() }
    });
    (arrival, handle)
}
