//! The collector: removes what nobody needs, never what somebody uses.

use crate::digest::Digest;
use crate::error::{At, Error, Result};
use crate::layer::Layer;
use crate::lock::{Lock, Mode, lock, try_exclusive};
use crate::store::{Store, blocking};
use fsb_files::Access;
use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long parts of a pull that broke off are kept.
const KEEP_PARTS: Duration = Duration::from_secs(3600);
/// What names of files begin with that keep a layer; those of archives of layers do not.
const KEPT_LAYER: &str = "layer-";

/// What a sweep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Images without a name that were removed.
    pub images: usize,
    /// Layers that were removed.
    pub layers: usize,
    /// Images without a name that are still pinned.
    pub put_off: usize,
    /// Parts of pulls that broke off, kept for an hour.
    pub parts: usize,
    /// Nothing was done, because an image is being imported or pulled or another sweep runs.
    pub busy: bool,
}

impl Store {
    /// Removes images that have lost their names and are not pinned, layers that no image has, and what crashed
    /// imports left. Does nothing while an import or a pull runs; that sweeps when it is done.
    pub async fn sweep(&self) -> Result<Swept> {
        let store = self.clone();
        blocking(move || store.sweep_blocking()).await
    }

    pub(crate) fn sweep_blocking(&self) -> Result<Swept> {
        let Some(alone) = try_exclusive(&self.collector_lock())? else {
            return Ok(Swept { busy: true, ..Default::default() });
        };
        let swept = self.move_to_trash()?;
        drop(alone);
        // Nobody finds it any more, so this may take its time.
        let trash = self.directory().join("trash");
        for name in names(&trash)? {
            remove(&trash.join(name))?;
        }
        Ok(swept)
    }

    /// After an import or a pull. What fails here fails again, and is reported, at the next [`Store::sweep`].
    pub(crate) fn sweep_quietly(&self) {
        if let Err(error) = self.sweep_blocking() {
            tracing::warn!(%error, "the image store could not be swept");
        }
    }

    /// Keeps layers that no image has yet, for the next try of the pull that brought them.
    pub(crate) fn keep_layers(&self, layers: &[Layer]) {
        for layer in layers {
            let path = self.kept_layer(layer);
            // At worst they are downloaded again.
            if let Err(error) = fsb_files::write(&path, "", Access::Owner) {
                tracing::debug!(path = %path.display(), %error, "a layer is not kept");
            }
        }
    }

    /// An image has them now.
    pub(crate) fn release_layers(&self, layers: &[Layer]) {
        for layer in layers {
            // Mostly there is nothing; what stays is removed in an hour.
            let _ = fs::remove_file(self.kept_layer(layer));
        }
    }

    fn kept_layer(&self, layer: &Layer) -> PathBuf {
        self.parts().join(format!("{KEPT_LAYER}{}", layer.diff_id.hex()))
    }

    /// Names of the parts that are young enough to be kept; the others are removed.
    fn kept_parts(&self) -> Result<Vec<OsString>> {
        let mut kept = Vec::new();
        for name in names(&self.parts())? {
            let path = self.parts().join(&name);
            let age = fs::metadata(&path).and_then(|part| part.modified()).ok().and_then(|at| at.elapsed().ok());
            // A time in the future counts as now.
            if age.unwrap_or_default() < KEEP_PARTS { kept.push(name) } else { remove(&path)? }
        }
        Ok(kept)
    }

    fn move_to_trash(&self) -> Result<Swept> {
        let mut swept = Swept::default();
        let trash = self.directory().join("trash");
        if self.snapshot()?.has_nameless() {
            let removed: Vec<(Digest, Lock)> = self.change_index(|index| {
                let mut removed = Vec::new();
                for digest in index.nameless() {
                    let parsed = Digest::parse(&digest)?;
                    match try_exclusive(&self.pin_file(&parsed))? {
                        Some(alone) => {
                            index.images.remove(&digest);
                            removed.push((parsed, alone));
                        }
                        None => swept.put_off += 1,
                    }
                }
                Ok(removed)
            })?;
            swept.images = removed.len();
            for (digest, _alone) in &removed {
                let path = self.pin_file(digest);
                fs::remove_file(&path).at("remove", &path)?;
            }
        }
        let _index = lock(&self.index_lock(), Mode::Shared)?;
        let snapshot = self.snapshot()?;
        let mut used: HashSet<OsString> = snapshot.layers().map(OsString::from).collect();
        let kept = self.kept_parts()?;
        swept.parts = kept.len();
        used.extend(kept.iter().filter_map(|name| name.to_str()?.strip_prefix(KEPT_LAYER)).map(OsString::from));
        for name in names(self.layers())? {
            if !used.contains(&name) {
                discard(&self.layers().join(&name), &trash)?;
                swept.layers += 1;
            }
        }
        // Locks of layers and pulls: nobody has one while the collector runs.
        for name in names(&self.locks())? {
            if ![self.index_lock(), self.collector_lock()].contains(&self.locks().join(&name)) {
                remove(&self.locks().join(&name))?;
            }
        }
        // A pin that came too late may have left its file.
        for name in names(&self.directory().join("pins"))? {
            let digest = format!("sha256:{}", name.to_string_lossy());
            let path = self.directory().join("pins").join(&name);
            if !snapshot.holds(&digest)
                && let Some(_alone) = try_exclusive(&path)?
            {
                remove(&path)?;
            }
        }
        let tmp = self.directory().join("tmp");
        for name in names(&tmp)? {
            discard(&tmp.join(name), &trash)?;
        }
        Ok(swept)
    }
}

/// Moves `path` into the trash, under a name that is free there.
fn discard(path: &Path, trash: &Path) -> Result<()> {
    let place = tempfile::Builder::new().prefix("").tempdir_in(trash).at("make a directory in", trash)?;
    fs::rename(path, place.path().join("it")).at("remove", path)?;
    // The trash is emptied afterwards, by whoever comes first.
    let _kept = place.keep();
    Ok(())
}

fn names(directory: &Path) -> Result<Vec<OsString>> {
    let entries = fs::read_dir(directory).at("list", directory)?;
    entries.map(|entry| entry.map(|e| e.file_name()).at("list", directory)).collect()
}

/// Removes a file or a whole directory; another sweep may do the same at the same time.
fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("remove", path, error)),
        Ok(()) => Ok(()),
    }
}
