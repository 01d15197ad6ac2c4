//! CPU time and memory of a process, from `/proc`.

use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use std::fs;
use std::io;
use std::path::PathBuf;

/// A process that is watched.
#[derive(Debug, Clone)]
pub struct Process {
    pid: u32,
    folder: PathBuf,
}

impl Process {
    /// Watches the process `pid`.
    ///
    /// # Errors
    /// If it does not exist or `/proc` cannot be read.
    pub fn new(pid: u32) -> io::Result<Self> {
        let process = Self { pid, folder: format!("/proc/{pid}").into() };
        process.cpu_ns()?;
        Ok(process)
    }

    /// Watches this process.
    #[must_use]
    pub fn own() -> Self {
        Self { pid: std::process::id(), folder: "/proc/self".into() }
    }

    /// Returns its id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns the CPU time of its threads in ns. Ended threads are not counted.
    ///
    /// # Errors
    /// When it has ended.
    pub fn cpu_ns(&self) -> io::Result<u64> {
        let mut total = 0;
        for thread in fs::read_dir(self.folder.join("task"))? {
            // A thread may end between the two reads.
            let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
            total += run_time(&text).unwrap_or(0);
        }
        Ok(total)
    }

    /// Returns its resident memory in bytes.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resident(&self) -> io::Result<u64> {
        let text = fs::read_to_string(self.folder.join("status"))?;
        Ok(resident(&text).unwrap_or(0))
    }
}

/// Pins this thread to one processor.
///
/// # Errors
/// When there is no such processor.
pub fn pin(cpu: usize) -> io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// Returns how long this thread has run, in ns.
#[must_use]
pub fn thread_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

fn run_time(schedstat: &str) -> Option<u64> {
    schedstat.split_whitespace().next()?.parse().ok()
}

fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_working_process_uses_cpu_time() {
        let own = Process::own();
        let before = own.cpu_ns().unwrap();
        let sum = (0..3_000_000_u64).fold(0_u64, |sum, n| sum.wrapping_mul(31).wrapping_add(n));
        assert!(own.cpu_ns().unwrap() > before, "{sum}");
        assert!(own.resident().unwrap() > 100_000);
        assert!(Process::new(u32::MAX).is_err());
    }

    #[test]
    fn proc_files_are_parsed() {
        assert_eq!(run_time("12345 6 7\n"), Some(12_345));
        assert_eq!(resident("Name:\tx\nVmRSS:\t    20 kB\n"), Some(20 * 1024));
        assert_eq!((run_time(""), resident("")), (None, None));
    }
}
