//! The two ways to do what a disk may hold up: a ring, and plain system calls where rings are forbidden.

use std::future::Future;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// What the logs need. Buffers are passed in and handed back, because the kernel owns them while a ring works.
pub(crate) trait Engine: 'static {
    /// A log file.
    type File: AsRawFd;

    /// Whether a slow disk stops only who waits for it, and not the keeper's thread.
    const PATIENT: bool;

    /// Takes a file over that was opened for writing.
    fn adopt(file: std::fs::File) -> Self::File;

    /// Opens a file for writing and creates it if it is not there.
    fn open(path: &Path) -> impl Future<Output = io::Result<Self::File>>;

    /// Writes all of the buffer at `offset`. After an error any part of it may be written.
    fn write(file: &Self::File, buffer: Vec<u8>, offset: u64) -> impl Future<Output = (io::Result<()>, Vec<u8>)>;

    /// Renames a file over another one.
    fn rename(from: &Path, to: &Path) -> impl Future<Output = io::Result<()>>;

    /// Removes a file.
    fn remove(path: &Path) -> impl Future<Output = io::Result<()>>;
}

/// Mode of log files: what people print is for nobody else to read.
pub(crate) const MODE: u32 = 0o600;
