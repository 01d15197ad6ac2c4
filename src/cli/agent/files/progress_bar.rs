//! How far a transfer is: a bar on a terminal, events for programs, nothing else.

use super::units;
use crate::cli::agent::escape;
use crate::cli::agent::report::{Reporter, VERSION};
use crate::file_transfer::{Figures, Progress};
use crate::net::time;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};
use tokio::time::{Interval, MissedTickBehavior, interval};

/// How often the bar changes, and the least time between two events.
const TICK: Duration = Duration::from_millis(100);
const EVENT: Duration = Duration::from_millis(500);
/// Longest name before the bar, in characters.
const MAX_NAME: usize = 28;
/// The unit of the bar: content and files take time, and there may be content of no bytes.
const TEMPLATE: &str = "{prefix} {bar:24} {percent:>3} %  {msg}  {eta}";
const TEMPLATE_UNCOUNTED: &str = "{prefix} {spinner} {msg}";

/// See the [module](self).
pub(super) struct TransferBar<'a> {
    report: &'a Reporter,
    bar: Option<ProgressBar>,
    ticks: Interval,
    last_event: Option<Instant>,
    began: Instant,
    /// Bytes at the beginning of this connection.
    resumed: Option<u64>,
    is_counted: bool,
}

impl<'a> TransferBar<'a> {
    pub(super) fn new(report: &'a Reporter) -> Self {
        let is_shown = !report.is_json() && io::stderr().is_terminal();
        let bar = is_shown.then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            bar.set_style(style(TEMPLATE_UNCOUNTED));
            bar
        });
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { report, bar, ticks, last_event: None, began: time::mono(), resumed: None, is_counted: false }
    }

    /// Begins another connection.
    pub(super) fn begin(&mut self) {
        (self.began, self.resumed) = (time::mono(), None);
        if let Some(bar) = &self.bar {
            bar.reset();
        }
    }

    /// Waits until it is time to call [`TransferBar::show`].
    pub(super) async fn due(&mut self) {
        self.ticks.tick().await;
    }

    /// Calls `print`, which writes lines to standard error, without the bar.
    pub(super) fn suspend(&self, print: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Shows how far the transfer is; `total` is `None` until everything is counted.
    pub(super) fn show(&mut self, progress: &Progress, total: Option<u64>) {
        let figures = progress.figures();
        self.report_resumed(figures, total);
        if let Some(bar) = &self.bar {
            if total.is_some() != self.is_counted {
                self.is_counted = total.is_some();
                bar.set_style(style(if self.is_counted { TEMPLATE } else { TEMPLATE_UNCOUNTED }));
            }
            bar.set_length(total.unwrap_or(0).max(figures.done));
            bar.set_position(figures.done);
            bar.set_prefix(short_name(&progress.name()));
            bar.set_message(self.rate(figures));
        }
        let now = time::mono();
        if self.report.is_json() && self.last_event.is_none_or(|last| now.duration_since(last) >= EVENT) {
            self.last_event = Some(now);
            self.report.write(String::new, || {
                json!({
                    "v": VERSION, "t": "progress", "done": figures.done, "total": total, "files": figures.files,
                    "transferred": figures.transferred,
                })
            });
        }
    }

    fn rate(&self, figures: Figures) -> String {
        let moved = figures.done.saturating_sub(figures.resumed);
        let secs = self.began.elapsed().as_secs_f64().max(0.1);
        let rate = units::bytes((moved as f64 / secs) as u64);
        match self.is_counted {
            true => format!("{rate}/s"),
            false => format!("{}, {}, {rate}/s", units::files(figures.files), units::bytes(figures.done)),
        }
    }

    /// Reports once in each connection where the transfer goes on.
    fn report_resumed(&mut self, figures: Figures, total: Option<u64>) {
        if self.resumed.is_some() || figures.done == figures.resumed {
            return;
        }
        self.resumed = Some(figures.resumed);
        if figures.resumed == 0 {
            return;
        }
        let at = match total {
            Some(total) => format!("{} %", units::percent(figures.resumed, total)),
            None => units::bytes(figures.resumed),
        };
        self.suspend(|| {
            self.report.write(
                || format!("Resumed at {at} (verified)"),
                || json!({"v": VERSION, "t": "resumed", "done": figures.resumed, "total": total}),
            );
        });
    }

    /// Removes the bar.
    pub(super) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template);
    style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸─")
}

/// Returns the end of a name of the other side.
fn short_name(name: &str) -> String {
    let shown = escape::name(name);
    match shown.char_indices().rev().nth(MAX_NAME) {
        Some((at, c)) => format!("…{}", &shown[at + c.len_utf8()..]),
        None => shown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_keeps_its_end() {
        assert_eq!(short_name("video.mkv"), "video.mkv");
        let long = short_name(&("ä".repeat(50) + ".mkv"));
        assert!(
            long.starts_with('…') && long.ends_with(".mkv") && long.chars().count() == MAX_NAME + 1,
            "{long}"
        );
    }

    #[test]
    fn the_templates_are_valid() {
        for template in [TEMPLATE, TEMPLATE_UNCOUNTED] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
    }
}
