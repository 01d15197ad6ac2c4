//! Small types that carry a rule by existing: what identifies, and what must not reach a log unasked.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

static SHOW_PERSONAL_DATA: AtomicBool = AtomicBool::new(false);

/// Wraps an address or a name so that log lines show it only where the operator asked for it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pii<T>(pub T);

/// Returns whether [`Pii`] values are written out (`log.addresses = true`) or hidden, the default.
pub(crate) fn show_personal_data(show: bool) {
    SHOW_PERSONAL_DATA.store(show, Ordering::Relaxed);
}

impl<T: fmt::Display> fmt::Display for Pii<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if SHOW_PERSONAL_DATA.load(Ordering::Relaxed) { self.0.fmt(f) } else { f.write_str("[hidden]") }
    }
}

impl<T: fmt::Display> fmt::Debug for Pii<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn personal_data_is_hidden_unless_asked_for() {
        assert_eq!(format!("{} {:?}", Pii("192.0.2.1"), Pii("alice")), "[hidden] [hidden]");
    }
}
