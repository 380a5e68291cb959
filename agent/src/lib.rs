//! The node daemon: starts, stops, removes and reports sandboxes.
//!
//! A newcomer reads `start.rs` first: it is the start path, from top to bottom. Deciding modules are pure
//! (`admission`, `pool::policy`, `command`, `ends`, `config`, `logs::record`); the others carry decisions out.
#![cfg_attr(not(test), warn(clippy::print_stderr, clippy::print_stdout))]

mod admission;
mod agent;
mod async_fd;
mod changes;
mod collect;
mod command;
mod config;
mod disk;
mod ended;
mod ends;
mod error;
mod events;
mod http;
mod images;
mod inodes;
mod instance;
mod keeper;
mod launched;
mod logs;
mod lost;
mod metrics;
mod opened;
mod order;
mod outcome;
mod plugins;
mod pool;
mod quantity;
mod reaper;
mod recover;
mod remove;
mod room;
mod rpc;
mod runtime;
mod serve;
mod spares;
mod stage;
mod start;
mod stop;
mod trash;
mod undo;
mod watch;

pub use agent::Agent;
pub use config::{BadConfig, Config, MakeMode, PoolMemory};
pub use error::{Error, Result, StartError};
pub use runtime::runtime;
pub use serve::{Listeners, serve};
pub use stage::Stage;
pub use start::Started;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Locks. A panic elsewhere while it was held does not make what it guards unusable: every critical section here
/// leaves it whole at each step.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Unix time in milliseconds, for people. It may be set at any moment: nothing waits by it.
pub(crate) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// Milliseconds of the clock that nobody sets, the same for every process since the machine was booted
/// (CLOCK_MONOTONIC, clock_gettime(2)): [`std::time::Instant`] for a record that the next agent reads.
pub(crate) fn monotonic_ms() -> i64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |time| time.tv_sec() * 1000 + time.tv_nsec() / 1_000_000)
}

/// A new instance id: 32 hexadecimal characters.
pub(crate) fn new_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Whether a text is an instance id, and so safe as a part of a path.
pub(crate) fn is_instance_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
