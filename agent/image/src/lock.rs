//! File locks between the agents of a node (flock(2)): they belong to the open file, so they hold between threads too,
//! and the kernel drops them with the process.

use crate::error::{At, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// A lock that is held.
pub(crate) type Lock = Flock<File>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Shared,
    Exclusive,
}

/// Waits for the lock file `path`, which is made if it is not there. The file that is locked is the one that `path`
/// names afterwards, also when somebody removed it meanwhile.
pub(crate) fn lock(path: &Path, mode: Mode) -> Result<Lock> {
    let arg = match mode {
        Mode::Shared => FlockArg::LockShared,
        Mode::Exclusive => FlockArg::LockExclusive,
    };
    Ok(locked(path, arg)?.expect("a blocking lock is taken"))
}

/// Takes the lock for itself alone, or returns `None` if anybody holds it.
pub(crate) fn try_exclusive(path: &Path) -> Result<Option<Lock>> {
    locked(path, FlockArg::LockExclusiveNonblock)
}

fn locked(path: &Path, arg: FlockArg) -> Result<Option<Lock>> {
    loop {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .at("open the lock file", path)?;
        let lock = loop {
            match Flock::lock(file, arg) {
                Ok(lock) => break lock,
                Err((again, Errno::EINTR)) => file = again,
                Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
                Err((_, errno)) => return Err(errno).at("lock", path),
            }
        };
        let held = lock.metadata().at("look at", path)?;
        match std::fs::metadata(path) {
            Ok(now) if (now.dev(), now.ino()) == (held.dev(), held.ino()) => return Ok(Some(lock)),
            _ => continue,
        }
    }
}
