//! The writable layer of a container, once the container is dead.

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// What every container has of its own in `/etc`, in its writable layer from the beginning.
pub const ETC_FILES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];
/// What overlayfs makes by itself in the work directory of a `volatile` mount (`ovl_make_workdir` in the kernel's
/// fs/overlayfs/super.c), and leaves there when the mount goes.
const OVERLAY_FILE: &str = "work/work/incompat/volatile/dirty";
const OVERLAY_DIRS: [&str; 4] = ["work/work/incompat/volatile", "work/work/incompat", "work/work", "work"];

/// Removes a layer. One that is gone already is fine.
///
/// # Errors
/// Names the layer.
pub fn remove(layer: &Path) -> io::Result<()> {
    if remove_unwritten(layer) {
        return Ok(());
    }
    match std::fs::remove_dir_all(layer) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io::Error::new(error.kind(), format!("remove {}: {error}", layer.display())))
        }
        _ => Ok(()),
    }
}

/// Removes a layer that nothing was written to, as most are: what is in it is known, so that no directory need be read.
/// Returns whether that was all of it.
fn remove_unwritten(layer: &Path) -> bool {
    let remove_dir = |dir: &str| is_gone(std::fs::remove_dir(layer.join(dir)));
    remove_etc(&layer.join("upper/etc"))
        && remove_dir("upper/etc")
        && remove_dir("upper")
        && is_gone(std::fs::remove_file(layer.join(OVERLAY_FILE)))
        && OVERLAY_DIRS.iter().all(|dir| remove_dir(dir))
        && remove_dir("")
}

/// The sandbox is dead, but it may have passed its root directory on to another one, which could put a link here at any
/// time: nothing is removed by a path that leads through what a sandbox can write to.
fn remove_etc(etc: &Path) -> bool {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let dir = match open(etc, flags, Mode::empty()) {
        // SAFETY: just made, owned by nobody else.
        Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd) },
        Err(error) => return error == Errno::ENOENT,
    };
    let remove = |file: &&str| unlinkat(Some(dir.as_raw_fd()), *file, UnlinkatFlags::NoRemoveDir);
    ETC_FILES.iter().all(|file| is_gone(remove(file).map_err(io::Error::from)))
}

fn is_gone(removed: io::Result<()>) -> bool {
    removed.map_or_else(|error| error.kind() == io::ErrorKind::NotFound, |()| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A layer as a dead container leaves it.
    fn layer(dir: &Path) -> std::path::PathBuf {
        let layer = dir.join("layer");
        std::fs::create_dir_all(layer.join("work/work/incompat/volatile")).unwrap();
        std::fs::create_dir_all(layer.join("upper/etc")).unwrap();
        std::fs::write(layer.join(OVERLAY_FILE), "").unwrap();
        ETC_FILES.iter().for_each(|file| std::fs::write(layer.join("upper/etc").join(file), "x").unwrap());
        layer
    }

    #[test]
    fn a_layer_is_removed_whether_it_was_written_to_or_not() {
        let dir = tempfile::tempdir().unwrap();
        for files in [&[][..], &["upper/a/b"], &["upper/etc/passwd"], &["upper/etc/hosts/x"], &["work/work/#1"]] {
            let layer = layer(dir.path());
            for file in files {
                let file = layer.join(file);
                let _ = std::fs::remove_file(file.parent().unwrap());
                std::fs::create_dir_all(file.parent().unwrap()).unwrap();
                std::fs::write(file, "x").unwrap();
            }
            assert_eq!(remove_unwritten(&layer), files.is_empty(), "{files:?}");
            remove(&layer).unwrap();
            assert!(!layer.exists());
            remove(&layer).unwrap();
        }
    }

    #[test]
    fn a_link_in_the_place_of_etc_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (layer, outside) = (layer(dir.path()), dir.path().join("outside"));
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("hosts"), "x").unwrap();
        std::fs::remove_dir_all(layer.join("upper/etc")).unwrap();
        std::os::unix::fs::symlink(&outside, layer.join("upper/etc")).unwrap();
        remove(&layer).unwrap();
        assert!(!layer.exists() && outside.join("hosts").exists());
    }
}
