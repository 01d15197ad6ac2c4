//! Waiting for conditions. No other file of these tests sleeps.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// The first and the longest pause between two checks of a condition.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Calls `find` until it succeeds or `deadline` has passed; returns its last result.
pub(crate) fn try_until<T, E>(deadline: Instant, mut find: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let mut pause = FIRST_PAUSE;
    loop {
        let found = find();
        let left = deadline.saturating_duration_since(Instant::now());
        if found.is_ok() || left.is_zero() {
            return found;
        }
        sleep(pause.min(left));
        pause = LONGEST_PAUSE.min(2 * pause);
    }
}

/// Waits until `find` succeeds and returns what it found; panics with its last error after `within`.
#[track_caller]
pub(crate) fn wait_for<T>(within: Duration, find: impl FnMut() -> Result<T, String>) -> T {
    match try_until(Instant::now() + within, find) {
        Ok(found) => found,
        Err(error) => panic!("not within {within:?}: {error}"),
    }
}

/// Waits until `holds` is true; panics with `what` after `within`.
#[track_caller]
pub(crate) fn wait_until(within: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    wait_for(within, || holds().then_some(()).ok_or_else(|| what.to_owned()));
}

/// Waits until `read` has returned the same value for the time `steady`, and returns it; the last one after `within`.
pub(crate) fn wait_until_steady<T: PartialEq>(
    within: Duration,
    steady: Duration,
    mut read: impl FnMut() -> T,
) -> T {
    let deadline = Instant::now() + within;
    let (mut value, mut since) = (read(), Instant::now());
    while since.elapsed() < steady && Instant::now() < deadline {
        sleep(steady / 8);
        let newer = read();
        if newer != value {
            (value, since) = (newer, Instant::now());
        }
    }
    value
}

/// Paces a loop that sends or samples at a rate.
pub(crate) fn pace(interval: Duration) {
    sleep(interval);
}

/// Lets time pass where the pause is what is tested: silence, or a reader that is late.
pub(crate) fn pause_under_test(time: Duration) {
    sleep(time);
}
