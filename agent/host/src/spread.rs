//! Where a file system puts directories.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// `EXT4_TOPDIR_FL` (`chattr +T`, ext4's documentation: "top of directory hierarchies").
const TOP: libc::c_long = 0x0002_0000;

nix::ioctl_read!(get_flags, b'f', 1, libc::c_long);
nix::ioctl_write_ptr!(set_flags, b'f', 2, libc::c_long);

/// Asks for the directories in `dir` to be put all over the file system, as unrelated ones.
///
/// ext4 would put them near each other, and it looks at each inode of that place which was freed in the last minutes
/// before it gives one out (`recently_deleted` in fs/ext4/ialloc.c): where thousands of directories come and go, each
/// new file costs up to a millisecond. File systems that do not know the flag answer with an error.
pub fn apart(dir: &Path) -> io::Result<()> {
    let dir = File::open(dir)?;
    // The kernel reads and writes an int, whatever the request's number says (ioctl_iflags(2)).
    let mut flags = 0;
    // SAFETY: the descriptor is open, and `flags` is a live long, which is at least as large as an int.
    unsafe { get_flags(dir.as_raw_fd(), &mut flags) }?;
    if flags & TOP == 0 {
        flags |= TOP;
        // SAFETY: as above.
        unsafe { set_flags(dir.as_raw_fd(), &flags) }?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_again_changes_nothing_and_what_does_not_know_it_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let first = apart(dir.path()).is_ok();
        assert_eq!(apart(dir.path()).is_ok(), first);
        assert!(apart(Path::new("/proc/self")).is_err());
    }
}
