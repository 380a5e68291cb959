//! io_uring by way of tokio-uring. The only file that names it, but for the start of its runtime in `mod.rs`.

use super::engine::{Engine, MODE};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use tokio_uring::fs::{File, OpenOptions};

/// Reads and writes with the ring: disk writes happen on the kernel's workers, never on the keeper's thread.
pub(crate) struct Uring;

impl Engine for Uring {
    type Pipe = File;
    type File = File;

    fn pipe(fd: OwnedFd) -> io::Result<File> {
        Ok(File::from_std(fd.into()))
    }

    async fn read(pipe: &File, mut buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        buffer.clear();
        // The offset of what has none (io_uring_prep_read(3)).
        pipe.read_at(buffer, u64::MAX).await
    }

    async fn open(path: &Path) -> io::Result<File> {
        OpenOptions::new().create(true).write(true).mode(MODE).open(path).await
    }

    async fn write(file: &File, buffer: Vec<u8>, offset: u64) -> (io::Result<()>, Vec<u8>) {
        file.write_all_at(buffer, offset).await
    }

    async fn rename(from: &Path, to: &Path) -> io::Result<()> {
        tokio_uring::fs::rename(from, to).await
    }

    async fn remove(path: &Path) -> io::Result<()> {
        tokio_uring::fs::remove_file(path).await
    }
}
