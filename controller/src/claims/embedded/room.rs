//! The file of the store, with room in advance: on a full disk claims are still removed, and changed.
//!
//! redb makes its file longer without asking the file system for the blocks, and each commit writes to free pages before
//! it gives up those that it replaces. On a full disk both fail, a removal like everything else, and with it what would
//! give space back. So the blocks of the file are allocated when it grows, and as many again beyond its end, for the
//! next time.

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use redb::{Builder, Database, DatabaseError, StorageBackend, backends::FileBackend};
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::os::fd::AsRawFd;
use std::path::Path;

/// The least room beyond the end of the file, in bytes: a thousand claims of the usual size.
const AHEAD_BYTES: u64 = 1 << 20;

/// Opens the file, or makes it if that is wanted.
pub(super) fn open(path: &Path, create: bool) -> Result<Database, DatabaseError> {
    // Claims have environments, and environments secrets.
    let file = fsb_files::open(path, File::options().read(true).write(true).create(create).truncate(false))?;
    let room = Room { file: file.try_clone()?, inner: FileBackend::new(file)? };
    let length = room.inner.len()?;
    if length > 0 {
        // Of an earlier version, or what was given up when the disk was full.
        let _ = room.allocate(length).and_then(|()| room.look_ahead(length));
    }
    Builder::new().create_with_backend(room)
}

/// redb's own backend for files, which allocates.
#[derive(Debug)]
struct Room {
    file: File,
    inner: FileBackend,
}

impl Room {
    /// Has blocks for the first `length` bytes, whatever the file's length is.
    fn allocate(&self, length: u64) -> io::Result<()> {
        let length = i64::try_from(length).map_err(io::Error::other)?;
        match fallocate(self.file.as_raw_fd(), FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, length) {
            // A file system that cannot: there it is as before.
            Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn look_ahead(&self, length: u64) -> io::Result<()> {
        self.allocate(length + length.max(AHEAD_BYTES))
    }
}

impl StorageBackend for Room {
    fn set_len(&self, length: u64) -> Result<(), io::Error> {
        self.allocate(length)?;
        self.inner.set_len(length)?;
        if let Err(error) = self.look_ahead(length) {
            tracing::warn!(%error, "the claim store has no room in advance; hint: free space on its disk");
        }
        Ok(())
    }

    fn len(&self) -> Result<u64, io::Error> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.inner.read(offset, out)
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.inner.write(offset, data)
    }

    fn close(&self) -> Result<(), io::Error> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, redb::BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, redb::BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), redb::BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), redb::BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), redb::BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, redb::BackendError> {
        self.inner.query_lock_range(start, end)
    }
}
