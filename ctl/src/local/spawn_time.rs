//! What this machine needs to start a process without any container: the floor that a sandbox's start is held against.

use crate::error::{Context, Result};
use crate::output::{self, FormatArg};
use crate::units;
use serde::Serialize;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Short-lived and the same everywhere.
const PROGRAM: &str = "/bin/true";

#[derive(Serialize)]
struct Times {
    program: &'static str,
    count: usize,
    p50_us: u64,
    p90_us: u64,
    p99_us: u64,
}

/// Spawn returns when execve has succeeded, so it is timed alone: from the call to the running program.
pub(crate) fn run(count: u32, format: FormatArg) -> Result<u8> {
    let mut times = Vec::new();
    for _ in 0..count {
        let begin = Instant::now();
        let child = Command::new(PROGRAM).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        times.push(begin.elapsed());
        child.and_then(|mut child| child.wait()).context(|| format!("cannot run {PROGRAM}"))?;
    }
    times.sort();
    let at = |per_cent: usize| times[(times.len() - 1) * per_cent / 100];
    let micros = |time: Duration| time.as_micros() as u64;
    let all = Times {
        program: PROGRAM,
        count: times.len(),
        p50_us: micros(at(50)),
        p90_us: micros(at(90)),
        p99_us: micros(at(99)),
    };
    output::show(format.output, &all, |_| {
        output::pairs([
            ("FORK+EXEC", format!("{} (median of {count})", units::took(at(50)))),
            ("P90", units::took(at(90))),
            ("P99", units::took(at(99))),
        ])
    })?;
    Ok(0)
}
