//! Descriptors that tasks wait for.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the runtime. What tokio has instead of the deprecated call is `unsafe`, because
/// `AsRawFd` promises nothing about who owns the descriptor; the bound `AsFd` here does.
#[allow(deprecated)]
pub(crate) fn register<T: AsFd + AsRawFd>(inner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(inner, interest)
}
