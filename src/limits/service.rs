//! The task that logs which limits are reached.

use super::sampler::LimitReporter;
use super::table::Table;
use crate::net::time::now;
use std::time::Duration;

/// How often the table is read.
const PERIOD: Duration = Duration::from_secs(1);

/// Logs each limit of this process that is reached, until it is dropped.
pub(crate) async fn report() {
    let mut reporter = LimitReporter::new(Table::of_process());
    let mut ticks = tokio::time::interval(PERIOD);
    loop {
        ticks.tick().await;
        for line in reporter.due(now().mono) {
            let (limit, value, times) = (line.limit.name(), line.value, line.times);
            if line.limit.is_configurable() {
                tracing::warn!(limit, value, times, "limit reached");
            } else {
                tracing::warn!(limit, value, times, "fixed limit reached");
            }
        }
    }
}
