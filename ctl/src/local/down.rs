//! `local down`.

use super::dirs::Dirs;
use super::lock::{self, Lock};
use super::record::Node;
use super::tear_down::{Ending, purge, tear_down};
use crate::error::{Failure, Result};
use crate::output;
use nix::sys::signal::Signal;
use std::path::Path;
use std::time::{Duration, Instant};

/// The supervisor takes everything down itself before it ends.
const SUPERVISOR: Duration = Duration::from_secs(60);
const KILLED: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);

pub(crate) fn run(dirs: &Dirs, and_purge: bool) -> Result<u8> {
    super::need_root()?;
    let was_there = dirs.run.exists();
    stop(dirs, and_purge)?;
    if was_there {
        output::talk(&format!("the local node is down{}", if and_purge { ", nothing is left of it" } else { "" }));
    } else {
        output::talk(&format!("there was no local node{}", dirs.flag()));
    }
    Ok(0)
}

/// Stops the node, whatever state it is in.
pub(crate) fn stop(dirs: &Dirs, and_purge: bool) -> Result<()> {
    let path = dirs.lock();
    let ending = if and_purge { Ending::AtOnce } else { Ending::Orderly };
    if !dirs.state.is_dir() {
        // It never came so far as to have a supervisor, or somebody removed it by hand.
        tear_down(dirs, Node::read(dirs).as_ref(), ending)?;
        return if and_purge { purge(dirs) } else { Ok(()) };
    }
    let lock = take_over(&path, ending)?;
    tear_down(dirs, Node::read(dirs).as_ref(), ending)?;
    if and_purge {
        purge(dirs)?;
    }
    lock.remove();
    Ok(())
}

/// Takes the node's lock away from its supervisor: asks it to end, and ends it if it does not.
fn take_over(path: &Path, ending: Ending) -> Result<Lock> {
    let signal = match ending {
        Ending::Orderly => Signal::SIGTERM,
        Ending::AtOnce => Signal::SIGQUIT,
    };
    let mut until = Instant::now() + SUPERVISOR;
    let (mut told, mut killed) = (None, false);
    loop {
        if let Some(lock) = Lock::take(path, LOOK)? {
            return Ok(lock);
        }
        // It may have taken the lock and not yet written itself down: looked at again each time.
        let holder = lock::holder(path);
        if let Some(supervisor) = holder.filter(|_| holder != told) {
            supervisor.signal(signal);
            told = holder;
        }
        if Instant::now() < until {
            continue;
        }
        match holder {
            Some(supervisor) if !killed => supervisor.signal(Signal::SIGKILL),
            _ => return Err(Failure::new(format!("another fsb-ctl keeps {}", path.display()))),
        }
        killed = true;
        until = Instant::now() + KILLED;
    }
}
