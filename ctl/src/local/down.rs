//! `local down`.

use super::dirs::Dirs;
use super::lock::{self, Lock};
use super::record::Node;
use super::tear_down::{purge, tear_down};
use crate::error::{Failure, Result};
use nix::sys::signal::Signal;
use std::time::Duration;

/// The supervisor takes everything down itself before it ends.
const SUPERVISOR: Duration = Duration::from_secs(60);

pub(crate) fn run(dirs: &Dirs, and_purge: bool) -> Result<u8> {
    super::need_root()?;
    let was_there = dirs.run.exists();
    stop(dirs, and_purge)?;
    if was_there {
        eprintln!("the local node is down{}", if and_purge { ", nothing is left of it" } else { "" });
    } else {
        eprintln!("there was no local node{}", dirs.flag());
    }
    Ok(0)
}

/// Stops the node, whatever state it is in.
pub(crate) fn stop(dirs: &Dirs, and_purge: bool) -> Result<()> {
    let path = dirs.lock();
    if !dirs.state.is_dir() {
        // It never came so far as to have a supervisor, or somebody removed it by hand.
        tear_down(dirs, Node::read(dirs).as_ref())?;
        return if and_purge { purge(dirs) } else { Ok(()) };
    }
    if let Some(supervisor) = lock::holder(&path) {
        supervisor.signal(Signal::SIGTERM);
        if !supervisor.wait(SUPERVISOR) {
            supervisor.signal(Signal::SIGKILL);
        }
    }
    let lock = Lock::take(&path, Duration::from_secs(10))?.ok_or_else(|| {
        Failure::new(format!("another fsb-ctl is starting or stopping this node and keeps {}", path.display()))
    })?;
    tear_down(dirs, Node::read(dirs).as_ref())?;
    if and_purge {
        purge(dirs)?;
    }
    lock.remove();
    Ok(())
}
