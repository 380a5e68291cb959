//! The layers of a container's own, once the container is dead.
//!
//! ```text
//! <instance id>/lower/etc/{hosts,hostname,resolv.conf}   what the node contributes, below the writable layer
//!               upper/                                   what the container has written
//!               work/                                    overlayfs's own
//! ```
//!
//! Making files and directories is a large part of what a container costs a disk, so [`strip`] leaves those that the
//! next container has, too. Only `upper` is reached through descriptors by which a sandbox can write, and those may have
//! been passed on to another sandbox: it is always another directory, one that overlayfs had for itself. By a descriptor
//! that leads to `lower` such a sandbox may read the host name of the next one, and write nothing.

use crate::tree;
use std::io;
use std::path::Path;
use std::time::Instant;

/// The directories in a layer.
pub const LOWER: &str = "lower";
pub const UPPER: &str = "upper";
pub const WORK: &str = "work";
/// What every container has of its own in `/etc`.
pub const ETC_FILES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];
/// What overlayfs makes by itself in the work directory of a `volatile` mount (`ovl_make_workdir` in the kernel's
/// fs/overlayfs/super.c), leaves there when the mount goes, and wants to be gone before the next one.
const OVERLAY_FILE: &str = "work/work/incompat/volatile/dirty";
const OVERLAY_DIR: &str = "work/work/incompat/volatile";
const OVERLAY_DIRS: [&str; 2] = ["work/work/incompat", "work/work"];

/// Removes what a dead container has added to its layer, until it is `until`. What is left, an empty `upper` of any mode
/// included, is for the next one. Says whether all of it is removed; if not, the layer is good for nothing but
/// [`tree::Removal`].
///
/// # Errors
/// Names the layer.
pub fn strip(layer: &Path, until: Instant) -> io::Result<bool> {
    // Most have written nothing: then what there is is known. The one takes the other's place only if that is empty
    // (rename(2)).
    let (upper, free) = (layer.join(UPPER), layer.join(OVERLAY_DIR));
    let known = is_gone(std::fs::remove_file(layer.join(OVERLAY_FILE))) && is_empty(&free);
    let replace = || {
        let replaced = known && std::fs::rename(&free, &upper).is_ok();
        replaced && OVERLAY_DIRS.iter().all(|dir| remove_dir(&layer.join(dir)))
    };
    if replace() {
        return Ok(true);
    }
    if !tree::Removal::new(&upper).go_on(until)? {
        return Ok(false);
    }
    Ok(replace() || tree::Removal::new(&layer.join(WORK)).go_on(until)?)
}

/// Removes a layer. One that is gone already is fine.
///
/// # Errors
/// Names the layer.
pub fn remove(layer: &Path) -> io::Result<()> {
    if !strip(layer, Instant::now() + tree::PATIENCE)? {
        return Err(io::Error::new(io::ErrorKind::TimedOut, format!("remove {}: too much is in it", layer.display())));
    }
    let etc = layer.join(LOWER).join("etc");
    let known = ETC_FILES.iter().all(|file| is_gone(std::fs::remove_file(etc.join(file))))
        && [&etc, &layer.join(LOWER), &layer.join(UPPER), &layer.join(WORK), layer].into_iter().all(remove_dir);
    if known { Ok(()) } else { tree::remove(layer) }
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

fn remove_dir(dir: &Path) -> bool {
    is_gone(std::fs::remove_dir(dir))
}

fn is_gone(removed: io::Result<()>) -> bool {
    removed.map_or_else(|error| error.kind() == io::ErrorKind::NotFound, |()| true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::path::PathBuf;

    /// A layer as a dead container leaves it.
    fn layer(dir: &Path) -> PathBuf {
        let layer = dir.join("layer");
        std::fs::create_dir_all(layer.join("work/work/incompat/volatile")).unwrap();
        std::fs::write(layer.join(OVERLAY_FILE), "").unwrap();
        std::fs::create_dir_all(layer.join("upper")).unwrap();
        std::fs::create_dir_all(layer.join("lower/etc")).unwrap();
        ETC_FILES.iter().for_each(|file| std::fs::write(layer.join("lower/etc").join(file), "x").unwrap());
        layer
    }

    fn written(dir: &Path, files: &[&str]) -> PathBuf {
        let layer = layer(dir);
        for file in files.iter().map(|file| layer.join(file)) {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, "x").unwrap();
        }
        layer
    }

    const WRITTEN: [&[&str]; 5] = [
        &[],
        &["upper/a/b"],
        &["upper/etc/hosts", "upper/c"],
        &["work/work/#1", "work/d"],
        &["work/work/incompat/volatile/news"],
    ];

    #[test]
    fn a_layer_is_removed_whether_it_was_written_to_or_not() {
        let dir = tempfile::tempdir().unwrap();
        for files in WRITTEN {
            let layer = written(dir.path(), files);
            remove(&layer).unwrap();
            assert!(!layer.exists(), "{files:?}");
            remove(&layer).unwrap();
        }
    }

    #[test]
    fn nothing_that_a_container_wrote_stays_for_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        for files in WRITTEN {
            let layer = written(dir.path(), files);
            let inode = |path: &Path| path.metadata().map(|metadata| metadata.ino()).ok();
            let (written, free) = (inode(&layer.join("upper")), inode(&layer.join(OVERLAY_DIR)));
            assert!(strip(&layer, Instant::now() + tree::PATIENCE).unwrap());
            let upper = inode(&layer.join("upper"));
            assert!(upper.is_none() || upper == free && upper != written, "a descriptor may lead there: {files:?}");
            assert!(upper.is_none() || is_empty(&layer.join("upper")), "{files:?}");
            assert!(!layer.join("work/work").exists(), "{files:?}");
            assert!(layer.join("lower/etc/hosts").exists());
            remove(&layer).unwrap();
        }
    }

    #[test]
    fn a_layer_that_takes_longer_than_there_is_time_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let layer = written(dir.path(), &["upper/a", "upper/b"]);
        assert!(!strip(&layer, Instant::now()).unwrap());
        remove(&layer).unwrap();
        assert!(!layer.exists());
    }

    #[test]
    fn a_link_in_the_place_of_a_directory_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (layer, outside) = (written(dir.path(), &["upper/a"]), dir.path().join("outside"));
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("hosts"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, layer.join("upper/etc")).unwrap();
        remove(&layer).unwrap();
        assert!(!layer.exists() && outside.join("hosts").exists());
    }
}
