//! Plain system calls, for hosts that forbid io_uring. A slow disk stops the keeper's thread here.

use super::engine::{Engine, MODE};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Does everything at once.
pub(crate) struct Epoll;

impl Engine for Epoll {
    type File = File;

    const PATIENT: bool = false;

    fn adopt(file: File) -> File {
        file
    }

    async fn open(path: &Path) -> io::Result<File> {
        OpenOptions::new().create(true).truncate(false).write(true).mode(MODE).open(path)
    }

    async fn write(file: &File, buffer: Vec<u8>, offset: u64) -> (io::Result<()>, Vec<u8>) {
        (file.write_all_at(&buffer, offset), buffer)
    }

    async fn rename(from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    async fn remove(path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }
}
