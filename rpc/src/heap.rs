//! Memory that a crowd of streams held goes back to the system when they have gone.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

/// A stream that has ended holds its buffers until its connection has heard of it.
const SOON: Duration = Duration::from_secs(1);

static WAITS: AtomicBool = AtomicBool::new(false);

/// Gives back, a second from now, the pages of the heap that hold nothing. glibc gives back only what lies at the end of
/// the heap: one small thing that was allocated beside a thousand streams keeps all that they held.
pub(crate) fn trim_soon() {
    if WAITS.swap(true, Relaxed) {
        return;
    }
    let trim = || {
        std::thread::sleep(SOON);
        WAITS.store(false, Relaxed);
        #[cfg(target_env = "gnu")]
        // SAFETY: malloc_trim(3) may be called from any thread at any time.
        unsafe {
            nix::libc::malloc_trim(0);
        }
    };
    if std::thread::Builder::new().name("heap".into()).spawn(trim).is_err() {
        WAITS.store(false, Relaxed);
    }
}
