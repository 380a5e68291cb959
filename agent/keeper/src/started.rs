//! The `started` pipe of an instance: whether its program runs.

use crate::watch::watch;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What the pipe has told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It has not come to its execve, or is in it.
    Waits,
    /// `x` and end-of-file: it has exec'd.
    Started,
    /// `N`: execve failed.
    Failed,
    /// End-of-file alone: it died before.
    Died,
}

/// The read end.
pub(crate) struct StartedPipe {
    fd: AsyncFd<OwnedFd>,
    wrote_x: Cell<bool>,
    progress: Cell<Progress>,
}

impl StartedPipe {
    /// Takes the read end over.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        fcntl(fd.as_raw_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let fd = watch(fd, Interest::READABLE)?;
        Ok(Self { fd, wrote_x: Cell::new(false), progress: Cell::new(Progress::Waits) })
    }

    /// Waits until [`StartedPipe::read`] may have news.
    pub(crate) async fn readable(&self) {
        if let Ok(mut ready) = self.fd.readable().await {
            // `read` takes all there is: the next event is news.
            ready.clear_ready();
        }
    }

    /// Reads all there is.
    pub(crate) fn read(&self) -> Progress {
        let mut buffer = [0; 16];
        while self.progress.get() == Progress::Waits {
            match nix::unistd::read(self.fd.as_raw_fd(), &mut buffer) {
                Ok(0) => self.progress.set(if self.wrote_x.get() { Progress::Started } else { Progress::Died }),
                Ok(bytes) if buffer[..bytes].contains(&b'N') => self.progress.set(Progress::Failed),
                Ok(bytes) if buffer[..bytes].contains(&b'x') => self.wrote_x.set(true),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(_) => self.progress.set(Progress::Died),
            }
        }
        self.progress.get()
    }
}
