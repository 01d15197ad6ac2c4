//! The page `docs/nat-matrix.md`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use super::cells::{CLASSES, Cell};
use super::run::Outcome;

/// The runs of one cell.
#[derive(Debug, Clone)]
pub(super) struct CellRuns {
    pub(super) cell: Cell,
    pub(super) runs: Vec<Result<Outcome, String>>,
}

impl CellRuns {
    fn outcomes(&self) -> impl Iterator<Item = &Outcome> {
        self.runs.iter().filter_map(|run| run.as_ref().ok())
    }

    /// Runs that ended as the cell has to.
    pub(super) fn successes(&self) -> usize {
        self.outcomes().filter(|outcome| outcome.fault.is_none()).count()
    }

    /// The final paths with their numbers, the reasons of relayed ones beside them.
    fn paths(&self) -> String {
        let mut paths: BTreeMap<String, usize> = BTreeMap::new();
        for run in &self.runs {
            let text = match run {
                Ok(Outcome { path, reason: Some(reason), .. }) => format!("{path}: {reason}"),
                Ok(Outcome { path, .. }) => path.clone(),
                Err(_) => "no bytes".to_owned(),
            };
            *paths.entry(text).or_default() += 1;
        }
        let all = self.runs.len();
        let listed = paths.into_iter().map(|(path, count)| match count == all {
            true => path,
            false => format!("{count} × {path}"),
        });
        listed.collect::<Vec<_>>().join("; ")
    }

    fn row(&self) -> String {
        let first_bytes = self.outcomes().map(|outcome| outcome.first_byte).collect();
        let direct = self.outcomes().filter_map(|outcome| outcome.direct).collect();
        format!(
            "| {} | {} | {} | {} | {} | {} | {} |",
            self.cell.name,
            self.cell.expected.tag(),
            self.runs.len(),
            self.successes(),
            quantiles(first_bytes),
            quantiles(direct),
            self.paths()
        )
    }
}

/// Median and 95th percentile in milliseconds.
fn quantiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let Some(last) = times.len().checked_sub(1) else { return "–".to_owned() };
    let at =
        |percent: usize| times[(times.len() * percent).div_ceil(100).saturating_sub(1).min(last)].as_millis();
    format!("{} / {}", at(50), at(95))
}

/// A table of the page.
pub(super) struct Table<'a> {
    pub(super) title: &'a str,
    pub(super) text: &'a str,
    pub(super) rows: &'a [CellRuns],
}

/// The rows of some cells, without a page around them.
pub(super) fn rows(cells: &[CellRuns]) -> String {
    cells.iter().map(CellRuns::row).collect::<Vec<_>>().join("\n")
}

/// Writes the page anew.
pub(super) fn write(tables: &[Table<'_>], conditions: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/nat-matrix.md");
    std::fs::write(path, page(tables, conditions)).unwrap();
}

fn page(tables: &[Table<'_>], conditions: &str) -> String {
    let mut page = String::from(
        "# Which pair of networks ends on which path\n\n\
         Written by `scripts/test long nat_matrix`: `ginnel serve`, `agent listen` and `agent connect` as real processes on the routed internet of\n\
         `tests/it/lab/router.rs`, with 50 ms to the server and back, 30 ms between the peers and back. The cells are in `tests/it/nat_matrix/cells.rs`.\n\n\
         | tag | network |\n| --- | --- |\n",
    );
    for class in CLASSES {
        writeln!(page, "| {} | {} |", class.tag(), class.meaning()).unwrap();
    }
    page.push_str(
        "\nExpected: D direct by plain ICE · X direct through a peer-reflexive candidate · P direct by port prediction · B direct by a bounded spray, else relayed ·\n\
         T direct by TCP · R relayed with the reason printed. The times are milliseconds from the start of the connector's process, p50 / p95: until bytes have\n\
         come through in both directions, and until the path is direct.\n\n",
    );
    writeln!(page, "{conditions}").unwrap();
    for table in tables {
        writeln!(page, "\n## {}\n\n{}\n", table.title, table.text).unwrap();
        page.push_str("| cell | expected | runs | as expected | first byte | direct | final path |\n");
        page.push_str("| --- | --- | ---: | ---: | ---: | ---: | --- |\n");
        for row in table.rows {
            writeln!(page, "{}", row.row()).unwrap();
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_nearest_rank() {
        let times = |count: u64| (1..=count).map(Duration::from_millis).collect();
        assert_eq!(quantiles(times(100)), "50 / 95");
        assert_eq!(quantiles(times(20)), "10 / 19");
        assert_eq!(quantiles(times(1)), "1 / 1");
        assert_eq!(quantiles(times(0)), "–");
    }
}
