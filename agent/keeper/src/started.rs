//! The `started` pipe of an instance: whether its program runs.
//!
//! It is read when somebody has reason to: the agent says that the program runs, the process has ended, or the agent
//! is gone. It is not watched before: the wake-up of the keeper would be made by the process that is about to become
//! the user's program, between its two writes and its first instruction.

use crate::watch::watch;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use tokio::io::Interest;

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
    fd: OwnedFd,
    wrote_x: Cell<bool>,
    progress: Cell<Progress>,
    followed: Cell<bool>,
}

impl StartedPipe {
    /// Takes the read end over.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        fcntl(fd.as_raw_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self { fd, wrote_x: Cell::new(false), progress: Cell::new(Progress::Waits), followed: Cell::new(false) })
    }

    /// Whether nobody has followed it until now; from here on somebody does.
    pub(crate) fn follow(&self) -> bool {
        !self.followed.replace(true)
    }

    /// Calls `look` now and whenever there may be news, until it returns true.
    pub(crate) async fn each(&self, look: impl Fn() -> bool) -> io::Result<()> {
        let fd = watch(self.fd.try_clone()?, Interest::READABLE)?;
        while !look() {
            // `read` takes all there is: the next event is news.
            fd.readable().await?.clear_ready();
        }
        Ok(())
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
