//! Work that may wait for a disk.

use crate::error::{Error, Result};

/// Does it on a thread for files, so that who is served meanwhile does not wait with it. It goes on when its caller goes
/// away.
///
/// # Errors
/// [`Error::Internal`] if it panicked or the agent ends.
pub(crate) async fn work<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::Internal(error.to_string()))
}
