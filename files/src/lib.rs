//! Directories, files and sockets that are not for everybody: what a node keeps holds what its tenants said and wrote.
//!
//! Modes do not depend on the umask of whoever started a program. What is there from before, with the modes of an
//! older version or of somebody's `mkdir`, is closed through a descriptor, so that nothing else is hit by it. A link is
//! followed only if it is our own, as an administrator's to a larger disk is: whoever can put one into a directory
//! above ours must not choose what we close, nor read what we write.

use nix::fcntl::OFlag;
use nix::unistd::{Group, geteuid};
use std::fs::{DirBuilder, File, OpenOptions, Permissions, read_dir};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, fchown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// The group that may use a node beside root, where the machine has it.
const GROUP: &str = "fsb";
/// As many links as the kernel follows (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Who may use what is made, beside its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nobody: 0700, files and sockets 0600.
    Owner,
    /// The group `fsb`, if the machine has it: 0750, files 0640, sockets 0660.
    Group,
}

impl Access {
    fn group(self) -> Option<u32> {
        match self {
            Access::Owner => None,
            Access::Group => Group::from_name(GROUP).ok().flatten().map(|group| group.gid.as_raw()),
        }
    }
}

/// Makes `path` a directory that only these may use, and what is missing above it likewise. One that is there is closed
/// to all others, and so are the files in it if it had been open.
///
/// # Errors
/// Those of mkdir(2), open(2) and chmod(2); [`ErrorKind::PermissionDenied`] if it is somebody else's.
pub fn create_dir(path: &Path, access: Access) -> io::Result<()> {
    let path = follow(path)?;
    make(&path, access)?;
    let only_it = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    let dir = File::options().read(true).custom_flags(only_it.bits()).open(&path)?;
    if close(&dir, 0o700, 0o050, access.group())? { close_files(&dir) } else { Ok(()) }
}

fn make(path: &Path, access: Access) -> io::Result<()> {
    let make = || DirBuilder::new().mode(0o700).create(path);
    let made = match (make(), path.parent()) {
        (Err(error), Some(parent)) if error.kind() == ErrorKind::NotFound && !parent.as_os_str().is_empty() => {
            create_dir(parent, access)?;
            make()
        }
        (made, _) => made,
    };
    made.or_else(|error| if error.kind() == ErrorKind::AlreadyExists { Ok(()) } else { Err(error) })
}

/// Opens a file for its owner alone, whether it is made or was there with another mode.
///
/// # Errors
/// Those of open(2) and chmod(2); [`ErrorKind::PermissionDenied`] if it is somebody else's.
pub fn open(path: &Path, options: &OpenOptions) -> io::Result<File> {
    open_for(path, options, Access::Owner)
}

/// Replaces the content of a file, which only these may read. Not atomic: readers may see half of it.
///
/// # Errors
/// Those of [`open`] and write(2).
pub fn write(path: &Path, content: impl AsRef<[u8]>, access: Access) -> io::Result<()> {
    let mut file = open_for(path, File::options().write(true).create(true).truncate(false), access)?;
    // Only now that it is known to be ours.
    file.set_len(0)?;
    file.write_all(content.as_ref())
}

fn open_for(path: &Path, options: &OpenOptions, access: Access) -> io::Result<File> {
    let file = options.clone().mode(0o600).custom_flags(OFlag::O_NOFOLLOW.bits()).open(follow(path)?)?;
    close(&file, 0o600, 0o040, access.group())?;
    Ok(file)
}

/// Listens on a unix socket that only these may use, in the place of whatever is at `path`: whether that may be replaced
/// is for the caller to know.
///
/// # Errors
/// Those of bind(2), chmod(2), chown(2) and rename(2).
pub fn listen(path: &Path, access: Access) -> io::Result<UnixListener> {
    // Made under a name that nobody knows, given its mode and group, and only then put in its place: it is never open
    // to more than it should be, and never refuses because nobody listens yet.
    let hidden = path.with_extension(format!("new-{}", std::process::id()));
    match std::fs::remove_file(&hidden) {
        // Left over from a process with the same id that died here.
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&hidden)?;
    std::fs::set_permissions(&hidden, Permissions::from_mode(0o600))?;
    if access == Access::Group {
        // Where there is no such group it stays root's own.
        chown(&hidden, None, access.group())?;
        std::fs::set_permissions(&hidden, Permissions::from_mode(0o660))?;
    }
    std::fs::rename(&hidden, path)?;
    Ok(listener)
}

/// Where our own links lead.
fn follow(path: &Path) -> io::Result<PathBuf> {
    // Without a slash at the end, which would have the kernel follow any link.
    let mut path: PathBuf = path.components().collect();
    for _ in 0..MAX_LINKS {
        match path.symlink_metadata() {
            Ok(found) if found.is_symlink() && found.uid() == geteuid().as_raw() => {
                path = path.parent().unwrap_or(Path::new("/")).join(path.read_link()?);
            }
            Ok(found) if found.is_symlink() => return Err(foreign(found.uid())),
            _ => return Ok(path),
        }
    }
    Err(io::Error::from(nix::errno::Errno::ELOOP))
}

/// Gives what is open the mode `own`, with the bits `shared` for the group if there is one. Says whether others could use
/// it until now.
fn close(file: &File, own: u32, shared: u32, group: Option<u32>) -> io::Result<bool> {
    let found = file.metadata()?;
    if found.uid() != geteuid().as_raw() {
        return Err(foreign(found.uid()));
    }
    let mode = found.mode() & 0o7777;
    let wanted = own | group.map_or(0, |_| shared);
    if mode == wanted && group.is_none_or(|group| group == found.gid()) {
        return Ok(false);
    }
    if group.is_some() {
        // Before the group is another one: it never has what the one before had.
        file.set_permissions(Permissions::from_mode(own))?;
        fchown(file, None, group)?;
    }
    file.set_permissions(Permissions::from_mode(wanted))?;
    Ok(mode & 0o077 & !wanted != 0)
}

/// Closes the files of a directory, which nobody else can change any more. That they cannot be reached through it is
/// not enough: they may have other names, or come to be moved.
fn close_files(dir: &File) -> io::Result<()> {
    let place = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    for entry in read_dir(&place)? {
        let entry = entry?;
        let found = entry.metadata()?;
        // With a second name it may be a trap that somebody laid while he could: a file that all must be able to read.
        if !found.is_file() || found.uid() != geteuid().as_raw() || found.nlink() > 1 {
            continue;
        }
        let only_it = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let file = File::options().read(true).custom_flags(only_it.bits()).open(place.join(entry.file_name()))?;
        close(&file, 0o600, 0, None)?;
    }
    Ok(())
}

fn foreign(owner: u32) -> io::Error {
    let us = geteuid();
    io::Error::new(ErrorKind::PermissionDenied, format!("it belongs to uid {owner}, not to uid {us}"))
}

#[cfg(test)]
mod tests;
