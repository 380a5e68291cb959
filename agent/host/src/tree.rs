//! Removing what somebody else has written.

use nix::dir::{Dir, Entry, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// A tree that takes longer is written to meanwhile, or is for another time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Removes a directory with all that is in it, if it is there. Links are not followed.
///
/// A tree of any depth takes two descriptors and no recursion, where `std::fs::remove_dir_all` takes stack and a
/// descriptor for each level: a sandbox may nest directories until whoever removes them has none left. Here directories
/// below the second level are first moved up to the top.
///
/// # Errors
/// Names the directory.
pub fn remove(dir: &Path) -> io::Result<()> {
    let done = match Dir::open(dir, directory(), Mode::empty()) {
        Ok(mut top) => empty(&mut top).map_err(io::Error::from).and_then(|()| std::fs::remove_dir(dir)),
        Err(Errno::ENOTDIR | Errno::ELOOP) => std::fs::remove_file(dir),
        Err(errno) => Err(errno.into()),
    };
    match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io::Error::new(error.kind(), format!("remove {}: {error}", dir.display())))
        }
        _ => Ok(()),
    }
}

fn directory() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

fn empty(top: &mut Dir) -> nix::Result<()> {
    let (fd, end) = (top.as_raw_fd(), Instant::now() + PATIENCE);
    let mut moved = 0;
    loop {
        let mut left = false;
        for entry in top.iter() {
            let entry = entry?;
            if unlink(fd, &entry)? {
                continue;
            }
            left = true;
            let mut below = match Dir::openat(Some(fd), entry.file_name(), directory(), Mode::empty()) {
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => continue,
                below => below?,
            };
            let from = below.as_raw_fd();
            for inner in below.iter() {
                let inner = inner?;
                if !unlink(from, &inner)? {
                    lift(from, inner.file_name(), fd, &mut moved)?;
                }
            }
            unlink(fd, &entry)?;
        }
        if !left {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(Errno::ETIME);
        }
    }
}

/// Removes an entry; false if it is a directory that is not empty.
fn unlink(dir: RawFd, entry: &Entry) -> nix::Result<bool> {
    let name = entry.file_name();
    if matches!(name.to_bytes(), b"." | b"..") {
        return Ok(true);
    }
    if entry.file_type() != Some(Type::Directory) {
        match unlinkat(Some(dir), name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(true),
            // The file system does not tell types.
            Err(Errno::EISDIR) => {}
            Err(errno) => return Err(errno),
        }
    }
    match unlinkat(Some(dir), name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(true),
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Moves a directory to the top, under a name that is free there.
fn lift(from: RawFd, name: &CStr, top: RawFd, moved: &mut u64) -> nix::Result<()> {
    loop {
        *moved += 1;
        match renameat(Some(from), name, Some(top), format!(".{moved}").as_str()) {
            Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR) => {}
            Err(Errno::ENOENT) => return Ok(()),
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::mkdirat;

    #[test]
    fn a_tree_goes_whatever_is_in_it_and_what_links_lead_to_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        for path in ["a/b/c/d", "a/b2", ".1/.2/.3", ".2", "f"] {
            std::fs::create_dir_all(tree.join(path)).unwrap();
            std::fs::write(tree.join(path).join("file"), "x").unwrap();
        }
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("kept"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("a/b/link")).unwrap();
        std::fs::write(tree.join(".3"), "a file in the way").unwrap();
        remove(&tree).unwrap();
        assert!(!tree.exists() && outside.join("kept").exists());
        remove(&tree).unwrap();
        std::os::unix::fs::symlink(&outside, &tree).unwrap();
        remove(&tree).unwrap();
        assert!(tree.symlink_metadata().is_err() && outside.join("kept").exists());
    }

    #[test]
    fn no_depth_is_too_deep() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        let mut at = Dir::open(&tree, directory(), Mode::empty()).unwrap();
        for _ in 0..4_000 {
            mkdirat(Some(at.as_raw_fd()), "d", Mode::S_IRWXU).unwrap();
            at = Dir::openat(Some(at.as_raw_fd()), "d", directory(), Mode::empty()).unwrap();
        }
        drop(at);
        let removed = std::thread::Builder::new().stack_size(64 << 10).spawn({
            let tree = tree.clone();
            move || remove(&tree)
        });
        removed.unwrap().join().unwrap().unwrap();
        assert!(!tree.exists());
    }
}
