//! Ctrl-C and SIGTERM end a run between two samples, so that everything that was started is removed. A second one
//! ends it at once.

use nix::sys::signal::{SigSet, Signal};
use std::sync::atomic::{AtomicBool, Ordering};

static ASKED: AtomicBool = AtomicBool::new(false);

/// Begins to listen. Called once, before any thread exists.
pub fn listen() -> nix::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            if ASKED.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
            eprintln!("\nfsb-bench: interrupted, cleaning up (once more to stop at once)");
        }
    });
    Ok(())
}

/// Whether somebody wants this run to end.
pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}

/// An error if somebody wants this run to end.
pub fn check() -> anyhow::Result<()> {
    if asked() { anyhow::bail!("interrupted") } else { Ok(()) }
}
