//! The maker's side of the parked program: its plan, the request for a cast, and becoming it.

use crate::{memfd, socket};
use fsb_park::cast::{FIXED_FDS, STEPS};
use fsb_park::{CTL_FD, END_FD, PLAN_FD, STARTED_FD};
pub use fsb_park::{READY, plan::Mode};
use nix::errno::Errno;
use nix::sys::socket::MsgFlags;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// What the parked program has to do by itself.
#[derive(Debug, Clone)]
pub struct Plan {
    pub mode: Mode,
    /// Capability sets as bit masks.
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub masked: Vec<String>,
    pub readonly: Vec<String>,
    /// An array of `struct sock_filter`.
    pub seccomp: Vec<u8>,
}

impl Plan {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = fsb_park::plan::MAGIC.to_le_bytes().to_vec();
        bytes.push(u8::from(self.mode == Mode::Mould));
        for set in [self.bounding, self.effective, self.permitted, self.inheritable] {
            bytes.extend(set.to_le_bytes());
        }
        for id in [self.uid, self.gid, self.groups.len() as u32].iter().chain(&self.groups) {
            bytes.extend(id.to_le_bytes());
        }
        for paths in [&self.masked, &self.readonly] {
            bytes.extend((paths.len() as u32).to_le_bytes());
            for path in paths {
                bytes.extend(path.as_bytes());
                bytes.push(0);
            }
        }
        bytes.extend((self.seccomp.len() as u32).to_le_bytes());
        bytes.extend(&self.seccomp);
        bytes
    }

    /// The plan as the sealed file that the parked program reads.
    pub fn to_memfd(&self) -> io::Result<OwnedFd> {
        let bytes = self.to_bytes();
        if fsb_park::plan::Plan::read(&bytes).is_none() || bytes.len() >= fsb_park::plan::MOST {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many groups or paths for a plan"));
        }
        memfd::sealed(c"fsb-plan", &[&bytes], false)
    }
}

/// Replaces this process by the parked program: `program` and `plan` are sealed files, `started` is absent for a mould.
/// Everything but standard streams and what is passed here is closed. Allocates nothing, so it may be called after a
/// raw clone. Returns only if that failed.
pub fn become_parked(
    program: BorrowedFd<'_>,
    ctl: BorrowedFd<'_>,
    plan: BorrowedFd<'_>,
    started: Option<BorrowedFd<'_>>,
) -> Errno {
    let kept = [(Some(ctl), CTL_FD), (started, STARTED_FD), (Some(plan), PLAN_FD)];
    // SAFETY: integers, constant NUL-terminated strings, and arrays that end with a null pointer. The descriptors that
    // are closed belong to a process image that ends here.
    unsafe {
        // Out of the way first: one of them may lie where another goes.
        let mut moved = [-1; 3];
        for (slot, (fd, _)) in moved.iter_mut().zip(&kept) {
            if let Some(fd) = fd {
                *slot = libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD, END_FD as i32 + 1);
            }
        }
        let program = libc::fcntl(program.as_raw_fd(), libc::F_DUPFD_CLOEXEC, END_FD as i32 + 1);
        for (fd, (_, place)) in moved.iter().zip(&kept) {
            if *fd >= 0 && libc::dup3(*fd, *place, 0) < 0 {
                return Errno::last();
            }
        }
        libc::syscall(libc::SYS_close_range, 3u32, CTL_FD as u32 - 1, libc::CLOSE_RANGE_CLOEXEC);
        libc::syscall(libc::SYS_close_range, END_FD, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        let argv = [c"fsb-park".as_ptr(), std::ptr::null()];
        let env = [std::ptr::null::<libc::c_char>()];
        libc::syscall(libc::SYS_execveat, program, c"".as_ptr(), argv.as_ptr(), env.as_ptr(), libc::AT_EMPTY_PATH);
    }
    Errno::last()
}

/// What a mould needs to cast one container.
pub struct Cast<'a> {
    pub host: &'a str,
    /// The root file system, a detached mount.
    pub root: BorrowedFd<'a>,
    pub ctl: BorrowedFd<'a>,
    pub stdout: BorrowedFd<'a>,
    pub stderr: BorrowedFd<'a>,
    pub started: BorrowedFd<'a>,
    /// Detached mounts and the absolute paths that they go to; the places exist in the root file system.
    pub plugins: &'a [(OwnedFd, String)],
    /// `cgroup.procs` files of v1, or the one directory of v2.
    pub cgroups: &'a [OwnedFd],
    pub v2: bool,
}

/// Asks the mould behind `mould` for a cast and takes its answer. The container is ready when it says so on its control
/// socket ([`ready`]).
pub fn cast(mould: BorrowedFd<'_>, request: &Cast<'_>) -> io::Result<(i32, OwnedFd)> {
    let mut bytes = fsb_park::cast::MAGIC.to_le_bytes().to_vec();
    bytes.extend([u8::from(request.v2), request.cgroups.len() as u8, request.plugins.len() as u8]);
    for text in std::iter::once(request.host).chain(request.plugins.iter().map(|plugin| plugin.1.as_str())) {
        bytes.extend(text.as_bytes());
        bytes.push(0);
    }
    let fixed = [request.root, request.ctl, request.stdout, request.stderr, request.started];
    debug_assert_eq!(fixed.len(), FIXED_FDS);
    let fds: Vec<i32> = fixed
        .into_iter()
        .chain(request.plugins.iter().map(|plugin| plugin.0.as_fd()))
        .chain(request.cgroups.iter().map(AsFd::as_fd))
        .map(|fd| fd.as_raw_fd())
        .collect();
    if bytes.len() > fsb_park::cast::MOST || fds.len() > fsb_park::cast::FDS {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many plugins for a cast"));
    }
    socket::send(mould, &bytes, &fds, MsgFlags::empty())?;
    let mut answer = [0; 4];
    let (n, mut fds) = socket::recv(mould, &mut answer, MsgFlags::empty())?;
    let pid = i32::from_le_bytes(answer);
    match (n, fds.pop()) {
        (4, Some(pidfd)) if pid > 0 => Ok((pid, pidfd)),
        (4, None) if pid < 0 => Err(io::Error::from_raw_os_error(-pid)),
        _ => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the mould is gone")),
    }
}

/// Waits until the container behind `ctl` is parked, at most for `patience_ms`. The error names the step that failed.
pub fn ready(ctl: BorrowedFd<'_>, patience_ms: u16) -> io::Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(ctl, PollFlags::POLLIN)];
    if poll(&mut fds, PollTimeout::from(patience_ms))? == 0 {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "not parked in time"));
    }
    let mut message = [0; 8];
    let (n, _) = socket::recv(ctl, &mut message, MsgFlags::empty())?;
    match n {
        n if &message[..n] == READY => Ok(()),
        8 => {
            let number =
                |at: usize| u32::from_le_bytes([message[at], message[at + 1], message[at + 2], message[at + 3]]);
            let step = STEPS.get(number(0) as usize).unwrap_or(&"an unknown step");
            let cause = io::Error::from_raw_os_error(number(4) as i32);
            Err(io::Error::new(cause.kind(), format!("{step}: {cause}")))
        }
        _ => Err(io::Error::new(io::ErrorKind::BrokenPipe, "it ended before it was parked")),
    }
}
