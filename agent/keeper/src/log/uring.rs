//! io_uring by way of tokio-uring. The only file that names it, but for the start of its runtime in `mod.rs`.

use super::engine::{Engine, MODE};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use tokio_uring::fs::{File, OpenOptions};

/// Works with files by the ring: what a disk holds up is done by the kernel's workers, never by the keeper's thread.
pub(crate) struct Uring;

impl Engine for Uring {
    type File = File;

    const PATIENT: bool = true;

    fn adopt(file: std::fs::File) -> File {
        File::from_std(file)
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
