//! Sizes and times for people.

use std::time::Duration;

/// Returns a number of bytes with a decimal unit: `4.7 GB`.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = usize::from(value < 9.95);
    format!("{value:.digits$} {}", UNITS[unit])
}

/// Returns a duration: `0.8 s`, `54 s`, `3 min 20 s`.
pub(super) fn duration(time: Duration) -> String {
    match time.as_secs() {
        0..=9 => format!("{:.1} s", time.as_secs_f64()),
        secs @ 10..=119 => format!("{secs} s"),
        secs => format!("{} min {} s", secs / 60, secs % 60),
    }
}

/// Returns a whole percentage, 100 only when everything is done.
pub(super) fn percent(done: u64, total: u64) -> u64 {
    if total == 0 || done >= total {
        100
    } else {
        u64::try_from(u128::from(done) * 100 / u128::from(total)).unwrap_or(99)
    }
}

/// Returns a number of files: `1 file`, `12 files`.
pub(super) fn files(files: u64) -> String {
    if files == 1 { "1 file".to_owned() } else { format!("{files} files") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_and_never_round_up_to_done() {
        for (value, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (4_700_000_000, "4.7 GB"),
            (999_600, "1.0 MB"),
            (93_000_000, "93 MB"),
            (u64::MAX, "18447 PB"),
        ] {
            assert_eq!(bytes(value), text);
        }
        assert_eq!(
            [percent(0, 0), percent(999, 1000), percent(5, 5), percent(u64::MAX - 1, u64::MAX)],
            [100, 99, 100, 99]
        );
        for (secs, text) in [(0.84, "0.8 s"), (54.2, "54 s"), (200.0, "3 min 20 s")] {
            assert_eq!(duration(Duration::from_secs_f64(secs)), text);
        }
        assert_eq!([files(1), files(0)], ["1 file", "0 files"]);
    }
}
