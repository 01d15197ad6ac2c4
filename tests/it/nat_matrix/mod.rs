//! Which pair of networks ends on which path: real agents in each pair of NAT classes and in special networks. `docs/nat-matrix.md` has the figures.
//!
//! `GINNEL_LONG_RUNS` sets the runs of a cell, `GINNEL_MATRIX_CELLS` names some cells (separated by semicolons) and prints them instead of writing the page,
//! and `GINNEL_MATRIX_WORKERS` sets how many cells run at the same time.

mod cells;
mod hard;
mod report;
mod run;
mod scene;
mod trouble;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::tools;

use cells::{Cell, Expected, Setting};
use report::{CellRuns, Table};
use scene::Scene;

/// Whether the programs of a cell are installed here.
fn can_run(cell: &Cell) -> bool {
    match cell.setting {
        Setting::Apart(_, cells::Class::Ipv6Only) => tools::happens_to_have(&["tayga"]),
        Setting::PortMapping { .. } | Setting::MappedLayer { .. } => tools::happens_to_have(&["miniupnpd"]),
        _ => true,
    }
}

/// Runs a cell so many times; sides swap in every other run.
fn run_cell(cell: &Cell, runs: usize, lost_per_mille: u16) -> CellRuns {
    let seed = cell.name.bytes().fold(7_u64, |seed, byte| seed.wrapping_mul(31) + u64::from(byte));
    let mut scene = Scene::new(cell.setting, seed, lost_per_mille);
    let mut done = Vec::new();
    for _ in 0..runs {
        done.push(run::run(&scene, cell.setting, cell.expected));
        scene.nats.iter().for_each(|nat| scene.net.reboot(nat));
        scene.sides.swap(0, 1);
    }
    CellRuns { cell: cell.clone(), runs: done }
}

/// Runs cells with some workers; calls `report` with all that is done, in the order of the cells, after each.
fn run_cells(
    work: &[(Cell, usize)],
    workers: usize,
    lost_per_mille: u16,
    report: impl Fn(&[CellRuns]) + Sync,
) -> Vec<CellRuns> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::<(usize, CellRuns)>::new()));
    std::thread::scope(|scope| {
        for _ in 0..workers.min(work.len()) {
            scope.spawn(|| {
                while let Some((cell, runs)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = run_cell(cell, *runs, lost_per_mille);
                    let index = work.iter().position(|(other, _)| other.name == cell.name).unwrap();
                    let mut done = done.lock().unwrap();
                    done.push((index, result));
                    done.sort_by_key(|(index, _)| *index);
                    report(&done.iter().map(|(_, runs)| runs.clone()).collect::<Vec<_>>());
                }
            });
        }
    });
    done.into_inner().unwrap().into_iter().map(|(_, runs)| runs).collect()
}

/// The faults of all runs, one text.
fn faults(cells: &[CellRuns]) -> String {
    let of_cell = |runs: &CellRuns| {
        let name = runs.cell.name.clone();
        let faults = runs.runs.iter().filter_map(|run| match run {
            Ok(outcome) => outcome.fault.clone(),
            Err(error) => Some(error.clone()),
        });
        faults.map(|fault| format!("{name}: {fault}")).collect::<Vec<_>>()
    };
    cells.iter().flat_map(of_cell).collect::<Vec<_>>().join("\n\n")
}

#[test]
fn twenty_cells_end_on_their_paths() {
    if !tools::have_laboratory() {
        return;
    }
    let work: Vec<_> = cells::named(&cells::IN_CI).into_iter().map(|cell| (cell, 1)).collect();
    let done = run_cells(&work, work.len(), 0, |_| ());
    let faults = faults(&done);
    assert!(faults.is_empty(), "{faults}");
}

#[test]
fn a_host_with_only_ipv6_reaches_ipv4_peers_through_nat64() {
    if !tools::have_laboratory() || !tools::have(&["tayga"]) {
        return;
    }
    let work: Vec<_> = cells::named(&["O x V6", "PR x V6"]).into_iter().map(|cell| (cell, 2)).collect();
    let done = run_cells(&work, work.len(), 0, |_| ());
    let faults = faults(&done);
    assert!(faults.is_empty(), "{faults}");
}

#[test]
fn the_table_names_55_pairs_and_only_cells_that_exist() {
    assert_eq!(cells::pairs().len(), 55);
    for names in [&cells::IN_CI[..], &cells::OFTEN, &cells::LOSSY] {
        assert_eq!(cells::named(names).len(), names.len());
    }
}

#[test]
#[ignore = "long: every pair of networks, 20 times each, written to docs/nat-matrix.md"]
fn long_nat_matrix() {
    if !tools::have_laboratory() {
        return;
    }
    let base = tools::switch("GINNEL_LONG_RUNS", 20);
    let workers = tools::switch("GINNEL_MATRIX_WORKERS", 6);
    let runs = |cell: &Cell| if cells::OFTEN.contains(&cell.name.as_str()) { 5 * base } else { base };
    let with_runs = |cells: Vec<Cell>| -> Vec<_> {
        cells.into_iter().filter(can_run).map(|cell| (cell.clone(), runs(&cell))).collect()
    };
    let chosen = std::env::var("GINNEL_MATRIX_CELLS").ok();
    if let Some(chosen) = chosen {
        let names: Vec<&str> = chosen.split(';').collect();
        let lost = tools::switch("GINNEL_MATRIX_LOSS", 0);
        let work: Vec<_> = cells::named(&names).into_iter().map(|cell| (cell, base)).collect();
        let done = run_cells(&work, workers, u16::try_from(lost).unwrap(), |_| ());
        tools::print(&report::rows(&done));
        let faults = faults(&done);
        tools::print(&faults);
        return;
    }
    let conditions = format!(
        "This page: {base} runs a cell, ten cells five times as often, {workers} cells at the same time on {} cores, {} build.",
        std::thread::available_parallelism().map_or(1, usize::from),
        if tools::binary("agent").contains("/release/") { "release" } else { "debug" }
    );
    let write = |pairs: &[CellRuns], special: &[CellRuns], lossy: &[CellRuns]| {
        let tables = [
            Table { title: "Pairs", text: "Each agent in a network of its own.", rows: pairs },
            Table { title: "Special networks", text: "What is no pair of classes.", rows: special },
            Table {
                title: "With 3 % loss",
                text: "Of the packets between the peers, and of those to the server.",
                rows: lossy,
            },
        ];
        report::write(&tables, &conditions);
    };
    let pairs = run_cells(&with_runs(cells::pairs()), workers, 0, |pairs| write(pairs, &[], &[]));
    let special = run_cells(&with_runs(cells::special()), workers, 0, |special| write(&pairs, special, &[]));
    let lossy: Vec<_> = cells::named(&cells::LOSSY).into_iter().map(|cell| (cell, base)).collect();
    let lossy = run_cells(&lossy, workers, 15, |lossy| write(&pairs, &special, lossy));
    let all = [pairs, special, lossy].concat();
    for cell in all.iter().filter(|runs| runs.successes() < runs.runs.len()) {
        tools::print(&format!("{}: {} of {} as expected", cell.cell.name, cell.successes(), cell.runs.len()));
    }
    let must_be_sure = |cell: &Cell| !matches!(cell.expected, Expected::Predicted | Expected::Sprayed);
    let sure: Vec<_> = all.into_iter().filter(|runs| must_be_sure(&runs.cell)).collect();
    let faults = faults(&sure);
    assert!(faults.is_empty(), "{faults}");
}
