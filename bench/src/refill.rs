//! What a refill costs: the processor time of whoever makes paused containers, per container. Spawner and moulds do
//! nothing else; what a paused process has used until it parked is on its own account.

use crate::helper::children;
use std::path::{Path, PathBuf};

/// Watches the keeper of one agent.
#[derive(Debug, Clone)]
pub struct Meter {
    keeper: PathBuf,
    /// Processor time of the makers at the beginning, in nanoseconds.
    before_ns: u64,
    starts: u64,
}

impl Meter {
    /// Of the agent called `name` (`POD_NAME`), whose files lie below `dir`; `None` if there is none, or if this kernel
    /// does not count in nanoseconds.
    pub fn open(dir: &Path, name: &str) -> Option<Self> {
        let keeper = processes().find(|process| is_keeper_of(process, dir, name))?;
        let meter = Self { before_ns: 0, keeper, starts: 0 };
        let (makers, _) = meter.read();
        Some(Self { before_ns: makers?, ..meter })
    }

    /// A start, which the stock makes up for.
    pub fn started(&mut self, count: usize) {
        self.starts += count as u64;
    }

    /// Mean processor time of a container from nothing until it was parked, in microseconds.
    pub fn cpu_us(&self) -> Option<f64> {
        let (makers, parked) = self.read();
        let made = makers?.checked_sub(self.before_ns)? as f64 / self.starts.max(1) as f64;
        (self.starts > 0).then(|| (made + parked.unwrap_or(0.0)) / 1e3)
    }

    /// Of spawner and moulds together, and the mean of paused processes.
    fn read(&self) -> (Option<u64>, Option<f64>) {
        let Some(pid) = pid_of(&self.keeper) else { return (None, None) };
        let mut makers = None;
        let mut parked = Vec::new();
        for child in children(pid) {
            let process = Path::new("/proc").join(child.to_string());
            let Some(used) = cpu_ns(&process) else { continue };
            match comm(&process).as_str() {
                "fsb-spawner" => *makers.get_or_insert(0) += used,
                // Moulds are the same program as what they cast, with capabilities that those lack.
                _ if is_parked_program(&process) => match may_mount(&process) {
                    true => *makers.get_or_insert(0) += used,
                    false => parked.push(used as f64),
                },
                _ => {}
            }
        }
        let mean = (!parked.is_empty()).then(|| parked.iter().sum::<f64>() / parked.len() as f64);
        (makers, mean)
    }
}

fn processes() -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| pid_of(path).is_some())
}

fn pid_of(process: &Path) -> Option<i32> {
    process.file_name()?.to_str()?.parse().ok()
}

fn comm(process: &Path) -> String {
    std::fs::read_to_string(process.join("comm")).unwrap_or_default().trim().to_owned()
}

fn is_keeper_of(process: &Path, dir: &Path, name: &str) -> bool {
    if comm(process) != "fsb-keeper" {
        return false;
    }
    let environment = std::fs::read(process.join("environ")).unwrap_or_default();
    let value = |key: &str| {
        let key = format!("{key}=");
        environment
            .split(|byte| *byte == 0)
            .find_map(|variable| variable.strip_prefix(key.as_bytes()))
            .map(|value| String::from_utf8_lossy(value).into_owned())
    };
    value("POD_NAME").as_deref() == Some(name)
        && value("FSB_RUN_DIR").is_some_and(|run| Path::new(&run).starts_with(dir))
}

/// The parked program is run from a sealed file in memory.
fn is_parked_program(process: &Path) -> bool {
    std::fs::read_link(process.join("exe")).is_ok_and(|exe| exe.to_string_lossy().starts_with("/memfd:"))
}

fn may_mount(process: &Path) -> bool {
    const SYS_ADMIN: u64 = 1 << 21;
    let status = std::fs::read_to_string(process.join("status")).unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & SYS_ADMIN != 0)
}

/// Time on a processor, in nanoseconds (Documentation/scheduler/sched-stats.rst).
fn cpu_ns(process: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(process.join("schedstat")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_no_meter_without_a_keeper() {
        assert!(Meter::open(Path::new("/nowhere"), "nobody").is_none());
    }

    #[test]
    fn processor_time_is_read_in_nanoseconds() {
        assert!(cpu_ns(Path::new("/proc/self")).unwrap() > 0);
        assert!(!is_parked_program(Path::new("/proc/self")));
    }
}
