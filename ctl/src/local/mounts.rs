//! The run directory's tmpfs, and mounts that a crash left behind.

use crate::error::{Context, Failure, Result};
use fsb_files::Access;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{FsType, NSFS_MAGIC, TMPFS_MAGIC, statfs};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Makes sure that `path` is a directory, for root and the group, on a tmpfs that is not the file system of `state`, which
/// sandboxes may fill: mounts one there if it is not. Private: what is pinned below it stays out of every other mount
/// namespace.
pub(crate) fn ensure_tmpfs(path: &Path, state: &Path) -> Result<()> {
    let make = || fsb_files::create_dir(path, Access::Group).context(|| format!("cannot make {}", path.display()));
    make()?;
    let device = |path: &Path| path.metadata().map(|metadata| metadata.dev()).ok();
    if is(path, TMPFS_MAGIC) && device(path) != device(state) {
        return Ok(());
    }
    let none = None::<&str>;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("fast-sandbox"), path, Some("tmpfs"), flags, Some("mode=0700"))
        .context(|| format!("cannot mount a tmpfs on {}", path.display()))?;
    mount(none, path, none, MsFlags::MS_PRIVATE, none).context(|| format!("cannot make {} private", path.display()))?;
    make()
}

/// Whether a namespace is pinned on `path`.
pub(crate) fn is_namespace(path: &Path) -> bool {
    is(path, NSFS_MAGIC)
}

fn is(path: &Path, kind: FsType) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == kind)
}

/// Unmounts everything at or below `directory`, the innermost first.
pub(crate) fn unmount_below(directory: &Path) -> Result<()> {
    let real = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    let table = std::fs::read("/proc/self/mountinfo").context(|| "cannot read /proc/self/mountinfo".into())?;
    let mut failed = None;
    let points = points(&table).into_iter().rev();
    for path in points.filter(|path| path.starts_with(&real)) {
        // Detached: an open file of somebody's shell must not keep the mount in sight.
        if let Err(error) = umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            failed = Some(Failure::new(format!("cannot unmount {}: {error}", path.display())));
        }
    }
    failed.map_or(Ok(()), Err)
}

/// The mount points of a mount table, in its order.
pub(crate) fn points(mountinfo: &[u8]) -> Vec<PathBuf> {
    let lines = mountinfo.split(|byte| *byte == b'\n');
    lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(4)).map(unescape).collect()
}

/// The kernel writes space, tab, line end and backslash as three octal digits (proc_pid_mountinfo(5)).
fn unescape(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let octal = text.get(at + 1..at + 4).filter(|digits| digits.iter().all(|d| (b'0'..b'8').contains(d)));
        match (text[at], octal) {
            (b'\\', Some(digits)) => {
                bytes.push(digits.iter().fold(0u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')));
                at += 4;
            }
            (byte, _) => {
                bytes.push(byte);
                at += 1;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_with_spaces_are_read() {
        let table = b"22 27 0:21 / /proc rw - proc proc rw\n23 27 0:1 / /a\\040b\\134c rw shared:1 - tmpfs t rw\n";
        assert_eq!(points(table), [PathBuf::from("/proc"), PathBuf::from("/a b\\c")]);
    }
}
