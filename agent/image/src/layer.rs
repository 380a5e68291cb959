//! Layers: each unpacked once per store, whoever needs it.

use crate::digest::Digest;
use crate::error::{At, Error, Result};
use crate::index::layer_files;
use crate::lock::{Mode, lock};
use crate::store::Store;
use crate::stream::{Hashing, Limited, decompress, drain};
use crate::unpack::{Quota, unpack, unreadable_stream};
use fsb_files::Access;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use tempfile::TempDir;

/// What a layer's archive must be.
#[derive(Debug, Clone, Default)]
pub(crate) struct Expected {
    /// Digest of the unpacked archive.
    pub(crate) diff_id: Option<Digest>,
    /// Digest and size of the archive as it is stored.
    pub(crate) blob: Option<(Digest, u64)>,
}

/// A layer that lies in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layer {
    pub(crate) diff_id: Digest,
    /// Size of its files, in bytes.
    pub(crate) size_bytes: u64,
    /// Size of its archive, not compressed; 0 if it was there already.
    pub(crate) archive_bytes: u64,
}

impl Store {
    /// The layer `diff_id`, if it is in the store.
    pub(crate) fn layer(&self, diff_id: &Digest) -> Result<Option<Layer>> {
        let directory = self.layers().join(diff_id.hex());
        if !directory.is_dir() {
            return Ok(None);
        }
        let size = directory.join("size");
        let text = fs::read_to_string(&size).at("read", &size)?;
        let size_bytes = text.trim().parse().map_err(|e| Error::corrupt(size.display().to_string(), e))?;
        Ok(Some(Layer { diff_id: diff_id.clone(), size_bytes, archive_bytes: 0 }))
    }

    /// Makes sure that the layer is there: unpacks what `open` gives, unless somebody did already. The caller holds
    /// the collector off.
    pub(crate) fn ensure_layer<R: Read>(
        &self,
        what: &str,
        expected: &Expected,
        quota: &mut Quota,
        open: impl FnOnce() -> Result<R>,
    ) -> Result<Layer> {
        let _unpacking = match &expected.diff_id {
            Some(diff_id) => {
                if let Some(layer) = self.layer(diff_id)? {
                    return Ok(layer);
                }
                let unpacking = lock(&self.locks().join(diff_id.hex()), Mode::Exclusive)?;
                if let Some(layer) = self.layer(diff_id)? {
                    return Ok(layer);
                }
                Some(unpacking)
            }
            None => None,
        };
        let staging = self.staging()?;
        let layer = self.unpack_into(staging.path(), what, expected, quota, open()?)?;
        self.place(staging, &layer)?;
        Ok(layer)
    }

    fn unpack_into(
        &self,
        staging: &Path,
        what: &str,
        expected: &Expected,
        quota: &mut Quota,
        archive: impl Read,
    ) -> Result<Layer> {
        let files = staging.join("fs");
        fs::DirBuilder::new().mode(0o755).create(&files).at("make", &files)?;
        fs::set_permissions(&files, fs::Permissions::from_mode(0o755)).at("set the mode of", &files)?;
        let before = quota.clone();
        // Hashed only where somebody said what it must be.
        let (stored, seen_stored): (Box<dyn Read + '_>, _) = match expected.blob {
            Some(_) => {
                let (stored, seen) = Hashing::new(archive);
                (Box::new(stored), Some(seen))
            }
            None => (Box::new(archive), None),
        };
        let (_, plain) = decompress(stored).map_err(|e| unreadable_stream(what, e, &before))?;
        let (plain, seen_plain) = Hashing::new(Limited::new(plain, quota.archive_bytes()));
        let (size_bytes, mut rest) = unpack(what, plain, &files, quota)?;
        drain(&mut rest).map_err(|e| unreadable_stream(what, e, &before))?;
        if let (Some((wanted, size)), Some(seen)) = (&expected.blob, seen_stored) {
            let (blob, bytes) = seen.take();
            if *wanted != blob || *size != bytes {
                let why = format!("it has {bytes} bytes with digest {blob}, not {size} with {wanted}");
                return Err(Error::corrupt(what, why));
            }
        }
        let (diff_id, archive_bytes) = seen_plain.take();
        if let Some(wanted) = expected.diff_id.as_ref().filter(|wanted| **wanted != diff_id) {
            return Err(Error::corrupt(what, format!("unpacked, its digest is {diff_id}, not {wanted}")));
        }
        fsb_files::write(&staging.join("size"), size_bytes.to_string(), Access::Owner)
            .at("write", staging.join("size"))?;
        Ok(Layer { diff_id, size_bytes, archive_bytes })
    }

    /// Moves a finished layer to its place, at once and for all to see.
    fn place(&self, staging: TempDir, layer: &Layer) -> Result<()> {
        if self.options().durable {
            // All of the layer's files are on the disk before its name is.
            let directory = File::open(staging.path()).at("open", staging.path())?;
            nix::unistd::syncfs(directory.as_raw_fd()).at("sync", staging.path())?;
        }
        let place = self.layers().join(layer.diff_id.hex());
        match fs::rename(staging.path(), &place) {
            Ok(()) => {
                // It is not temporary any more.
                let _gone = staging.keep();
                Ok(())
            }
            // An archive without a known digest was unpacked twice at once: this one is thrown away.
            Err(_) if layer_files(self.layers(), layer.diff_id.hex()).is_dir() => Ok(()),
            Err(error) => Err(error).at("make", place),
        }
    }
}
