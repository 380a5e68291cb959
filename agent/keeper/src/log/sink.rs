//! The log file of one instance: both streams, rotated by size, retried while the disk refuses.
//!
//! A write into the page cache is a copy, a new file or a rename one of names: as long as the disk is quick, the keeper's
//! thread does them itself ([`Sink::write_now`]). Trying again, and all of it once the disk was slow, goes through the
//! engine ([`Sink::write`]).

use super::Handle;
use super::engine::{Engine, MODE};
use fsb_host::epoll::write_at;
use fsb_host::logfile::{Base, MOST_FILES, base_path, numbered};
use std::cell::Cell;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tracing::{error, info};

/// When to begin a new file and how many to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rotation {
    /// A file with so many bytes is full; records are never split, so it may have one batch more.
    pub(crate) max_bytes: u64,
    /// Files kept, the one being written included.
    pub(crate) files: usize,
}

/// Waits between attempts to write to a disk that refuses.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(2);

/// One instance's file. Its two pipes take turns.
pub(crate) struct Sink<E: Engine> {
    path: PathBuf,
    rotation: Rotation,
    handle: Rc<Handle>,
    open: tokio::sync::Mutex<Option<Open<E>>>,
    /// Bytes of files that have gone, and of all that was written. Changed by who is at the file.
    gone: Cell<u64>,
    written: Cell<u64>,
}

struct Open<E: Engine> {
    file: E::File,
    bytes: u64,
}

impl<E: Engine> Open<E> {
    /// Whether so much more may go into this file. A batch never goes into two.
    fn has_room(&self, bytes: usize, rotation: &Rotation) -> bool {
        self.bytes == 0 || self.bytes + bytes as u64 <= rotation.max_bytes
    }
}

impl<E: Engine> Sink<E> {
    /// The file appears with its first byte, or with [`Sink::touch`].
    pub(crate) fn new(path: PathBuf, rotation: Rotation, handle: Rc<Handle>) -> Self {
        let open = tokio::sync::Mutex::new(None);
        Self { path, rotation, handle, open, gone: Cell::new(0), written: Cell::new(0) }
    }

    /// Makes the file, so that a reader finds it before there is output. Best effort: a write makes it too.
    pub(crate) async fn touch(&self) {
        let mut open = self.open.lock().await;
        if open.is_none() && !self.handle.is_over() {
            *open = self.open_file().await.ok();
        }
    }

    /// [`Sink::touch`] by plain system calls. Returns whether there is nothing left to do for it.
    pub(crate) fn touch_now(&self) -> bool {
        let Ok(mut open) = self.open.try_lock() else { return false };
        if open.is_none() && !self.handle.is_over() {
            *open = self.open_now().ok();
        }
        open.is_some() || self.handle.is_over()
    }

    fn open_now(&self) -> io::Result<Open<E>> {
        let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).mode(MODE).open(&self.path)?;
        let bytes = file.metadata()?.len();
        Ok(Open { file: E::adopt(file), bytes })
    }

    /// Writes whole records by plain system calls, if the file is open and nobody else is at it. If that does not
    /// succeed at once, nothing was written that counts, and [`Sink::write`] is to do it.
    pub(crate) fn write_now(&self, batch: &[u8]) -> bool {
        if self.handle.is_forgotten() {
            return true;
        }
        let Ok(mut open) = self.open.try_lock() else { return false };
        if open.as_ref().is_some_and(|open| !open.has_room(batch.len(), &self.rotation)) {
            if !self.may_rotate() {
                return false;
            }
            *open = None;
            *open = self.rotate_now().ok();
        }
        let Some(target) = open.as_mut() else { return false };
        let written = write_at(&target.file, batch, target.bytes) == Ok(batch.len());
        if written {
            self.wrote(target, batch.len());
        }
        written
    }

    fn wrote(&self, target: &mut Open<E>, bytes: usize) {
        target.bytes += bytes as u64;
        self.written.set(self.written.get() + bytes as u64);
    }

    fn rotate_now(&self) -> io::Result<Open<E>> {
        for (from, to) in renames(&self.path) {
            missing_is_fine(std::fs::rename(from, to))?;
        }
        let mut options = std::fs::OpenOptions::new();
        options.create(true).write(true).mode(MODE);
        let file = options.clone().create_new(true).open(&self.path)?;
        while let Some(oldest) = self.surplus() {
            let write_base =
                || options.open(base_path(&self.path)).and_then(|file| file.write_all_at(oldest.base().as_bytes(), 0));
            let written = write_base();
            missing_is_fine(std::fs::remove_file(&oldest.path))?;
            // There is room now.
            written.or_else(|_| write_base())?;
            self.gone.set(oldest.end);
        }
        Ok(Open { file: E::adopt(file), bytes: 0 })
    }

    /// Whether nobody needs the file that goes where another one begins.
    fn may_rotate(&self) -> bool {
        let hold = &self.handle.hold;
        let oldest = numbered(&self.path, hold.files(self.rotation.files) - 1).symlink_metadata();
        oldest.map_or(true, |oldest| {
            let end = self.gone.get() + oldest.len();
            hold.may_go(end, self.written.get(), self.rotation.max_bytes, Instant::now())
        })
    }

    /// The oldest file, if there are more than are kept.
    fn surplus(&self) -> Option<Oldest> {
        let there = count(&self.path);
        if there <= self.handle.hold.files(self.rotation.files) {
            return None;
        }
        let path = numbered(&self.path, there - 1);
        let next = numbered(&self.path, there - 2).symlink_metadata().ok()?.ino();
        let end = self.gone.get() + path.symlink_metadata().ok()?.len();
        Some(Oldest { path, next, end })
    }

    /// Writes whole records. While the disk refuses (full, read-only, gone) it tries again and the sandbox's own writes
    /// wait, so nothing is lost, as they wait for a reader that holds the oldest file; it gives up only when the instance
    /// is forgotten.
    pub(crate) async fn write(&self, mut batch: Vec<u8>) {
        let mut open = self.open.lock().await;
        let mut wait = FIRST_RETRY;
        let mut refused = false;
        loop {
            if self.handle.is_forgotten() {
                break;
            }
            let (result, back) = self.attempt(&mut open, batch).await;
            batch = back;
            match result {
                Ok(()) => {
                    if refused {
                        info!(file = %self.path.display(), "the log can be written again");
                    }
                    break;
                }
                Err(error) if !refused => {
                    refused = true;
                    error!(file = %self.path.display(), %error,
                        "the log cannot be written: the sandbox waits; hint: free space on the log directory's disk");
                }
                Err(_) => {}
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.handle.forgotten() => {}
            }
            wait = (wait * 2).min(LAST_RETRY);
        }
    }

    /// Closes the file, unless somebody is at it, who is the last one then.
    pub(crate) fn close(&self) {
        if let Ok(mut open) = self.open.try_lock() {
            open.take();
        }
    }

    async fn attempt(&self, open: &mut Option<Open<E>>, batch: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        if let Err(error) = self.make_room(open, batch.len()).await {
            return (Err(error), batch);
        }
        let target = open.as_mut().expect("it was opened above");
        // The offset is ours: an attempt that failed half-way is overwritten by the next one.
        let (result, batch) = E::write(&target.file, batch, target.bytes).await;
        if result.is_ok() {
            self.wrote(target, batch.len());
        }
        (result, batch)
    }

    /// Opens the file, and rotates it first if it lacks room.
    async fn make_room(&self, open: &mut Option<Open<E>>, bytes: usize) -> io::Result<()> {
        if open.is_none() {
            *open = Some(self.open_file().await?);
        }
        if open.as_ref().is_some_and(|open| open.has_room(bytes, &self.rotation)) {
            return Ok(());
        }
        while !self.may_rotate() {
            tokio::select! {
                () = self.handle.hold.changed() => {}
                () = self.handle.forgotten() => break,
            }
        }
        *open = None;
        for (from, to) in renames(&self.path) {
            missing_is_fine(E::rename(&from, &to).await)?;
        }
        let opened = self.open_file().await?;
        while let Some(oldest) = self.surplus() {
            let written = self.write_base(&oldest).await;
            missing_is_fine(E::remove(&oldest.path).await)?;
            if written.is_err() {
                // There is room now.
                self.write_base(&oldest).await?;
            }
            self.gone.set(oldest.end);
        }
        *open = Some(opened);
        Ok(())
    }

    async fn write_base(&self, oldest: &Oldest) -> io::Result<()> {
        let file = E::open(&base_path(&self.path)).await?;
        E::write(&file, oldest.base().into_bytes(), 0).await.0
    }

    async fn open_file(&self) -> io::Result<Open<E>> {
        let file = E::open(&self.path).await?;
        let bytes = std::fs::metadata(&self.path)?.len();
        Ok(Open { file, bytes })
    }
}

/// A file that is to go.
struct Oldest {
    path: PathBuf,
    /// The inode of the one after it.
    next: u64,
    /// Where that begins in the whole log.
    end: u64,
}

impl Oldest {
    fn base(&self) -> String {
        Base { inode: self.next, at: self.end }.to_text()
    }
}

/// How many files there are, without a gap.
fn count(path: &Path) -> usize {
    (0..MOST_FILES).take_while(|number| numbered(path, *number).symlink_metadata().is_ok()).count()
}

/// `x.log.1` → `x.log.2` and so on, `x.log` → `x.log.1`. Begun again after a failure it goes on where it was: what is
/// renamed leaves a gap, which nothing is moved over.
fn renames(path: &Path) -> impl Iterator<Item = (PathBuf, PathBuf)> {
    let path = path.to_owned();
    (0..count(&path)).rev().map(move |number| (numbered(&path, number), numbered(&path, number + 1)))
}

fn missing_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
