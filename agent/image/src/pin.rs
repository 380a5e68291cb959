//! Pins keep an image's layers on the disk while a sandbox or a paused container uses them.

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::lock::{Lock, Mode, lock};
use crate::store::Store;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};

/// Keeps an image's layers for as long as it, or a clone, lives. The kernel lets go of it when the process dies; a
/// process that must keep it longer hands a copy of the descriptor to one that lives on (SCM_RIGHTS).
#[derive(Debug, Clone)]
pub struct Pin(Arc<Lock>);

impl AsFd for Pin {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The pins of this process: one descriptor per image, however many hold it.
#[derive(Debug, Default)]
pub(crate) struct Pins(Mutex<HashMap<String, Weak<Lock>>>);

impl Store {
    /// Pins the image with this digest (`sha256:…`), also one that has lost its names but is still there.
    /// [`Error::NotFound`] if it is gone: resolve again.
    pub fn pin(&self, digest: &str) -> Result<Pin> {
        let mut pins = self.pins().0.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(lock) = pins.get(digest).and_then(Weak::upgrade) {
            return Ok(Pin(lock));
        }
        let parsed = Digest::parse(digest)?;
        let gone = || Error::NotFound { reference: digest.to_owned() };
        if !self.snapshot()?.holds(digest) {
            return Err(gone());
        }
        let held = Arc::new(lock(&self.pin_file(&parsed), Mode::Shared)?);
        // The collector removes an image from the index while it holds this lock alone, so now it stays or is gone.
        if !self.snapshot()?.holds(digest) {
            return Err(gone());
        }
        pins.retain(|_, lock| lock.strong_count() > 0);
        pins.insert(digest.to_owned(), Arc::downgrade(&held));
        Ok(Pin(held))
    }

    pub(crate) fn pin_file(&self, digest: &Digest) -> PathBuf {
        self.directory().join("pins").join(digest.hex())
    }
}
