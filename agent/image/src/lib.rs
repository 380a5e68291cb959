//! Container images on a node: what an agent starts sandboxes from.
//!
//! [`ImageStore`] is what the start path needs of a store; [`Store`] is the built-in one: it imports OCI layouts,
//! `docker save` archives and root file-system tars, pulls from registries, unpacks each layer once, and removes what
//! nobody uses any more. Everything that comes from outside the node (archives, registries, configurations) is hostile.
#![cfg_attr(not(test), warn(clippy::print_stderr, clippy::print_stdout))]

mod credentials;
mod digest;
mod download;
mod error;
mod image;
mod import;
mod index;
mod layer;
mod lock;
mod manifest;
mod merged;
mod path;
mod pin;
mod pull;
mod reference;
mod registry;
mod store;
mod stream;
mod sweep;
mod tar;
mod unpack;
mod user;

pub use error::{Error, ErrorKind, Result};
pub use image::{Image, ImageConfig, Import, platform};
pub use merged::{Merged, PathKind};
pub use pin::Pin;
pub use pull::Progress;
pub use reference::Reference;
pub use store::{Options, Store};
pub use sweep::Swept;

use futures_util::future::BoxFuture;
use std::path::PathBuf;

/// Where images come from: the built-in store, or that of a container engine on the node.
pub trait ImageStore: Send + Sync {
    /// The image that `reference` means, if it is on the node. On the path of every start: microseconds.
    fn resolve<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<Option<Image>>>;

    /// The lower directories of an image by its digest, the topmost first.
    fn rootfs<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<Vec<PathBuf>>>;

    /// All images that have a name.
    fn list(&self) -> BoxFuture<'_, Result<Vec<Image>>>;
}

impl ImageStore for Store {
    fn resolve<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<Option<Image>>> {
        Box::pin(std::future::ready(Store::resolve(self, reference)))
    }

    fn rootfs<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<Vec<PathBuf>>> {
        Box::pin(std::future::ready(Store::rootfs(self, digest)))
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Image>>> {
        Box::pin(std::future::ready(Store::list(self)))
    }
}
