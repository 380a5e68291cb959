//! What a node leaves on the machine: processes, mounts, cgroups, files, descriptors, memory.

use crate::agent::Agent;
use crate::report::Row;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Daemons whose descriptors, mounts and memory are looked at.
const DAEMONS: [&str; 5] = ["fsb-controller", "fsb-keeper", "fsb-spawner", "fsb-agent", "fsb-ctl"];

/// A count of everything that a node has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Footprint {
    counts: BTreeMap<&'static str, u64>,
    /// Resident KiB by daemon.
    memory_kib: BTreeMap<&'static str, u64>,
}

impl Footprint {
    /// Of the node in `root`, once nothing runs on it and its counts have come to rest, or are no more than those of
    /// `before`.
    pub fn settled(root: &Path, agent: &mut Agent, patience: Duration, before: Option<&Self>) -> anyhow::Result<Self> {
        let end = Instant::now() + patience;
        let mut last = Self::take(root, agent)?;
        loop {
            std::thread::sleep(Duration::from_millis(500));
            let now = Self::take(root, agent)?;
            let rest = match before {
                Some(before) => now.more_than(before).is_empty(),
                None => now.counts == last.counts,
            };
            if rest || Instant::now() > end {
                return Ok(now);
            }
            last = now;
            crate::interrupt::check()?;
        }
    }

    fn take(root: &Path, agent: &mut Agent) -> anyhow::Result<Self> {
        let mut own = Self::default();
        let family = family(root);
        let daemons: Vec<(i32, &'static str)> = family.iter().filter_map(|&pid| Some((pid, daemon(pid)?))).collect();
        for &(pid, name) in &daemons {
            let entries = |dir: &str| std::fs::read_dir(format!("/proc/{pid}/{dir}")).map_or(0, Iterator::count) as u64;
            let lines = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
            *own.counts.entry("descriptors").or_default() += entries("fd");
            *own.counts.entry("mounts").or_default() += lines("mountinfo").lines().count() as u64;
            *own.memory_kib.entry(name).or_default() += resident_kib(&lines("status"));
        }
        own.counts.insert("processes", family.len() as u64);
        own.counts.insert("instances", agent.status()?.instances.len() as u64);
        own.counts.insert("cgroups", cgroups(&daemons));
        let mut files = 0;
        for part in ["run", "lib", "log"] {
            files += count(&root.join(part), 8);
        }
        own.counts.insert("files", files);
        Ok(own)
    }

    /// What there is more of than `before`, and how much.
    pub fn more_than(&self, before: &Self) -> Vec<(&'static str, u64)> {
        let had = |what| before.counts.get(what).copied().unwrap_or(0);
        self.counts.iter().map(|(what, count)| (*what, count.saturating_sub(had(*what)))).filter(|m| m.1 > 0).collect()
    }

    /// By how many KiB each daemon has grown.
    pub fn growth_kib(&self, before: &Self) -> Vec<(&'static str, i64)> {
        let had = |what| before.memory_kib.get(what).copied().unwrap_or(0) as i64;
        self.memory_kib.iter().map(|(daemon, kib)| (*daemon, *kib as i64 - had(*daemon))).collect()
    }

    /// As a row of a report.
    pub fn row(&self, name: &str) -> Row {
        let mut row = Row::of_values(name, self.counts.iter().map(|(what, count)| (*what, (*count).into())));
        for (daemon, kib) in &self.memory_kib {
            row.values.insert(format!("{daemon}_kib"), (*kib).into());
        }
        row
    }
}

/// The processes of the node: whose command line or whose ancestor's names its directory.
fn family(root: &Path) -> BTreeSet<i32> {
    let pids: Vec<i32> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    let name = root.display().to_string();
    let mut family: BTreeSet<i32> = pids.iter().copied().filter(|&pid| is_supervisor(pid, &name)).collect();
    loop {
        let more: Vec<i32> = pids
            .iter()
            .copied()
            .filter(|pid| !family.contains(pid) && parent(*pid).is_some_and(|parent| family.contains(&parent)))
            .collect();
        if more.is_empty() {
            return family;
        }
        family.extend(more);
    }
}

fn is_supervisor(pid: i32, root: &str) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    daemon(pid) == Some("fsb-ctl") && words.iter().any(|word| word.ends_with(root.as_bytes()))
}

fn parent(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in brackets and may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn daemon(pid: i32) -> Option<&'static str> {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    DAEMONS.into_iter().find(|daemon| name.trim() == &daemon[..daemon.len().min(15)])
}

fn resident_kib(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Cgroups below those that carry the node's name, in every hierarchy.
fn cgroups(daemons: &[(i32, &'static str)]) -> u64 {
    let mut tops = BTreeSet::new();
    for (pid, _) in daemons {
        for line in std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default().lines() {
            let own = line.rsplit(':').next().unwrap_or("").split('/').find(|part| part.starts_with("fsb-"));
            tops.extend(own.map(str::to_owned));
        }
    }
    let mut all = 0;
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let mut found = Vec::new();
        find(&hierarchy.path(), &tops, 4, &mut found);
        all += found.iter().map(|top| directories(top)).sum::<u64>();
    }
    all
}

fn find(dir: &Path, names: &BTreeSet<String>, depth: usize, found: &mut Vec<PathBuf>) {
    if dir.file_name().and_then(|name| name.to_str()).is_some_and(|name| names.contains(name)) {
        found.push(dir.to_owned());
    } else if depth > 0 && !dir.is_symlink() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                find(&entry.path(), names, depth - 1, found);
            }
        }
    }
}

fn directories(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    below.map(|entry| 1 + directories(&entry.path())).sum()
}

/// Files and directories below `dir`.
fn count(dir: &Path, depth: usize) -> u64 {
    let mut all = 0;
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        all += 1;
        if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all += count(&entry.path(), depth - 1);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_there_is_more_of_is_a_leak() {
        let footprint = |files, mounts| Footprint {
            counts: BTreeMap::from([("files", files), ("mounts", mounts)]),
            memory_kib: BTreeMap::from([("fsb-agent", files)]),
        };
        let (before, after) = (footprint(10, 5), footprint(12, 4));
        assert_eq!(after.more_than(&before), [("files", 2)]);
        assert_eq!(before.growth_kib(&after), [("fsb-agent", -2)]);
        assert!(before.more_than(&before).is_empty());
    }
}
