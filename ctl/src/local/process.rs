//! Processes that may have been started by somebody who is gone: known by pid and start time, so that a pid that was
//! used again is never taken for the old one.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::{Duration, Instant};

/// A process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// Clock ticks since boot (field 22 of proc_pid_stat(5)).
    pub(crate) started: u64,
}

impl Process {
    /// The process that has this pid now.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let (_, started) = stat(pid)?;
        Some(Self { pid, started })
    }

    /// This process.
    pub(crate) fn current() -> Option<Self> {
        Self::of(std::process::id() as i32)
    }

    /// Whether it still runs. A zombie does not.
    pub(crate) fn alive(&self) -> bool {
        stat(self.pid).is_some_and(|(state, started)| started == self.started && !matches!(state, 'Z' | 'X'))
    }

    /// Sends a signal, if it is still the same process. The moment between look and signal is too short for the
    /// kernel to go round all pids.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.alive() {
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// Waits for its end; false if it still runs then.
    pub(crate) fn wait(&self, deadline: Duration) -> bool {
        let until = Instant::now() + deadline;
        while self.alive() {
            if Instant::now() > until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Asks it to end, waits for `grace`, and ends it.
    pub(crate) fn stop(&self, grace: Duration) -> bool {
        self.signal(Signal::SIGTERM);
        if self.wait(grace) {
            return true;
        }
        self.signal(Signal::SIGKILL);
        self.wait(Duration::from_secs(5))
    }

    /// Since when it runs.
    pub(crate) fn age(&self) -> Option<Duration> {
        let uptime: f64 = std::fs::read_to_string("/proc/uptime").ok()?.split(' ').next()?.parse().ok()?;
        let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
        Duration::try_from_secs_f64(uptime - self.started as f64 / ticks as f64).ok()
    }
}

/// State and start time.
fn stat(pid: i32) -> Option<(char, u64)> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse(stat: &str) -> Option<(char, u64)> {
    // The name is in parentheses and may hold anything, parentheses too.
    let fields: Vec<&str> = stat.get(stat.rfind(')')? + 1..)?.split_whitespace().collect();
    Some((fields.first()?.chars().next()?, fields.get(19)?.parse().ok()?))
}

/// The first child of a process.
pub(crate) fn child(pid: i32) -> Option<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// Every process with `variable` in the environment that it was started with, but not ourselves.
pub(crate) fn with_variable(variable: &str) -> Vec<Process> {
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let ours = std::process::id() as i32;
    let marked = pids.filter(|pid| *pid != ours && has_variable(*pid, variable));
    marked.filter_map(Process::of).filter(Process::alive).collect()
}

fn has_variable(pid: i32, variable: &str) -> bool {
    let environment = std::fs::read(Path::new("/proc").join(pid.to_string()).join("environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_itself_until_it_ends_and_a_zombie_has_ended() {
        let mut child = Command::new("sleep").arg("100").env("FSB_TEST_MARK", "17").spawn().unwrap();
        let process = Process::of(child.id() as i32).unwrap();
        assert!(process.alive());
        assert!(!Process { started: process.started + 1, ..process }.alive(), "another process with this pid");
        while !with_variable("FSB_TEST_MARK=17").contains(&process) {
            std::thread::yield_now();
        }
        process.signal(Signal::SIGKILL);
        assert!(process.wait(Duration::from_secs(10)), "not waited for, it is a zombie now");
        child.wait().unwrap();
        assert!(!process.alive());
    }

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = format!("7 (a) R (b) S {} 4711 0", vec!["0"; 18].join(" "));
        assert_eq!(parse(&stat), Some(('S', 4711)));
    }
}
