//! System calls that libc has no function for.

use std::ffi::{CStr, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `libc::CLONE_INTO_CGROUP` is truncated to 0; this is the kernel's value (linux/sched.h).
pub(super) const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

// linux/mount.h
const FSOPEN_CLOEXEC: u32 = 1;
const FSMOUNT_CLOEXEC: u32 = 1;
const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
pub(super) const MOVE_MOUNT_F_EMPTY_PATH: u32 = 4;

fn owned(result: i64) -> io::Result<OwnedFd> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the kernel has just made this descriptor for us.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd as c_int) }),
    }
}

/// A detached overlay mount with `volatile` (fsopen(2), Documentation/filesystems/overlayfs.rst).
pub(super) fn overlay(lower: &CStr, upper: &CStr, work: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: fsopen takes a string and flags.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, c"overlay".as_ptr(), FSOPEN_CLOEXEC) })?;
    let config = |command: u32, key: Option<&CStr>, value: Option<&CStr>| {
        let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: key and value are NUL-terminated strings or null, as the command wants them.
        match unsafe {
            libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, pointer(key), pointer(value), 0)
        } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    for (key, value) in [(c"source", c"overlay"), (c"lowerdir", lower), (c"upperdir", upper), (c"workdir", work)] {
        config(FSCONFIG_SET_STRING, Some(key), Some(value))?;
    }
    config(FSCONFIG_SET_FLAG, Some(c"volatile"), None)?;
    config(FSCONFIG_CMD_CREATE, None, None)?;
    // SAFETY: fsmount takes integers only.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, 0) })
}

/// clone3(2). Returns 0 in the child. `args.pidfd` must point to a live integer if the flag is set.
///
/// # Safety
/// As after fork(2): the caller must be single-threaded, or do nothing in the child that takes a lock.
pub(super) unsafe fn clone3(args: &mut libc::clone_args) -> io::Result<i32> {
    // SAFETY: the argument is a live clone_args of the size given; the rest is the caller's promise.
    match unsafe { libc::syscall(libc::SYS_clone3, args as *mut libc::clone_args, size_of::<libc::clone_args>()) } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(pid as i32),
    }
}

/// mkdirat(2) and the descriptors of what lies in it. Straight system calls without allocation.
pub(super) fn make_dir(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    // SAFETY: a descriptor and a string.
    match unsafe { libc::mkdirat(parent.as_raw_fd(), name.as_ptr(), 0o755) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

pub(super) fn open(parent: BorrowedFd<'_>, name: &CStr, flags: c_int) -> io::Result<OwnedFd> {
    // SAFETY: a descriptor and a string.
    owned(i64::from(unsafe { libc::openat(parent.as_raw_fd(), name.as_ptr(), flags | libc::O_CLOEXEC) }))
}

pub(super) fn put(parent: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> io::Result<()> {
    let file = open(parent, name, libc::O_WRONLY)?;
    // SAFETY: the pointer and length are those of `value`.
    match unsafe { libc::write(file.as_raw_fd(), value.as_ptr().cast::<c_void>(), value.len()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
