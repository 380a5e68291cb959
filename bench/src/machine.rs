//! What was measured on: without it a figure means nothing.

use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// The machine, and how busy it was with other things.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub cpus: usize,
    pub cpu_model: String,
    pub memory_mib: u64,
    pub kernel: String,
    /// `v1`, `v2` or `hybrid`.
    pub cgroups: String,
    /// File system type of the directory that layers lie in.
    pub disk: String,
    /// One-minute load average.
    pub load_before: f64,
    pub load_after: f64,
    /// Share of the time that the hypervisor ran somebody else, in percent, during the run.
    pub steal_percent: f64,
    pub version: String,
    /// What a reader must know before believing a figure.
    pub warnings: Vec<String>,
}

/// Counters of CPU time, in clock ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuTime {
    pub total: u64,
    pub steal: u64,
}

impl CpuTime {
    /// Now.
    pub fn now() -> Self {
        Self::parse(&std::fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    fn parse(stat: &str) -> Self {
        let fields: Vec<u64> =
            stat.lines().next().unwrap_or("").split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal guest guest_nice; guests are counted in user (proc(5))
        Self { total: fields.iter().take(8).sum(), steal: fields.get(7).copied().unwrap_or(0) }
    }

    /// Percent of the time since `earlier` that was stolen.
    pub fn steal_since(&self, earlier: &Self) -> f64 {
        let total = self.total.saturating_sub(earlier.total).max(1);
        self.steal.saturating_sub(earlier.steal) as f64 * 100.0 / total as f64
    }
}

/// The one-minute load average.
pub fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

/// Waits until the machine has done what the last sample left behind (refills, cgroups that go away): at least `gap`,
/// then until nothing but this thread has run for a few looks, or 15 ms more where other programs keep it busy.
pub fn rest(gap: Duration) {
    std::thread::sleep(gap);
    let end = Instant::now() + Duration::from_millis(15);
    let mut calm = 0;
    while calm < 3 && Instant::now() < end {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        calm = if field(&stat, "procs_running").is_some_and(|running| running <= 1) { calm + 1 } else { 0 };
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// MemAvailable in KiB.
pub fn available_kib() -> anyhow::Result<i64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    field(&text, "MemAvailable:").ok_or_else(|| anyhow::anyhow!("/proc/meminfo has no MemAvailable"))
}

fn field(text: &str, name: &str) -> Option<i64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

impl Machine {
    /// This machine, now; `dir` is where layers lie.
    pub fn here(dir: &std::path::Path) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let model = read("/proc/cpuinfo")
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, v)| v.trim().to_owned()));
        let mounts = read("/proc/self/mountinfo");
        Self {
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            cpu_model: model.unwrap_or_default(),
            memory_mib: field(&read("/proc/meminfo"), "MemTotal:").unwrap_or(0) as u64 / 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cgroups: cgroups(&mounts).to_owned(),
            disk: file_system(&mounts, dir).unwrap_or_default(),
            load_before: load(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Self::default()
        }
    }
}

/// Watches how busy the machine is with other things while something is measured.
#[derive(Debug)]
pub struct Watch {
    machine: Machine,
    before: CpuTime,
}

impl Watch {
    /// From now on; `dir` is where layers lie.
    pub fn begin(dir: &std::path::Path) -> Self {
        Self { machine: Machine::here(dir), before: CpuTime::now() }
    }

    /// Until now. What it saw that spoils figures comes after `warnings`.
    pub fn end(self, mut warnings: Vec<String>) -> Machine {
        let mut machine = self.machine;
        machine.load_after = load();
        machine.steal_percent = (CpuTime::now().steal_since(&self.before) * 10.0).round() / 10.0;
        if machine.load_before > machine.cpus as f64 * 0.75 {
            let load = machine.load_before;
            warnings.push(format!("the machine was busy with other things: load {load:.2} at the start"));
        }
        if machine.steal_percent > 1.0 {
            warnings.push(format!("the hypervisor took {:.1} % of the time away", machine.steal_percent));
        }
        machine.warnings = warnings;
        machine
    }
}

fn cgroups(mountinfo: &str) -> &'static str {
    let has = |kind: &str| mountinfo.lines().any(|line| line.contains(&format!(" - {kind} ")));
    match (has("cgroup"), has("cgroup2")) {
        (true, true) => "hybrid",
        (true, false) => "v1",
        (false, true) => "v2",
        (false, false) => "none",
    }
}

fn file_system(mountinfo: &str, dir: &std::path::Path) -> Option<String> {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let mut best: Option<(usize, String)> = None;
    for line in mountinfo.lines() {
        let (left, right) = line.split_once(" - ")?;
        let point = left.split(' ').nth(4)?;
        // Of two mounts on one point the later one is on top.
        if dir.starts_with(point) && best.as_ref().is_none_or(|(length, _)| point.len() >= *length) {
            best = Some((point.len(), right.split(' ').next()?.to_owned()));
        }
    }
    best.map(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steal_is_a_share_of_the_time_between() {
        let a = CpuTime::parse("cpu  100 0 100 800 0 0 0 0 50 0\ncpu0 1");
        let b = CpuTime::parse("cpu  150 0 120 820 0 0 0 10 50 0");
        assert_eq!((a.total, b.total), (1000, 1100));
        assert_eq!(b.steal_since(&a), 10.0);
    }

    #[test]
    fn the_file_system_of_a_directory_is_that_of_its_topmost_mount() {
        let mounts = "1 0 8:1 / / rw - ext4 /dev/vda rw\n2 1 0:5 / /tmp rw - tmpfs tmpfs rw\n\
                      3 1 0:6 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory";
        assert_eq!(file_system(mounts, std::path::Path::new("/tmp/x/y")).as_deref(), Some("tmpfs"));
        assert_eq!(file_system(mounts, std::path::Path::new("/srv")).as_deref(), Some("ext4"));
        assert_eq!(cgroups(mounts), "v1");
    }
}
