//! A file that one process at a time holds, and that is not left behind.

use super::process::Process;
use crate::error::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A held lock. Dropping it gives it up; the file stays.
pub(crate) struct Lock {
    path: PathBuf,
    file: Flock<File>,
}

impl Lock {
    /// Takes the lock if it becomes free within `wait`; `None` if somebody else keeps it.
    ///
    /// Who holds it may remove the file, so that a lock on a file that is no longer at its path is worth nothing: we
    /// look again after we got it.
    pub(crate) fn take(path: &Path, wait: Duration) -> Result<Option<Self>> {
        let until = Instant::now() + wait;
        loop {
            let opened = fsb_files::open(path, File::options().read(true).write(true).create(true).truncate(false));
            let file = opened.context(|| format!("cannot open {}", path.display()))?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) if same(&file, path) => return Ok(Some(Self { path: path.to_owned(), file })),
                Ok(_) => continue,
                Err((_, nix::errno::Errno::EWOULDBLOCK)) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Ok(None),
                Err((_, error)) => return Err(error).context(|| format!("cannot lock {}", path.display())),
            }
        }
    }

    /// Replaces what the file says, in place: on a full disk there may be no other one.
    pub(crate) fn write(&mut self, text: &str) -> Result<()> {
        let path = self.path.clone();
        let write = |file: &mut File| {
            file.seek(SeekFrom::Start(0))?;
            file.write_all(text.as_bytes())?;
            file.set_len(text.len() as u64)
        };
        write(&mut self.file).context(|| format!("cannot write {}", path.display()))
    }

    /// Removes the file and gives the lock up.
    pub(crate) fn remove(self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn same(file: &File, path: &Path) -> bool {
    match (file.metadata(), path.metadata()) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// The living process that wrote itself into the lock file.
pub(crate) fn holder(path: &Path) -> Option<Process> {
    let process: Process = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    process.alive().then_some(process)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_it_and_a_removed_file_holds_nobody_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let mut first = Lock::take(&path, Duration::ZERO).unwrap().unwrap();
        first.write(&serde_json::to_string(&Process::current()).unwrap()).unwrap();
        assert_eq!(holder(&path), Process::current());
        assert!(Lock::take(&path, Duration::from_millis(30)).unwrap().is_none());
        first.remove();
        assert!(!path.exists());
        assert!(Lock::take(&path, Duration::ZERO).unwrap().is_some());
    }
}
