//! Medians, spreads and ratios, as tables.

use super::Run;
use super::steps::{self, Figure};
use std::fmt::Write;

/// What ratios are to.
pub(super) const BASE: &str = "coturn";

const BEGIN: &str = "<!-- compare: begin -->";
const END: &str = "<!-- compare: end -->";

/// One server's figure.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) server: String,
    median: f64,
    least: f64,
    most: f64,
    rounds: usize,
    /// The median of the rounds' own ratios.
    pub(super) ratio: Option<f64>,
}

/// One figure of a step, for all servers.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) step: String,
    pub(super) figure: Figure,
    pub(super) is_main: bool,
    pub(super) rows: Vec<Row>,
}

pub(super) fn tables(runs: &[Run]) -> Vec<Table> {
    let mut names: Vec<(&str, &str)> = Vec::new();
    for run in runs {
        if !names.contains(&(&run.group, &run.step)) {
            names.push((&run.group, &run.step));
        }
    }
    let mut tables = Vec::new();
    for (group, step) in names {
        for (number, figure) in steps::figures(group, step).iter().enumerate() {
            let rows = rows(runs.iter().filter(|run| run.step == step && run.group == group), figure);
            tables.push(Table { step: step.to_owned(), figure: *figure, is_main: number == 0, rows });
        }
    }
    tables
}

fn rows<'a>(runs: impl Iterator<Item = &'a Run> + Clone, figure: &Figure) -> Vec<Row> {
    let mut servers: Vec<&str> = Vec::new();
    for run in runs.clone() {
        if !servers.contains(&run.server.as_str()) {
            servers.push(&run.server);
        }
    }
    let of = |server: &str| {
        let values = runs.clone().filter(|run| run.server == server);
        values.filter_map(|run| Some((run.round, figure.read(&run.report)?))).collect::<Vec<_>>()
    };
    let base = of(BASE);
    let row = |server: &&str| {
        let values = of(server);
        let ratios = values.iter().filter_map(|(round, value)| {
            let (_, base) = base.iter().find(|(other, _)| other == round)?;
            (*base > 0.0).then_some(value / base)
        });
        let mut numbers: Vec<_> = values.iter().map(|(_, value)| *value).collect();
        numbers.sort_by(f64::total_cmp);
        Some(Row {
            server: (*server).to_owned(),
            median: median(&numbers)?,
            least: *numbers.first()?,
            most: *numbers.last()?,
            rounds: numbers.len(),
            ratio: median(&sorted(ratios)),
        })
    };
    servers.iter().filter_map(row).collect()
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        1 => sorted.get(middle).copied(),
        _ => Some((sorted.get(middle.checked_sub(1)?)? + sorted.get(middle)?) / 2.0),
    }
}

fn number(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

impl Row {
    fn cells(&self) -> [String; 4] {
        let ratio = self.ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}"));
        let spread = format!("{}–{}", number(self.least), number(self.most));
        [self.server.clone(), number(self.median), spread, ratio]
    }
}

impl Table {
    fn title(&self) -> String {
        let rounds = self.rows.iter().map(|row| row.rounds).max().unwrap_or(0);
        format!("{}: {} in {}, {rounds} rounds", self.step, self.figure.name, self.figure.unit)
    }
}

pub(super) fn plain(tables: &[Table]) -> String {
    let mut text = String::new();
    for table in tables.iter().filter(|table| !table.rows.is_empty()) {
        let _ = writeln!(text, "\n{}", table.title());
        let better = if table.figure.more_is_better { "more is better" } else { "less is better" };
        let _ = writeln!(
            text,
            "  {:<18} {:>10} {:>18} {:>10}   ({better})",
            "", "median", "min–max", "to coturn"
        );
        for [server, median, spread, ratio] in table.rows.iter().map(Row::cells) {
            let _ = writeln!(text, "  {server:<18} {median:>10} {spread:>18} {ratio:>10}");
        }
    }
    text
}

/// Returns `page` with these tables between its marks.
pub(super) fn replace_tables(page: &str, tables: &[Table]) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    let rounds = tables.iter().flat_map(|table| &table.rows).map(|row| row.rounds).max().unwrap_or(0);
    Some(format!("{before}{BEGIN}\nMedians of {rounds} rounds.\n\n{}{END}{after}", markdown(tables)))
}

pub(super) fn markdown(tables: &[Table]) -> String {
    let mut text =
        "| load | figure | server | median | min–max | to coturn |\n| --- | --- | --- | --- | --- | --- |\n"
            .to_owned();
    for table in tables {
        for (number, [server, median, spread, ratio]) in table.rows.iter().map(Row::cells).enumerate() {
            let (step, figure) = match number {
                0 => (table.step.clone(), format!("{}, {}", table.figure.name, table.figure.unit)),
                _ => Default::default(),
            };
            let ratio = if server == "ginnel" && ratio != "–" { format!("**{ratio}**") } else { ratio };
            let _ = writeln!(text, "| {step} | {figure} | {server} | {median} | {spread} | {ratio} |");
        }
    }
    text
}
