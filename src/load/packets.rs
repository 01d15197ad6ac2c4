//! Packets that leave together, in one buffer: runs of one size for one endpoint.

use super::socket::PacketRun;

#[derive(Debug, Clone, Copy)]
struct Cut {
    endpoint: usize,
    stride: usize,
    end: usize,
}

/// Packets by endpoint, in the order they were pushed.
#[derive(Debug, Default)]
pub(super) struct Packets {
    bytes: Vec<u8>,
    cuts: Vec<Cut>,
}

impl Packets {
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.cuts.clear();
    }

    /// Adds a packet of `parts` and `zeros` bytes more; it joins the run before it if that is its endpoint's and of its size. Returns it.
    pub(super) fn push(&mut self, endpoint: usize, parts: [&[u8]; 2], zeros: usize) -> &mut [u8] {
        let begin = self.bytes.len();
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
        let end = self.bytes.len() + zeros;
        self.bytes.resize(end, 0);
        let stride = end - begin;
        match self.cuts.last_mut().filter(|last| (last.endpoint, last.stride) == (endpoint, stride)) {
            Some(last) => last.end = end,
            None => self.cuts.push(Cut { endpoint, stride, end }),
        }
        &mut self.bytes[begin..]
    }

    pub(super) fn runs(&self) -> impl Iterator<Item = (usize, PacketRun<'_>)> {
        self.cuts.iter().scan(0, |begin, cut| {
            let bytes = &self.bytes[*begin..cut.end];
            *begin = cut.end;
            Some((cut.endpoint, PacketRun { bytes, stride: cut.stride }))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_one_leg_and_size_are_one_run() {
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
