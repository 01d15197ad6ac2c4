//! The line about the path of a connection: which one is in use, or for how long none has answered.

use super::report::Reporter;
use crate::agent::{PathChanges, PathInfo};
use crate::net::time;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};
use tokio::time::{sleep_until, timeout};

/// How often the time without a path is shown on a terminal.
const SECOND: Duration = Duration::from_secs(1);

/// Shows the paths of a connection until `work`, which uses the connection, has ended; returns its result.
pub(super) async fn show_while<T>(
    report: &Reporter,
    mut changes: PathChanges,
    work: impl Future<Output = T>,
) -> T {
    let mut line = PathLine::new(report);
    tokio::pin!(work);
    let result = loop {
        tokio::select! {
            result = &mut work => break result,
            Some(path) = changes.next() => line.show(&path),
            () = line.due() => line.refresh(),
        }
    };
    // The path of a short connection may be known only at its end.
    while let Ok(Some(path)) = timeout(Duration::ZERO, changes.next()).await {
        line.show(&path);
    }
    line.end();
    result
}

/// See the [module](self).
pub(super) struct PathLine<'a> {
    report: &'a Reporter,
    lost_at: Option<Instant>,
    is_terminal: bool,
}

impl<'a> PathLine<'a> {
    pub(super) fn new(report: &'a Reporter) -> Self {
        let is_terminal = !report.is_json() && io::stderr().is_terminal();
        Self { report, lost_at: None, is_terminal }
    }

    /// Shows a path, or its loss.
    pub(super) fn show(&mut self, path: &PathInfo) {
        let now = time::now().mono;
        let was_lost = self.end();
        if path.is_lost {
            self.lost_at = Some(now);
            if self.is_terminal {
                self.refresh();
            } else {
                self.report.path_lost(path);
            }
        } else {
            self.report.path(path, was_lost.map(|since| now.saturating_duration_since(since)));
        }
    }

    /// Waits until the time without a path is to be shown again.
    pub(super) async fn due(&self) {
        match self.lost_at.filter(|_| self.is_terminal) {
            Some(lost_at) => {
                let elapsed = time::now().mono.saturating_duration_since(lost_at).as_secs();
                sleep_until((lost_at + SECOND * u32::try_from(elapsed + 1).unwrap_or(u32::MAX)).into()).await;
            }
            None => std::future::pending().await,
        }
    }

    /// Shows how long no path has answered.
    pub(super) fn refresh(&self) {
        if let Some(lost_at) = self.lost_at {
            self.report.path_lost_for(time::now().mono.saturating_duration_since(lost_at));
        }
    }

    /// Ends the line that changes in place; returns since when no path has answered.
    pub(super) fn end(&mut self) -> Option<Instant> {
        let lost_at = self.lost_at.take();
        if lost_at.is_some() && self.is_terminal {
            self.report.end_line();
        }
        lost_at
    }
}
