//! Descriptors that tasks wait for.

use nix::errno::Errno;
use nix::sys::inotify::{InitFlags, Inotify};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the runtime. What tokio has instead of the deprecated call is `unsafe`, because
/// `AsRawFd` promises nothing about who owns the descriptor; the bound `AsFd` here does.
#[allow(deprecated)]
pub(crate) fn register<T: AsFd + AsRawFd>(inner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(inner, interest)
}

/// Changes of files and directories (inotify(7)).
pub(crate) struct Changes(AsyncFd<Owned>);

struct Owned(Inotify);

impl AsFd for Owned {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Owned {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl Changes {
    /// Watches nothing yet.
    pub(crate) fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        Ok(Self(register(Owned(inotify), Interest::READABLE)?))
    }

    /// To add and remove watches.
    pub(crate) fn inotify(&self) -> &Inotify {
        &self.0.get_ref().0
    }

    /// Throws away what has happened so far.
    pub(crate) fn clear(&self) -> io::Result<()> {
        loop {
            match self.inotify().read_events() {
                Ok(_) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until something has happened.
    pub(crate) async fn wait(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            match self.inotify().read_events() {
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
                Ok(_) => return Ok(()),
            }
        }
    }
}
