//! Ctrl-C and SIGTERM end a run between two samples, so that everything that was started is removed. A second one
//! ends it at once.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::signal::unix::{SignalKind, signal};

static ASKED: AtomicBool = AtomicBool::new(false);

/// Begins to listen. With handlers, not with a mask: programs that are started inherit a mask, and would then never
/// hear that they are to end.
pub fn listen() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let entered = runtime.enter();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    drop(entered);
    std::thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if ASKED.swap(true, Ordering::SeqCst) {
                    std::process::exit(130);
                }
                eprintln!("\nfsb-bench: interrupted, cleaning up (once more to stop at once)");
            }
        });
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
