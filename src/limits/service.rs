//! The hands: writes the lines that are due.

use super::sampler::Report;
use super::table::Table;
use crate::net::time::now;
use std::time::Duration;

/// How soon after a limit was first reached its line is written.
const PERIOD: Duration = Duration::from_secs(1);

/// Writes a line for each limit of this process that is reached, for as long as it is polled.
pub(crate) async fn report() {
    let mut report = Report::new(Table::of_process());
    let mut ticks = tokio::time::interval(PERIOD);
    loop {
        ticks.tick().await;
        for line in report.due(now().mono) {
            let (limit, value, times) = (line.limit.name(), line.value, line.times);
            if line.limit.is_configurable() {
                tracing::warn!(limit, value, times, "limit reached: the configuration key is named");
            } else {
                tracing::warn!(limit, value, times, "fixed limit reached");
            }
        }
    }
}
