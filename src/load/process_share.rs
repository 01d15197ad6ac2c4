//! The share of one process in a load that runs in several.

/// One process of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessShare {
    /// Its index, from 0.
    pub index: usize,
    /// The number of processes.
    pub of: usize,
}

impl ProcessShare {
    /// Parses `INDEX/OF`.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let (index, of) = text.split_once('/')?;
        let part = Self { index: index.parse().ok()?, of: of.parse().ok()? };
        (part.index < part.of).then_some(part)
    }

    /// Returns its share of `total`. The shares differ by at most one and add up to `total`.
    #[must_use]
    pub fn share(self, total: u64) -> u64 {
        let of = self.of as u64;
        total / of + u64::from((self.index as u64) < total % of)
    }

    /// As [`ProcessShare::share`], for `usize`.
    #[must_use]
    pub fn share_of(self, total: usize) -> usize {
        total / self.of + usize::from(self.index < total % self.of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up() {
        for (total, of) in [(100_000_usize, 6), (7, 3), (2, 5)] {
            let shares: Vec<_> = (0..of).map(|index| ProcessShare { index, of }.share_of(total)).collect();
            assert_eq!(shares.iter().sum::<usize>(), total, "{shares:?}");
            assert!(shares[0] - shares[of - 1] <= 1, "{shares:?}");
            let again = (0..of).map(|index| ProcessShare { index, of }.share(total as u64));
            assert_eq!(again.sum::<u64>(), total as u64);
        }
    }

    #[test]
    fn a_share_is_parsed_and_invalid_text_is_refused() {
        assert_eq!(ProcessShare::read("2/3"), Some(ProcessShare { index: 2, of: 3 }));
        for text in ["3/3", "0/0", "x/2", "1", ""] {
            assert_eq!(ProcessShare::read(text), None, "{text}");
        }
    }
}
