//! Opening below a directory without ever leaving it (openat2(2), Linux 5.6), and extended attributes by descriptor.

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::Mode;
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// Opens `path` relative to `dir`, close-on-exec. `mode` counts only with `O_CREAT` (the kernel refuses it otherwise).
/// What `resolve` forbids is `ELOOP` (a symlink) or `EXDEV` (leaving `dir`).
pub fn openat2(dir: impl AsFd, path: &Path, flags: OFlag, mode: Mode, resolve: ResolveFlag) -> nix::Result<OwnedFd> {
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).mode(mode).resolve(resolve);
    loop {
        match nix::fcntl::openat2(dir.as_fd().as_raw_fd(), path, how) {
            // EAGAIN: a rename elsewhere raced with the kernel's check that `..` stays below (openat2(2)).
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(error) => return Err(error),
            // SAFETY: the kernel has just made it for us.
            Ok(fd) => return Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        }
    }
}

/// Sets an extended attribute (fsetxattr(2)). The descriptor must not be an `O_PATH` one.
pub fn set_xattr(file: impl AsFd, name: &CStr, value: &[u8]) -> nix::Result<()> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: name is NUL-terminated, value is readable for its length, both outlive the call.
    Errno::result(unsafe { libc::fsetxattr(fd, name.as_ptr(), value.as_ptr().cast(), value.len(), 0) })?;
    Ok(())
}

/// Reads an extended attribute of at most 4096 bytes (fgetxattr(2)); `None` = it has none of that name. The
/// descriptor must not be an `O_PATH` one.
pub fn xattr(file: impl AsFd, name: &CStr) -> nix::Result<Option<Vec<u8>>> {
    let mut value = vec![0u8; 4096];
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: name is NUL-terminated, value is writable for its length, both outlive the call.
    match Errno::result(unsafe { libc::fgetxattr(fd, name.as_ptr(), value.as_mut_ptr().cast(), value.len()) }) {
        Ok(length) => {
            value.truncate(length as usize);
            Ok(Some(value))
        }
        Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_leaves_the_directory_is_refused() {
        let dir = std::fs::File::open("/proc/self").unwrap();
        let open =
            |path: &str| openat2(&dir, Path::new(path), OFlag::O_RDONLY, Mode::empty(), ResolveFlag::RESOLVE_BENEATH);
        assert!(open("status").is_ok());
        assert_eq!(open("../self/status").unwrap_err(), Errno::EXDEV);
        assert_eq!(open("/etc/passwd").unwrap_err(), Errno::EXDEV);
    }
}
