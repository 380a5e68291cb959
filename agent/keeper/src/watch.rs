//! Descriptors in the runtime's epoll.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches a descriptor for `interest` alone: an event that nobody waits for would wake the keeper too.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    watch_shared(fd, interest)
}

/// [`watch`] for something that others look at too.
#[allow(deprecated, reason = "its successor is unsafe because of types that change descriptors; an OwnedFd does not")]
pub(crate) fn watch_shared<F: AsRawFd>(fd: F, interest: Interest) -> io::Result<AsyncFd<F>> {
    AsyncFd::with_interest(fd, interest)
}
