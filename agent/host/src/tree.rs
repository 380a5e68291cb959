//! Removing what somebody else has written.

use nix::dir::{Dir, OwningIter, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A tree that takes longer is written to meanwhile, or is for another time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Removes a directory with all that is in it, if it is there. Links are not followed.
///
/// # Errors
/// Names the directory.
pub fn remove(dir: &Path) -> io::Result<()> {
    if Removal::new(dir).go_on(Instant::now() + PATIENCE)? {
        return Ok(());
    }
    Err(named(dir, &Errno::ETIME.into()))
}

/// The removal of a directory with all that is in it, which may be interrupted. Links are not followed.
///
/// A tree of any depth takes two descriptors and no recursion, where `std::fs::remove_dir_all` takes stack and a
/// descriptor for each level: a sandbox may nest directories until whoever removes them has none left. Here directories
/// below the second level are first moved up to the top.
#[derive(Debug)]
pub struct Removal {
    dir: PathBuf,
    /// The directory, as far as it was read. Kept open, so that a large one is not read from its beginning each time.
    top: Option<OwningIter>,
    /// A directory in it that is being emptied, with its name.
    below: Option<(CString, OwningIter)>,
    /// Something is left that was passed by.
    left: bool,
    moved: u64,
    removed: u64,
}

impl Removal {
    /// Of `dir`, whether it is there or not. Nothing is done yet.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), top: None, below: None, left: false, moved: 0, removed: 0 }
    }

    /// Files and directories that are gone so far.
    pub fn removed(&self) -> u64 {
        self.removed
    }

    /// Removes until all is gone or it is `until`, at least one file. Says whether all is gone. After an error a further
    /// call begins again with what is left.
    ///
    /// # Errors
    /// Names the directory.
    pub fn go_on(&mut self, until: Instant) -> io::Result<bool> {
        match self.work(until) {
            Ok(done) => Ok(done),
            Err(Errno::ENOENT) => Ok(true),
            Err(errno) => {
                (self.top, self.below) = (None, None);
                Err(named(&self.dir, &errno.into()))
            }
        }
    }

    fn work(&mut self, until: Instant) -> nix::Result<bool> {
        loop {
            let top = match &mut self.top {
                Some(top) => top,
                None => match Dir::open(&self.dir, directory(), Mode::empty()) {
                    Err(Errno::ENOTDIR | Errno::ELOOP) => return unlink_file(&self.dir),
                    top => self.top.insert(top?.into_iter()),
                },
            };
            let fd = top.as_raw_fd();
            if let Some((name, below)) = &mut self.below {
                let from = below.as_raw_fd();
                match below.next() {
                    None => {
                        // Not empty if somebody has written to it meanwhile: then the next pass finds it.
                        self.removed += u64::from(unlink(fd, name, Some(Type::Directory))?);
                        self.below = None;
                    }
                    Some(inner) => {
                        let inner = inner?;
                        if unlink(from, inner.file_name(), inner.file_type())? {
                            self.removed += 1;
                        } else {
                            lift(from, inner.file_name(), fd, &mut self.moved)?;
                        }
                    }
                }
            } else {
                match top.next() {
                    None if self.left => (self.top, self.left) = (None, false),
                    None => return unlinkat(None, &self.dir, UnlinkatFlags::RemoveDir).map(|()| true),
                    Some(entry) => {
                        let entry = entry?;
                        if unlink(fd, entry.file_name(), entry.file_type())? {
                            self.removed += 1;
                        } else {
                            self.left = true;
                            match Dir::openat(Some(fd), entry.file_name(), directory(), Mode::empty()) {
                                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
                                below => self.below = Some((entry.file_name().to_owned(), below?.into_iter())),
                            }
                        }
                    }
                }
            }
            if Instant::now() >= until {
                return Ok(false);
            }
        }
    }
}

fn named(dir: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("remove {}: {error}", dir.display()))
}

fn directory() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

fn unlink_file(path: &Path) -> nix::Result<bool> {
    unlinkat(None, path, UnlinkatFlags::NoRemoveDir).map(|()| true)
}

/// Removes an entry; false if it is a directory that is not empty.
fn unlink(dir: RawFd, name: &CStr, kind: Option<Type>) -> nix::Result<bool> {
    if matches!(name.to_bytes(), b"." | b"..") {
        return Ok(true);
    }
    if kind != Some(Type::Directory) {
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
    fn a_removal_goes_on_where_it_stopped_until_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        for path in ["a/b/c", "d/e", "f"] {
            std::fs::create_dir_all(tree.join(path)).unwrap();
            (0..20).for_each(|n| std::fs::write(tree.join(path).join(n.to_string()), "x").unwrap());
        }
        let mut removal = Removal::new(&tree);
        let mut calls = 0;
        // Time that is over already: one step each.
        while !removal.go_on(Instant::now()).unwrap() {
            calls += 1;
            assert!(tree.exists());
        }
        assert!(!tree.exists() && calls >= 66, "{calls}");
        assert!(removal.removed() >= 66);
        assert!(removal.go_on(Instant::now()).unwrap(), "what is gone is done");
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
