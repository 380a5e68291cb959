//! The clock that everything is measured with: CLOCK_MONOTONIC is one for the whole machine, inside and outside of
//! sandboxes, as long as nobody makes a time namespace.

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of CLOCK_MONOTONIC.
pub fn now_ns() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has a monotonic clock");
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

/// Sleeps until a moment of that clock; returns at once if it has passed.
pub fn wait_until(due_ns: u64) {
    while let left @ 1.. = due_ns.saturating_sub(now_ns()) {
        std::thread::sleep(std::time::Duration::from_nanos(left));
    }
}
