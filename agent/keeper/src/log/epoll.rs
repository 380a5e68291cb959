//! epoll, read(2) and write(2), for hosts that forbid io_uring. A slow disk stops the keeper's thread here.

use super::engine::{Engine, MODE};
use crate::watch::watch;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Reads when epoll says so, writes at once.
pub(crate) struct Epoll;

impl Engine for Epoll {
    type Pipe = AsyncFd<OwnedFd>;
    type File = File;

    fn pipe(fd: OwnedFd) -> io::Result<Self::Pipe> {
        // The write end has flags of its own: the sandbox does not see this.
        fcntl(fd.as_raw_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        watch(fd, Interest::READABLE)
    }

    async fn read(pipe: &Self::Pipe, mut buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        let room = buffer.capacity();
        buffer.resize(room, 0);
        loop {
            let mut ready = match pipe.readable().await {
                Ok(ready) => ready,
                Err(error) => return (Err(error), buffer),
            };
            match nix::unistd::read(pipe.as_raw_fd(), &mut buffer) {
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(error) => return (Err(error.into()), buffer),
                Ok(bytes) => {
                    buffer.truncate(bytes);
                    // A pipe that is always full would never let go of the thread.
                    tokio::task::yield_now().await;
                    return (Ok(bytes), buffer);
                }
            }
        }
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
