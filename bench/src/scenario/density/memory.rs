//! Readings of memory, after what was just made has come to rest.

use crate::helper::children;
use crate::machine::available_kib;
use crate::stats::median;
use std::time::Duration;

/// Readings of the available memory; the middle one counts.
const READINGS: usize = 15;

/// Memory in use.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// What the machine has less of, from an origin of its own: only differences mean something.
    pub used_kib: i64,
    /// Proportional set sizes of all processes of the node.
    pub pss_kib: i64,
}

impl Reading {
    /// Of a node, with all that `process` has started.
    pub fn settled(process: i32) -> anyhow::Result<Self> {
        std::thread::sleep(Duration::from_millis(500));
        let mut readings = Vec::with_capacity(READINGS);
        for _ in 0..READINGS {
            std::thread::sleep(Duration::from_millis(20));
            readings.push(available_kib()?);
        }
        Ok(Self { used_kib: -median(&readings).unwrap_or(0), pss_kib: pss_kib(process) })
    }
}

/// The sum over a process and all below it.
fn pss_kib(process: i32) -> i64 {
    let mut sum = 0;
    let mut queue = vec![process];
    while let Some(pid) = queue.pop() {
        // One that has just ended has none.
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        sum += parse(&text);
        queue.extend(children(pid));
    }
    sum
}

fn parse(rollup: &str) -> i64 {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_and_its_children_are_counted() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (own, with_child) = (pss_kib(child.id() as i32), pss_kib(std::process::id() as i32));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(own > 0 && with_child > own, "{own} {with_child}");
        assert_eq!(parse("Rss: 5 kB\nPss:                  12 kB\n"), 12);
    }
}
