//! A buffer of packets to send: runs of packets of one size for one endpoint.

use super::socket::PacketRun;

/// The end of a run in the buffer.
#[derive(Debug, Clone, Copy)]
struct RunEnd {
    endpoint: usize,
    stride: usize,
    end: usize,
}

/// Packets by endpoint, in the order they were pushed.
#[derive(Debug, Default)]
pub(super) struct Packets {
    bytes: Vec<u8>,
    runs: Vec<RunEnd>,
}

impl Packets {
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.runs.clear();
    }

    /// Appends a packet of `parts` and `zeros` zero bytes; it extends the last run if endpoint and size are the same. Returns the packet.
    pub(super) fn push(&mut self, endpoint: usize, parts: [&[u8]; 2], zeros: usize) -> &mut [u8] {
        let begin = self.bytes.len();
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
        let end = self.bytes.len() + zeros;
        self.bytes.resize(end, 0);
        let stride = end - begin;
        match self.runs.last_mut().filter(|last| (last.endpoint, last.stride) == (endpoint, stride)) {
            Some(last) => last.end = end,
            None => self.runs.push(RunEnd { endpoint, stride, end }),
        }
        &mut self.bytes[begin..]
    }

    pub(super) fn runs(&self) -> impl Iterator<Item = (usize, PacketRun<'_>)> {
        self.runs.iter().scan(0, |begin, run| {
            let bytes = &self.bytes[*begin..run.end];
            *begin = run.end;
            Some((run.endpoint, PacketRun { bytes, stride: run.stride }))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_one_endpoint_and_size_are_one_run() {
        let mut packets = Packets::default();
        for (endpoint, payload) in [(1, "aa"), (1, "bb"), (2, "cc"), (2, "d"), (1, "ee")] {
            packets.push(endpoint, [b"-", payload.as_bytes()], 1);
        }
        let runs: Vec<_> =
            packets.runs().map(|(endpoint, run)| (endpoint, run.bytes, run.stride, run.count())).collect();
        let expected: [(usize, &[u8], usize, usize); 4] =
            [(1, b"-aa\0-bb\0", 4, 2), (2, b"-cc\0", 4, 1), (2, b"-d\0", 3, 1), (1, b"-ee\0", 4, 1)];
        assert_eq!(runs, expected);
    }
}
