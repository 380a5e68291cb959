//! File locks between the agents of a node (flock(2)): they belong to the open file, so they hold between threads too,
//! and the kernel drops them when the last copy of its descriptor is closed, in whatever process that is.

use crate::error::{At, Error, Result};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// A lock that is held. Dropping it closes the file and no more: unlocking would take it from the holders of copies, too.
pub(crate) type Lock = File;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Shared,
    Exclusive,
}

/// Waits for the lock file `path`, which is made if it is not there. The file that is locked is the one that `path`
/// names afterwards, also when somebody removed it meanwhile.
pub(crate) fn lock(path: &Path, mode: Mode) -> Result<Lock> {
    let wait = |file: &File| match mode {
        Mode::Shared => file.lock_shared(),
        Mode::Exclusive => file.lock(),
    };
    Ok(locked(path, |file| wait(file).map(|()| true))?.expect("a blocking lock is taken"))
}

/// Takes the lock for itself alone, or returns `None` if anybody holds it.
pub(crate) fn try_exclusive(path: &Path) -> Result<Option<Lock>> {
    locked(path, |file| match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    })
}

fn locked(path: &Path, take: impl Fn(&File) -> io::Result<bool>) -> Result<Option<Lock>> {
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .at("open the lock file", path)?;
        match take(&file) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::io("lock", path, error)),
        }
        let held = file.metadata().at("look at", path)?;
        match std::fs::metadata(path) {
            Ok(now) if (now.dev(), now.ino()) == (held.dev(), held.ino()) => return Ok(Some(file)),
            _ => continue,
        }
    }
}
