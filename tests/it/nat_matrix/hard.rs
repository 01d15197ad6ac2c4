//! Cells that plain ICE does not make direct: port prediction and spray, and TCP simultaneous open.

use super::cells::{self, Cell, Expected};
use super::report::{self, CellRuns};
use super::{can_run, faults, run_cells};
use crate::tools;

/// A NAT of each kind that changes ports, before one that filters by port and before a firewall; two whose ports can be predicted.
const HARD: [&str; 8] = ["SP x PR", "PR x SB", "PR x SR", "SP x SP", "F x SP", "F x SB", "F x SR", "SP x V6"];
/// Lost at each link: 3 % between the peers, and between a peer and the server.
const LOST_PER_MILLE: u16 = 15;

fn once(cells: Vec<Cell>) -> Vec<(Cell, usize)> {
    cells.into_iter().map(|cell| (cell, 1)).collect()
}

/// A spray meets with 98 %: a cell may fail once.
#[test]
fn ports_that_follow_each_other_lie_in_a_block_or_are_random_are_met() {
    if !tools::have_laboratory() {
        return;
    }
    let work = once(cells::named(&HARD[..4]));
    let missed = |runs: &CellRuns| (runs.successes() == 0).then(|| runs.cell.clone());
    let again: Vec<Cell> = run_cells(&work, work.len(), 0, |_| ()).iter().filter_map(missed).collect();
    let faults = faults(&run_cells(&once(again), work.len(), 0, |_| ()));
    assert!(faults.is_empty(), "{faults}");
}

#[test]
#[ignore = "long: port prediction and spray, eight cells with and without loss, 20 times each"]
fn long_spray() {
    if !tools::have_laboratory() {
        return;
    }
    let (runs, workers) = (tools::switch("GINNEL_LONG_RUNS", 20), tools::switch("GINNEL_MATRIX_WORKERS", 3));
    let hard = cells::named(&HARD).into_iter().filter(can_run);
    let work: Vec<_> = hard.map(|cell| (cell, runs)).collect();
    for (lost, least) in [(0, 95), (LOST_PER_MILLE, 90)] {
        let done = run_cells(&work, workers, lost, |_| ());
        tools::print(&format!("{lost} of 1000 packets lost at each link\n{}", report::rows(&done)));
        let rare: Vec<CellRuns> =
            done.into_iter().filter(|cell| cell.successes() * 100 < cell.runs.len() * least).collect();
        assert!(rare.is_empty(), "less than {least} %\n{}\n{}", report::rows(&rare), faults(&rare));
    }
}

fn both_blocked() -> Cell {
    let cell = cells::named(&["UB x UB"]).remove(0);
    Cell { expected: Expected::DirectTcp, ..cell }
}

#[test]
fn two_nats_that_block_udp_are_crossed_by_tcp_from_both_sides_at_once() {
    if !tools::have_laboratory() {
        return;
    }
    let faults = faults(&run_cells(&once(vec![both_blocked()]), 1, 0, |_| ()));
    assert!(faults.is_empty(), "{faults}");
}

#[test]
#[ignore = "long: TCP simultaneous open through two NATs that block UDP, 100 times"]
fn long_simultaneous_open() {
    if !tools::have_laboratory() {
        return;
    }
    let runs = tools::switch("GINNEL_LONG_RUNS", 100);
    let done = run_cells(&[(both_blocked(), runs)], 1, 0, |_| ());
    tools::print(&report::rows(&done));
    assert!(done[0].successes() * 100 >= runs * 95, "{}", faults(&done));
}
