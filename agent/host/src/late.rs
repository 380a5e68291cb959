//! What is done inside a container after it was made and before its program runs, from outside.

use crate::openat::openat2;
use crate::pidfd;
use nix::errno::Errno;
use nix::fcntl::{OFlag, ResolveFlag};
use nix::sys::stat::{Mode, mkdirat};
use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use thiserror::Error;

/// Why a directory could not be made.
#[derive(Debug, Clone, Copy, Error, PartialEq, Eq)]
pub enum Error {
    /// The container's process is gone.
    #[error("the process is gone")]
    Gone,
    /// The directory itself: `ENOTDIR` where a part of the path is a file, `ENOSPC`, `ELOOP`, …
    #[error("{0}")]
    Dir(Errno),
}

/// Makes the directory `path` inside the container of the process behind `pidfd`, whose id is `pid`, with its parents, owned by root, mode 0755, as
/// Docker does with a missing WORKDIR. Every look-up takes the container's root as `/` (`RESOLVE_IN_ROOT`), so no
/// symlink of the image leads out of it. `path` is absolute.
pub fn create_dir(pidfd: BorrowedFd<'_>, pid: i32, path: &Path) -> Result<(), Error> {
    create_dir_in(&root_of(pidfd, pid)?, path).map_err(Error::Dir)
}

/// The root directory of a process, as its mount namespace sees it.
fn root_of(pidfd: BorrowedFd<'_>, pid: i32) -> Result<OwnedFd, Error> {
    let flags = (OFlag::O_PATH | OFlag::O_DIRECTORY).bits();
    // A magic link on purpose: it leads into the other mount namespace (proc_pid_root(5)).
    let root = pidfd::open_proc(pidfd, pid, "root", OpenOptions::new().read(true).custom_flags(flags));
    root.map(OwnedFd::from).map_err(|_| Error::Gone)
}

fn create_dir_in(root: &OwnedFd, path: &Path) -> nix::Result<()> {
    let open = |path: &Path| {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        openat2(
            root.as_fd(),
            path,
            flags,
            Mode::empty(),
            ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS,
        )
    };
    match open(path) {
        Err(Errno::ENOENT) => {}
        done => return done.map(drop),
    }
    let (mut so_far, mut parent) = (PathBuf::from("/"), open(Path::new("/"))?);
    for part in path.components() {
        match part {
            Component::Normal(name) => {
                so_far.push(name);
                parent = match open(&so_far) {
                    Err(Errno::ENOENT) => {
                        match mkdirat(Some(parent.as_raw_fd()), name, Mode::from_bits_truncate(0o755)) {
                            // A dangling symlink has the name, or somebody else was faster; opening it tells.
                            Ok(()) | Err(Errno::EEXIST) => open(&so_far)?,
                            Err(error) => return Err(error),
                        }
                    }
                    opened => opened?,
                };
            }
            Component::ParentDir => {
                so_far.push("..");
                parent = open(&so_far)?;
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root(dir: &Path) -> OwnedFd {
        std::fs::File::open(dir).unwrap().into()
    }

    #[test]
    fn missing_directories_are_made_with_their_parents() {
        let dir = tempfile::tempdir().unwrap();
        create_dir_in(&root(dir.path()), Path::new("/a/b/../c")).unwrap();
        assert!(dir.path().join("a/b").is_dir() && dir.path().join("a/c").is_dir());
        create_dir_in(&root(dir.path()), Path::new("/a/b")).unwrap();
    }

    #[test]
    fn no_symlink_leads_out_of_the_container() {
        let outside = tempfile::tempdir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("out")).unwrap();
        symlink("../../../../../../..", dir.path().join("up")).unwrap();
        let made = create_dir_in(&root(dir.path()), Path::new("/out/x"));
        assert_eq!(made, Err(Errno::ENOENT), "a symlink that dangles inside");
        create_dir_in(&root(dir.path()), Path::new("/up/made")).unwrap();
        assert!(dir.path().join("made").is_dir());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_in_the_way_is_named_by_its_errno() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(create_dir_in(&root(dir.path()), Path::new("/file/x")), Err(Errno::ENOTDIR));
        assert_eq!(create_dir_in(&root(dir.path()), Path::new("/file")), Err(Errno::ENOTDIR));
    }

    #[test]
    fn a_process_that_is_gone_is_said_to_be() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pidfd = pidfd::open(child.id() as i32).unwrap();
        child.wait().unwrap();
        assert_eq!(create_dir(pidfd.as_fd(), child.id() as i32, Path::new("/x")), Err(Error::Gone));
        // Its number is another's now.
        let dir = tempfile::tempdir().unwrap();
        let other = std::process::id() as i32;
        assert_eq!(create_dir(pidfd.as_fd(), other, &dir.path().join("x")), Err(Error::Gone));
        assert!(!dir.path().join("x").exists());
    }
}
