//! The two ways to read pipes and write files: a ring, and epoll where rings are forbidden.

use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

/// What the pumps need. Buffers are passed in and handed back, because the kernel owns them while a ring works.
pub(crate) trait Engine: 'static {
    /// The read end of a pipe.
    type Pipe: AsRawFd;
    /// A log file.
    type File;

    /// Takes a read end over.
    fn pipe(fd: OwnedFd) -> io::Result<Self::Pipe>;

    /// Waits for bytes and reads at most the buffer's capacity; 0 at end-of-file. A dropped future may lose bytes.
    fn read(pipe: &Self::Pipe, buffer: Vec<u8>) -> impl Future<Output = (io::Result<usize>, Vec<u8>)>;

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
pub(crate) const MODE: u32 = 0o640;
