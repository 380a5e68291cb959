//! What an agent runs on.

use std::io;
use tokio::runtime::{Builder, Runtime};

/// The runtime of an agent. One thread serves: a start is a chain of small steps, and each one that is handed to
/// another thread wakes up another processor first, which costs more than the step (on a virtual machine 30–100 µs).
/// What takes long (files, images) has threads of its own. Under load its threads do not wait for other people's slices.
///
/// # Errors
/// If a thread cannot be made.
pub fn runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("fsb-agent")
        .on_thread_start(|| {
            let _ = fsb_host::sched::short_slice();
        })
        .enable_all()
        .build()
}
