//! The loads, and the figures that are compared.

use super::servers::Kind;
use anyhow::bail;
use serde_json::Value;

/// One load.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) group: &'static str,
    pub(super) name: &'static str,
    /// The arguments of `ginnel load`.
    pub(super) load: &'static str,
    /// Whether it works with a forwarder, which does not check anything.
    is_bare: bool,
}

/// A figure of a report.
#[derive(Debug, Clone, Copy)]
pub(super) struct Figure {
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
    path: &'static str,
    /// Whether a larger value is better.
    pub(super) more_is_better: bool,
}

impl Figure {
    pub(super) fn read(&self, report: &Value) -> Option<f64> {
        report.pointer(self.path)?.as_f64()
    }
}

const fn figure(name: &'static str, unit: &'static str, path: &'static str, more_is_better: bool) -> Figure {
    Figure { name, unit, path, more_is_better }
}

const PACKETS: [Figure; 3] = [
    figure("CPU per packet", "µs", "/server_cpu/us_each", false),
    figure("rate", "packets/s", "/packets_per_second", true),
    figure("generator's CPU per packet", "µs", "/own_cpu/us_each", false),
];
const ALLOCATIONS: [Figure; 3] = [
    figure("CPU per allocation", "µs", "/server_cpu/us_each", false),
    figure("rate", "allocations/s", "/allocations_per_second", true),
    figure("memory per allocation", "bytes", "/server_bytes_each", false),
];
const HIGHEST: [Figure; 2] = [
    figure("highest rate with less than 0.1 % loss", "packets/s", "/highest_rate", true),
    figure("p99 latency at half of it", "µs", "/at_half/latency_us/p99", false),
];

const fn step(group: &'static str, name: &'static str, load: &'static str, is_bare: bool) -> Step {
    Step { group, name, load, is_bare }
}

const STEPS: [Step; 14] = [
    step("binding", "Binding", "binding --sockets 64 --window 192", false),
    step("relay", "172 B, 1 allocation", "relay --allocations 1 --window 192", true),
    step("relay", "172 B, 100 allocations", "relay --allocations 100 --window 192", true),
    step("relay", "172 B, 1000 allocations", "relay --allocations 1000 --window 192", true),
    step(
        "burst",
        "1200 B, bursts of 8",
        "relay --allocations 100 --window 256 --size 1200 --burst 8 --no-gso",
        true,
    ),
    step(
        "gso",
        "1200 B, bursts of 8, aggregated",
        "relay --allocations 100 --window 256 --size 1200 --burst 8",
        true,
    ),
    step("fixed", "172 B, 50 000 packets/s", "relay --allocations 100 --rate 50000", true),
    step("pair", "client to client", "relay --allocations 100 --window 192 --peers clients", false),
    step("indications", "indications", "relay --allocations 100 --window 192 --indications", false),
    step("tcp", "TCP to the clients", "relay --allocations 100 --window 192 --transport tcp", false),
    step("allocate", "9500 allocations", "allocate --count 9500 --concurrency 64", false),
    step("search", "highest rate", "relay --allocations 100 --search --trial 0.5", true),
    step("large", "100 000 allocations", "allocate --count 100000 --concurrency 64", false),
    step("large", "172 B, 100 000 allocations", "relay --allocations 100000 --window 192", false),
];

/// Returns the steps of these groups; without any, of all but the large one.
pub(super) fn of(groups: &[String]) -> anyhow::Result<Vec<Step>> {
    if let Some(strange) = groups.iter().find(|group| !STEPS.iter().any(|step| step.group == **group)) {
        bail!("--groups {strange}: there is no such group");
    }
    let wanted = |step: &&Step| match groups {
        [] => step.group != "large",
        _ => groups.iter().any(|group| step.group == group),
    };
    Ok(STEPS.iter().filter(wanted).copied().collect())
}

/// Returns the figures of a step by its group's name.
pub(super) fn figures(group: &str, step: &str) -> &'static [Figure] {
    match group {
        "search" => &HIGHEST,
        "allocate" => &ALLOCATIONS,
        "large" if !step.contains(" B,") => &ALLOCATIONS,
        _ => &PACKETS,
    }
}

impl Step {
    pub(super) fn figures(&self) -> &'static [Figure] {
        figures(self.group, self.name)
    }

    /// Returns whether the step is meaningful for this kind of server.
    pub(super) fn supports(&self, kind: Kind) -> bool {
        match kind {
            Kind::Ginnel | Kind::Coturn if self.group == "large" => kind == Kind::Ginnel,
            Kind::Ginnel | Kind::Coturn => true,
            Kind::Forward | Kind::ForwardBatched => self.is_bare,
            Kind::ForwardSegmented => matches!(self.group, "burst" | "gso"),
        }
    }
}
