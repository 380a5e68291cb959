//! Programs that make the keeper their tracer: the first process of a sandbox is our child, and PTRACE_TRACEME makes the
//! parent the tracer. Each of its signals then stops it until we let it go on.

use crate::keeper::Keeper;
use fsb_host::process;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// A process may stop this often in
const STOPS: u32 = 100;
/// so much time.
const TIME: Duration = Duration::from_secs(1);

/// How often processes stopped lately, by their numbers.
#[derive(Default)]
pub(crate) struct Tracees(RefCell<HashMap<i32, Stops>>);

struct Stops {
    since: Instant,
    count: u32,
}

impl Tracees {
    /// Counts a stop. Whether the process stops too often.
    fn count(&self, pid: i32, now: Instant) -> bool {
        let mut known = self.0.borrow_mut();
        known.retain(|_, stops| now.duration_since(stops.since) < TIME);
        let stops = known.entry(pid).or_insert(Stops { since: now, count: 0 });
        stops.count += 1;
        stops.count > STOPS
    }
}

/// Lets a process go on that has stopped for us, with its signal, and without a tracer. One that comes back all the time
/// would keep us from everything else: it is killed.
pub(crate) fn stopped(keeper: &Keeper, tid: i32, signal: i32) {
    let pid = group(tid).unwrap_or(tid);
    let is_unruly = keeper.tracees.count(pid, Instant::now());
    if !is_unruly && process::untrace(tid, signal).is_ok() {
        debug!(pid, tid, signal, "a process had made the keeper its tracer and goes on");
        return;
    }
    if is_unruly && keeper.table.borrow_mut().stops_too_often(pid) {
        warn!(pid, "the first process of a sandbox stops for its tracer all the time and is killed");
    }
    // Not ours to detach, or too often: nothing else takes it out of its stop.
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

/// The process of a thread.
fn group(tid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_stop_a_hundred_times_in_a_second_and_others_beside_it() {
        let (tracees, now) = (Tracees::default(), Instant::now());
        assert!((0..STOPS).all(|_| !tracees.count(7, now)));
        assert!(!tracees.count(8, now));
        assert!(tracees.count(7, now));
        assert!(!tracees.count(7, now + TIME), "a second later it may again");
        assert_eq!(tracees.0.borrow().len(), 1, "nobody is remembered for longer");
    }
}
