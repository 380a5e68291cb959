//! Counting the files of a tree that somebody else writes to meanwhile.

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{Whence, lseek};
use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

/// Directories that are held open on the way down. Those above them are found again by `..`, so that no depth takes
/// more descriptors.
const HELD: usize = 32;
/// Entries are read in pieces of so many bytes.
const READ_BYTES: usize = 32 << 10;
/// Before the name of an entry: inode, offset of the next one, length, type (getdents(2)).
const NAME_AT: usize = 19;

/// A directory on the way to the one that is read.
struct Level {
    dir: Option<OwnedFd>,
    inode: u64,
    /// Where its next entries are.
    offset: i64,
    /// Directories in it that were seen and not entered yet.
    below: Vec<CString>,
}

impl Level {
    fn new(fd: RawFd) -> nix::Result<Self> {
        // SAFETY: just opened, owned by nobody else.
        let dir = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { inode: fstat(fd)?.st_ino, dir: Some(dir), offset: 0, below: Vec::new() })
    }

    /// Reads some entries and says how many names they were; `None` at the end.
    fn read(&mut self, buffer: &mut [u8]) -> nix::Result<Option<u64>> {
        let fd = self.dir.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        // SAFETY: the kernel writes at most the buffer's length into it.
        let read = unsafe { libc::syscall(libc::SYS_getdents64, fd, buffer.as_mut_ptr(), buffer.len()) };
        let mut left = &buffer[..Errno::result(read)? as usize];
        if left.is_empty() {
            return Ok(None);
        }
        let mut names = 0;
        while let Some((head, _)) = left.split_at_checked(NAME_AT) {
            let length = usize::from(u16::from_ne_bytes([head[16], head[17]]));
            let Some(entry) = left.get(..length).filter(|entry| entry.len() > NAME_AT) else { break };
            self.offset = i64::from_ne_bytes(std::array::from_fn(|at| head[8 + at]));
            left = &left[length..];
            let name = entry[NAME_AT..].split(|byte| *byte == 0).next().unwrap_or_default();
            if matches!(name, b"." | b"..") {
                continue;
            }
            names += 1;
            // Where the file system does not tell types, opening it will.
            if matches!(head[18], libc::DT_DIR | libc::DT_UNKNOWN) {
                self.below.extend(CString::new(name));
            }
        }
        Ok(Some(names))
    }
}

/// How many names there are below `dir`, of files and directories; a file with two names counts twice, as a tmpfs counts
/// it. Counts a little beyond `most` and no further. `turn` is called every so often, at least once for each directory:
/// whoever has all the time in the world takes a rest there.
///
/// Where a directory is moved away while it is read, what was counted until then is the answer: it is never too high.
///
/// # Errors
/// errno of whatever failed but that something is no longer there.
pub fn names(dir: &Path, most: u64, mut turn: impl FnMut()) -> nix::Result<u64> {
    let root = match open(dir, directory(), Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(0),
        root => root?,
    };
    let (mut levels, mut names) = (vec![Level::new(root)?], 0);
    let mut buffer = vec![0; READ_BYTES];
    while let Some(level) = levels.last_mut()
        && names <= most
    {
        turn();
        if let Some(name) = level.below.pop() {
            let from = level.dir.as_ref().map(AsRawFd::as_raw_fd);
            match openat(from, name.as_c_str(), directory(), Mode::empty()) {
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
                below => {
                    levels.push(Level::new(below?)?);
                    if let Some(far) = levels.len().checked_sub(HELD + 1) {
                        levels[far].dir = None;
                    }
                }
            }
        } else if let Some(more) = level.read(&mut buffer)? {
            names += more;
        } else if !ascend(&mut levels)? {
            break;
        }
    }
    Ok(names)
}

/// Leaves the last directory. Says whether the one above it is the one that it was entered from.
fn ascend(levels: &mut Vec<Level>) -> nix::Result<bool> {
    let left = levels.pop().and_then(|level| level.dir);
    let Some(above) = levels.last_mut().filter(|above| above.dir.is_none()) else { return Ok(true) };
    let again = Level::new(openat(left.as_ref().map(AsRawFd::as_raw_fd), "..", directory(), Mode::empty())?)?;
    if again.inode != above.inode {
        return Ok(false);
    }
    above.dir = again.dir;
    lseek(above.dir.as_ref().map_or(-1, AsRawFd::as_raw_fd), above.offset, Whence::SeekSet)?;
    Ok(true)
}

fn directory() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::mkdirat;

    #[test]
    fn names_are_counted_whatever_they_are_and_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        for path in ["a/b/c", "d"] {
            std::fs::create_dir_all(tree.join(path)).unwrap();
            (0..3_000).for_each(|n| std::fs::write(tree.join(path).join(format!("{n:040}")), "").unwrap());
        }
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("file"), "").unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("link")).unwrap();
        std::fs::hard_link(tree.join("d").join(format!("{:040}", 0)), tree.join("second name")).unwrap();
        let mut turns = 0;
        assert_eq!(names(&tree, u64::MAX, || turns += 1).unwrap(), 4 + 6_000 + 2);
        assert!(turns > 10);
        let some = names(&tree, 10, || ()).unwrap();
        assert!((11..4_000).contains(&some), "it stops beyond what was asked for: {some}");
        assert_eq!(names(&dir.path().join("none"), 1, || ()).unwrap(), 0);
    }

    #[test]
    fn a_deep_tree_is_counted_whole_with_few_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let mut at = open(dir.path(), directory(), Mode::empty()).unwrap();
        for _ in 0..1_000 {
            for name in ["d", "e"] {
                mkdirat(Some(at), name, Mode::S_IRWXU).unwrap();
            }
            let below = openat(Some(at), "d", directory(), Mode::empty()).unwrap();
            nix::unistd::close(at).unwrap();
            at = below;
        }
        nix::unistd::close(at).unwrap();
        assert_eq!(names(dir.path(), u64::MAX, || ()).unwrap(), 2_000);
        crate::tree::remove(dir.path()).unwrap();
    }

    #[test]
    fn what_is_moved_away_while_it_is_counted_ends_the_count() {
        let dir = tempfile::tempdir().unwrap();
        let deep: std::path::PathBuf = std::iter::repeat_n("d", HELD + 10).collect();
        std::fs::create_dir_all(dir.path().join("tree").join(&deep)).unwrap();
        let (from, to) = (dir.path().join("tree/d/d"), dir.path().join("elsewhere"));
        let mut turns = 0;
        let counted = names(&dir.path().join("tree"), u64::MAX, || {
            turns += 1;
            if turns == 2 * (HELD + 8) {
                std::fs::rename(&from, &to).unwrap();
            }
        });
        assert_eq!(counted.unwrap(), HELD as u64 + 10, "not what is above the new place");
    }
}
