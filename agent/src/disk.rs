//! Work that may wait for a disk.

use crate::error::{Error, Result};
use std::io;

/// Does it on a thread for files, so that who is served meanwhile does not wait with it. It goes on when its caller goes
/// away.
///
/// # Errors
/// [`Error::Internal`] if it panicked or the agent ends.
pub(crate) async fn work<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::Internal(error.to_string()))
}

/// The same for work that the disk may refuse.
///
/// # Errors
/// Those of the work; another one if it panicked or the agent ends.
pub(crate) async fn io<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}
