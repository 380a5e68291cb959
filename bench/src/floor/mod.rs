//! Floors: the least that starting a program can cost on this kernel, written by hand.
//!
//! Apart from the kernel's own interface they share nothing with the product but its seccomp filter, so that a
//! slower product cannot hide behind a slower floor.
//!
//! **Unsafe code.** fork, posix_spawn, clone3 and the mount interface have no safe form, and a floor that went
//! through the product's wrappers would not be one. This module is therefore exempt from the rule that only the host
//! crates have `unsafe`; each block says why it is sound.

pub mod cold;
pub mod process;
mod profile;
mod sys;

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Takes a descriptor over that this process was started with. It must be open, and this is to be called once for it.
pub fn inherited(fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: fcntl with integers.
    match unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: it is open, as fcntl has just shown, and by the caller's promise nobody else's.
        _ => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}
