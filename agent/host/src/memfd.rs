//! Files without a name, sealed so that nobody can change them under a reader (memfd_create(2)).

use nix::errno::Errno;
use std::ffi::CStr;
use std::io::{self, Write};
use std::os::fd::{FromRawFd, OwnedFd};

/// `MFD_EXEC`, since Linux 6.3: says that the file may be executed. Older kernels refuse the flag and need none.
const MFD_EXEC: libc::c_uint = 0x10;
/// `MFD_NOEXEC_SEAL`, since Linux 6.3.
const MFD_NOEXEC_SEAL: libc::c_uint = 0x8;

/// A sealed file with this content, close-on-exec.
pub fn sealed(name: &CStr, content: &[&[u8]], executable: bool) -> io::Result<OwnedFd> {
    let base = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let create = |flags| {
        // SAFETY: a NUL-terminated name; returns a new descriptor or -1.
        Errno::result(unsafe { libc::memfd_create(name.as_ptr(), flags) })
    };
    let fd = match create(base | if executable { MFD_EXEC } else { MFD_NOEXEC_SEAL }) {
        Err(Errno::EINVAL) => create(base),
        other => other,
    }?;
    // SAFETY: just made, owned by nobody else.
    let mut file = unsafe { std::fs::File::from_raw_fd(fd) };
    for part in content {
        file.write_all(part)?;
    }
    let seals = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
    // SAFETY: no memory involved.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) })?;
    Ok(file.into())
}
