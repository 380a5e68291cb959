//! Process descriptors: a handle to a process that cannot be reused by another (pidfd_open(2)).

use nix::errno::Errno;
use nix::sys::signal::Signal;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Opens the process `pid`. It becomes readable when the process has ended.
pub fn open(pid: i32) -> nix::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sends a signal. `ESRCH` if the process has ended and was reaped.
pub fn kill(pidfd: impl AsFd, signal: Signal) -> nix::Result<()> {
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: no siginfo is passed; the kernel fills it in as kill(2) would.
    Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal as i32, std::ptr::null::<u8>(), 0) })?;
    Ok(())
}

/// Whether the process has ended (also: a zombie).
pub fn ended(pidfd: BorrowedFd<'_>) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(pidfd, PollFlags::POLLIN)];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(n) if n > 0)
}

/// Opens `file` of the process behind `pidfd`, whose id is `pid`, in /proc. A number may be another process's by now:
/// that it was still this one's is certain only if this one lives after the open. `ESRCH` if it does not.
pub fn open_proc(pidfd: BorrowedFd<'_>, pid: i32, file: &str, options: &OpenOptions) -> io::Result<File> {
    let opened = options.open(format!("/proc/{pid}/{file}"));
    if ended(pidfd) { Err(Errno::ESRCH.into()) } else { opened }
}

/// Whether the process behind `pidfd`, whose id is `pid`, runs a program. One that is on its way out does not: it lets
/// go of its memory, and of the program with it, before it closes its descriptors and before its pidfd says that it has
/// ended (do_exit in the kernel's exit.c). Needs CAP_SYS_PTRACE for another user's process.
pub fn runs(pidfd: BorrowedFd<'_>, pid: i32) -> bool {
    std::fs::read_link(format!("/proc/{pid}/exe")).is_ok() && !ended(pidfd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_child_has_ended() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let fd = open(child.id() as i32).unwrap();
        assert!(!ended(fd.as_fd()) && runs(fd.as_fd(), child.id() as i32));
        kill(&fd, Signal::SIGKILL).unwrap();
        while !ended(fd.as_fd()) {}
        assert!(!runs(fd.as_fd(), child.id() as i32), "a zombie runs nothing");
        child.wait().unwrap();
        assert!(ended(fd.as_fd()));
        assert_eq!(kill(&fd, Signal::SIGKILL), Err(Errno::ESRCH));
    }
}
