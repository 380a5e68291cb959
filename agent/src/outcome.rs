//! How a start waits for what becomes of its hand-off, and has it expected.
//!
//! Two processes take turns in a start, and on a virtual machine it is dear to have a processor sleep in between: whoever
//! wakes it up pays 20 to 170 µs for the interrupt, and then it takes its time. So a start that has the agent to itself
//! keeps both awake: it rouses the parked process before it needs it, and as long as that process runs it looks for the
//! outcome instead of sleeping until it comes, so that the user's program has nobody to wake up in the middle of its
//! execve. A process that does not run may be waiting for this very processor: then the agent sleeps. Starts that come
//! together have work to do meanwhile, and want the processors for it.

use crate::keeper::Paused;
use crate::pool::Shelf;
use fsb_host::handoff::{self, Outcome};
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Within that time a parked process that is awake has read its hand-off, unless it has lost its processor.
const READ: Duration = Duration::from_micros(30);
/// So long an outcome is looked for; an execve seldom takes longer.
const LOOK: Duration = Duration::from_micros(400);

/// Starts under way.
#[derive(Default)]
pub(crate) struct UnderWay(AtomicUsize);

/// One of them, until it is dropped.
pub(crate) struct One<'a>(&'a AtomicUsize);

impl Drop for One<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl UnderWay {
    /// A start begins.
    pub(crate) fn begin(&self) -> One<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        One(&self.0)
    }

    fn is_one_alone(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 1
    }

    /// Rouses the container that the start will probably take.
    pub(crate) fn rouse(&self, shelf: &Shelf) {
        if self.is_one_alone() {
            shelf.with_next(|paused| handoff::rouse(paused.ctl.get_ref().as_fd()));
        }
    }

    /// Whether the container that was roused has heard it: then it runs, on another processor than this thread.
    pub(crate) fn is_awake(&self, paused: &Paused) -> bool {
        self.is_one_alone() && handoff::is_read(paused.ctl.get_ref().as_fd())
    }

    /// Waits for what the parked process answers, which was `awake` when its hand-off was sent: end-of-file is execve.
    pub(crate) async fn outcome(&self, paused: &Paused, awake: bool) -> io::Result<Outcome> {
        let ctl = paused.ctl.get_ref().as_fd();
        let sent = Instant::now();
        let mut runs = false;
        while awake && self.is_one_alone() && sent.elapsed() < if runs { LOOK } else { READ } {
            if let Some(outcome) = handoff::outcome(ctl)? {
                return Ok(outcome);
            }
            runs = runs || handoff::is_read(ctl);
            // Whoever else has something to do on this thread has a turn.
            tokio::task::yield_now().await;
        }
        loop {
            let mut ready = paused.ctl.readable().await?;
            match handoff::outcome(ctl)? {
                Some(outcome) => return Ok(outcome),
                None => ready.clear_ready(),
            }
        }
    }
}
