//! Where the next mappings of a NAT may be, after a few that a server has reported.

use rand::Rng;
use rand::seq::IndexedRandom;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Fresh sockets whose mappings are compared.
pub(in crate::agent) const SAMPLES: usize = 8;
/// Fewest mappings that allow a conclusion.
pub(super) const MIN_SAMPLES: usize = 3;
/// The usual difference of two ports of a sequence, at most.
pub(super) const MAX_STEP: u16 = 5;
/// The largest difference of the first and the last sample of a sequence. Connections of others, and checks, take ports in between.
const MAX_SPREAD: u16 = 64;
/// Most ports of a sequence that are probed.
const MAX_SEQUENCE: u16 = 40;
/// Fewest samples that show a direction.
const MIN_TREND: usize = 5;
/// PredictedPorts that are probed beyond those of the opened sockets: other connections of the network may take some in between.
const SPARE_PORTS: u16 = 5;
/// The smallest and the largest block.
const BLOCK: (u32, u32) = (512, 4096);
/// The ports of NATs without blocks.
const LOWEST_PORT: u16 = 1024;
/// For blocks up to a size: how many sockets and probes meet with 98 %.
const SPRAYS: [(u32, usize, u16); 4] = [(512, 32, 64), (1024, 64, 64), (2048, 64, 128), (4096, 128, 128)];
/// The same for all ports.
const FULL_SPRAY: (usize, u16) = (256, 1024);

/// Where the mappings may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::agent) enum PredictedPorts {
    /// One after the other.
    Sequence { first: u16, step: i16, count: u16 },
    /// Anywhere between two ports.
    Range { low: u16, high: u16, probes: u16 },
}

/// The next mappings, and how many sockets are to be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::agent) struct Prediction {
    pub(super) ip: Ipv4Addr,
    pub(in crate::agent) ports: PredictedPorts,
    pub(super) sockets: usize,
}

impl Prediction {
    /// The most ports that count as a block.
    #[cfg(feature = "cli")]
    pub(in crate::agent) const LARGEST_BLOCK: u32 = BLOCK.1;

    /// Draws conclusions from the mappings of sockets that were opened one after the other; `None` if there are too few, or the NAT uses
    /// several addresses.
    pub(in crate::agent) fn new(samples: &[SocketAddr]) -> Option<Self> {
        let ip = samples.first()?.ip();
        let IpAddr::V4(ip) = ip else { return None };
        if samples.len() < MIN_SAMPLES || samples.iter().any(|sample| sample.ip() != ip) {
            return None;
        }
        let ports: Vec<u16> = samples.iter().map(SocketAddr::port).collect();
        let (ports, sockets) = sequence(&ports).or_else(|| block(&ports)).unwrap_or((
            PredictedPorts::Range { low: LOWEST_PORT, high: u16::MAX, probes: FULL_SPRAY.1 },
            FULL_SPRAY.0,
        ));
        Some(Self { ip, ports, sockets })
    }
}

/// Each port is a few above the one before, or below it.
fn sequence(ports: &[u16]) -> Option<(PredictedPorts, usize)> {
    let mut sorted = ports.to_vec();
    sorted.sort_unstable();
    let mut steps: Vec<u16> = sorted.windows(2).map(|pair| pair[1] - pair[0]).collect();
    steps.sort_unstable();
    let step = *steps.get(steps.len() / 2)?;
    let spread: u16 = steps.iter().sum();
    if !(1..=MAX_STEP).contains(&step) || spread > MAX_SPREAD {
        return None;
    }
    let foreign = spread.saturating_sub(step * u16::try_from(steps.len()).ok()?);
    let step = step.cast_signed();
    let (last, step) = match ports.first()? < ports.last()? {
        true => (sorted.last()?, step),
        false => (sorted.first()?, -step),
    };
    let first = last.checked_add_signed(step)?;
    let count = (u16::try_from(SAMPLES).ok()? + SPARE_PORTS + foreign).min(MAX_SEQUENCE);
    Some((PredictedPorts::Sequence { first, step, count }, SAMPLES))
}

/// Each port is above the one before, or below it, by many: a sequence of which others take the most.
fn trend(ports: &[u16]) -> Option<(u32, u32)> {
    let (first, last) = (u32::from(*ports.first()?), u32::from(*ports.last()?));
    let size = (2 * first.abs_diff(last)).max(BLOCK.0);
    if ports.len() < MIN_TREND || size > BLOCK.1 {
        None
    } else if ports.is_sorted_by(|before, after| before < after) {
        Some((last + 1, size))
    } else if ports.is_sorted_by(|before, after| before > after) {
        Some((last.saturating_sub(size), size))
    } else {
        None
    }
}

/// All ports are close together.
fn block(ports: &[u16]) -> Option<(PredictedPorts, usize)> {
    let (low, high) = (u32::from(*ports.iter().min()?), u32::from(*ports.iter().max()?));
    let spread = high - low + 1;
    // Blocks usually begin at a multiple of their size.
    let aligned =
        (BLOCK.0.trailing_zeros()..=BLOCK.1.trailing_zeros()).find(|bits| low >> bits == high >> bits);
    let aligned = aligned.map(|bits| (low >> bits << bits, 1_u32 << bits));
    let aligned = aligned.filter(|(_, size)| *size <= (4 * spread).max(BLOCK.0));
    let (low, size) = match trend(ports).or(aligned) {
        Some(block) => block,
        None => {
            let size = (spread * 3 / 2).max(BLOCK.0);
            ((low + high) / 2).checked_sub(size / 2).map_or((0, size), |low| (low, size))
        }
    };
    let (_, sockets, probes) = SPRAYS.into_iter().find(|(most, ..)| size <= *most)?;
    let high = u16::try_from(low + size - 1).unwrap_or(u16::MAX);
    Some((PredictedPorts::Range { low: u16::try_from(low).ok()?.max(1), high, probes }, sockets))
}

impl PredictedPorts {
    /// Returns whether the ports are predicted.
    pub(in crate::agent) fn is_sequence(self) -> bool {
        matches!(self, Self::Sequence { .. })
    }

    /// Returns how many probes are sent.
    pub(super) fn probes(self) -> usize {
        match self {
            Self::Sequence { count, .. } => count.into(),
            Self::Range { probes, .. } => probes.into(),
        }
    }

    /// Returns the ports to probe in a round, at most `most`: the next of the sequence, or random ones that were not probed before.
    pub(super) fn to_probe(self, probed: &[u16], most: usize, rng: &mut impl Rng) -> Vec<u16> {
        match self {
            Self::Sequence { first, step, count } => {
                let most = most.min(MAX_SEQUENCE.into());
                let ports = (0..i32::from(count)).map(|index| i32::from(first) + index * i32::from(step));
                ports
                    .filter_map(|port| u16::try_from(port).ok())
                    .filter(|port| *port != 0)
                    .take(most)
                    .collect()
            }
            Self::Range { low, high, probes } => {
                let known: std::collections::HashSet<u16> = probed.iter().copied().collect();
                let free: Vec<u16> = (low.max(1)..=high).filter(|port| !known.contains(port)).collect();
                free.choose_multiple(rng, usize::from(probes).min(most)).copied().collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;

    fn predict(ports: &[u16]) -> Option<Prediction> {
        let at = |port: &u16| SocketAddr::from(([203, 0, 113, 7], *port));
        Prediction::new(&ports.iter().map(at).collect::<Vec<_>>())
    }

    #[test]
    fn a_sequence_goes_on_in_its_direction() {
        let table: [(&[u16], u16, i16, u16); 5] = [
            (&[4000, 4001, 4002], 4003, 1, 13),
            (&[4000, 4002, 4004, 4006], 4008, 2, 13),
            (&[4000, 4001, 4003, 4004], 4005, 1, 14),
            (&[4009, 4008, 4007], 4006, -1, 13),
            (&[4000, 4002, 4001, 4003], 4004, 1, 13),
        ];
        for (ports, first, step, count) in table {
            let expected = PredictedPorts::Sequence { first, step, count };
            assert_eq!(
                predict(ports).map(|found| (found.ports, found.sockets)),
                Some((expected, 8)),
                "{ports:?}"
            );
        }
    }

    #[test]
    fn ports_that_others_take_do_not_hide_a_sequence() {
        let noisy = predict(&[4000, 4001, 4010, 4011, 4012]).map(|found| (found.ports, found.sockets));
        let expected = PredictedPorts::Sequence { first: 4013, step: 1, count: 21 };
        assert_eq!(noisy, Some((expected, 8)));
        // Most are taken by others: the next ones are beyond the last, even at the end of a block.
        let ports = predict(&[20_500, 20_620, 20_750, 20_820, 20_990]).map(|found| found.ports);
        assert_eq!(ports, Some(PredictedPorts::Range { low: 20_991, high: 21_970, probes: 64 }));
        let ports = predict(&[20_990, 20_820, 20_750, 20_620, 20_500]).map(|found| found.ports);
        assert_eq!(ports, Some(PredictedPorts::Range { low: 19_520, high: 20_499, probes: 64 }));
    }

    #[test]
    fn ports_of_one_block_are_sprayed_within_it() {
        let table: [(&[u16], [u16; 2], usize, u16); 4] = [
            (&[20_500, 20_900, 20_700], [20_480, 20_991], 32, 64),
            (&[20_500, 21_400, 20_700], [20_480, 21_503], 64, 64),
            (&[8_200, 12_000, 10_000], [8_192, 12_287], 128, 128),
            // Across a boundary of all sizes: around their middle.
            (&[16_300, 16_500, 16_400], [16_144, 16_655], 32, 64),
        ];
        for (ports, [low, high], sockets, probes) in table {
            let expected = PredictedPorts::Range { low, high, probes };
            let found = predict(ports).map(|found| (found.ports, found.sockets));
            assert_eq!(found, Some((expected, sockets)), "{ports:?}");
        }
    }

    #[test]
    fn scattered_ports_are_sprayed_over_all() {
        let expected = PredictedPorts::Range { low: 1024, high: 65_535, probes: 1024 };
        assert_eq!(
            predict(&[3000, 60_000, 20_000]).map(|found| (found.ports, found.sockets)),
            Some((expected, 256))
        );
    }

    #[test]
    fn too_few_mappings_and_several_addresses_allow_no_conclusion() {
        assert_eq!(predict(&[4000, 4001]), None);
        let at = |last: u8| SocketAddr::from(([203, 0, 113, last], 4000 + u16::from(last)));
        assert_eq!(Prediction::new(&[at(1), at(1), at(2)]), None);
    }

    #[test]
    fn probes_go_to_different_ports_in_range_and_no_more_than_allowed() {
        let mut rng = ChaCha20Rng::from_seed([1; 32]);
        let range = PredictedPorts::Range { low: 600, high: 699, probes: 80 };
        let first = range.to_probe(&[], 1024, &mut rng);
        let second = range.to_probe(&first, 1024, &mut rng);
        assert_eq!((first.len(), second.len()), (80, 20));
        let all: std::collections::HashSet<u16> = first.iter().chain(&second).copied().collect();
        assert!(all.len() == 100 && all.iter().all(|port| (600..700).contains(port)));
        assert_eq!(range.to_probe(&[], 7, &mut rng).len(), 7);
        let endless = PredictedPorts::Sequence { first: 65_530, step: 1, count: u16::MAX };
        assert_eq!(endless.to_probe(&[], 1024, &mut rng), [65_530, 65_531, 65_532, 65_533, 65_534, 65_535]);
        let still = PredictedPorts::Sequence { first: 7, step: 0, count: u16::MAX };
        assert_eq!(still.to_probe(&[], 1024, &mut rng).len(), 40);
    }
}
