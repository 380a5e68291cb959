//! Rests of less than a millisecond, which the runtime's timers do not know.

use crate::watch::watch;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A timer of the kernel's.
pub(super) struct Timer {
    timer: TimerFd,
    expired: AsyncFd<std::os::fd::OwnedFd>,
}

impl Timer {
    /// One that is not set.
    pub(super) fn new() -> io::Result<Self> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        let expired = watch(timer.as_fd().try_clone_to_owned()?, Interest::READABLE)?;
        Ok(Self { timer, expired })
    }

    /// Sleeps. Whatever the time, the runtime parks and so hands in what waits for the ring, which it does not before a
    /// task that only yields.
    pub(super) async fn sleep(&self, time: Duration) -> io::Result<()> {
        let time = time.max(Duration::from_nanos(1));
        self.timer.set(Expiration::OneShot(TimeSpec::from_duration(time)), TimerSetTimeFlags::empty())?;
        // It is edge-triggered: the next expiry is news without a read(2) in between.
        self.expired.readable().await?.clear_ready();
        Ok(())
    }
}
