//! What can go wrong with an image, each with a sentence for the user.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An image operation that failed. Nothing of it is left behind.
#[derive(Debug, Error)]
pub enum Error {
    /// Not a reference by Docker's rules.
    #[error("{reference:?} is not an image reference: {rule}")]
    InvalidReference { reference: String, rule: String },
    /// No image of that reference, and none may be or could be pulled.
    #[error("image {reference} is not on this node; hint: `fsb-ctl image import` or `fsb-ctl image pull` it")]
    NotFound { reference: String },
    /// A short digest that begins several digests.
    #[error("{reference} is short for several images: {candidates}; hint: give more digits")]
    Ambiguous { reference: String, candidates: String },
    /// The archive is none of the known formats.
    #[error(
        "{path} is not an image: {why}; hint: an OCI layout, a `docker save` archive or the tar of a root file system, \
         plain or compressed with gzip or zstd"
    )]
    UnknownFormat { path: PathBuf, why: String },
    /// An import that needs a choice or a name that it was not given, or was given something wrong.
    #[error("{0}")]
    Invalid(String),
    /// The image contradicts itself or its digests.
    #[error("{what} is corrupt: {why}")]
    Corrupt { what: String, why: String },
    /// An archive entry that no honest image has.
    #[error("archive entry {entry:?} is refused: {rule}")]
    Refused { entry: String, rule: String },
    /// More than the store's limits allow.
    #[error("the image has more than {limit} {what} when unpacked, the most that this store takes")]
    TooLarge { what: &'static str, limit: u64 },
    /// Built for another operating system or processor.
    #[error("image {reference} is for {found}, this node needs {wanted}")]
    Platform { reference: String, found: String, wanted: String },
    /// The disk is full.
    #[error(
        "no space left on the file system of {path}; hint: remove images with `fsb-ctl image rm` or make room there"
    )]
    NoSpace { path: PathBuf },
    /// The file system refused something else.
    #[error("cannot {action} {path}: {error}")]
    Io { action: &'static str, path: PathBuf, error: io::Error },
    /// The image has no such user or group.
    #[error("user {spec:?}: {why}")]
    User { spec: String, why: String },
    /// The registry refused, is not reachable, or sent something wrong.
    #[error("cannot pull {reference}: {why}")]
    Registry { reference: String, why: String },
    /// The program ends before the work is done.
    #[error("the program is shutting down")]
    ShuttingDown,
    /// The failure of a pull that several callers waited for.
    #[error(transparent)]
    Shared(Arc<Error>),
}

/// Whose fault it is, for status codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request is wrong as it stands.
    Invalid,
    /// There is no such image.
    NotFound,
    /// The image cannot run here or is broken.
    Unusable,
    /// No room.
    NoSpace,
    /// The registry; may work later.
    Unavailable,
    /// This machine.
    Internal,
}

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidReference { .. } | Self::Ambiguous { .. } | Self::Invalid(_) | Self::User { .. } => {
                ErrorKind::Invalid
            }
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::UnknownFormat { .. }
            | Self::Corrupt { .. }
            | Self::Refused { .. }
            | Self::TooLarge { .. }
            | Self::Platform { .. } => ErrorKind::Unusable,
            Self::NoSpace { .. } => ErrorKind::NoSpace,
            Self::Registry { .. } | Self::ShuttingDown => ErrorKind::Unavailable,
            Self::Io { error, .. } if error.kind() == io::ErrorKind::NotFound => ErrorKind::NotFound,
            Self::Io { .. } => ErrorKind::Internal,
            Self::Shared(error) => error.kind(),
        }
    }

    pub(crate) fn corrupt(what: impl Into<String>, why: impl ToString) -> Self {
        Self::Corrupt { what: what.into(), why: why.to_string() }
    }

    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>, error: io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { path },
            _ => Self::Io { action, path, error },
        }
    }
}

/// Names the object of a failed system call.
pub(crate) trait At<T> {
    /// "cannot `action` `path`".
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|error| Error::io(action, path, error))
    }
}

impl<T> At<T> for nix::Result<T> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|errno| Error::io(action, path, errno.into()))
    }
}
