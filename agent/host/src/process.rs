//! Starting daemons and reaping children.

use crate::{pidfd, wire};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

/// How a process ended: one of the two is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// What it passed to exit(2).
    pub code: Option<i32>,
    /// The signal that ended it; any number, real-time ones included.
    pub signal: Option<i32>,
}

/// Starts a daemon that finds `socket` as descriptor [`wire::KEEPER_FD`], inherits nothing else but stdin, stdout and
/// stderr, has no signal blocked, and is killed when the calling thread ends. The caller reaps it.
pub fn spawn(command: &mut Command, socket: BorrowedFd<'_>) -> io::Result<(i32, OwnedFd)> {
    // Holds the number 3 if it is free, so that the pipe on which std learns of a failed exec does not get it.
    let _third = std::fs::File::open("/dev/null")?;
    let source = nix::fcntl::fcntl(socket.as_raw_fd(), nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(10))?;
    // SAFETY: the kernel has just made it for us.
    let source = unsafe { OwnedFd::from_raw_fd(source) };
    let (raw, parent) = (source.as_raw_fd(), nix::unistd::getpid().as_raw());
    // SAFETY: only async-signal-safe calls between fork and exec, nothing is allocated.
    unsafe { command.pre_exec(move || become_daemon(raw, parent)) };
    let child = command.spawn()?;
    let pid = child.id() as i32;
    Ok((pid, pidfd::open(pid)?))
}

fn become_daemon(socket: RawFd, parent: i32) -> io::Result<()> {
    // SAFETY: system calls on integers and a local signal set.
    unsafe {
        Errno::result(libc::dup2(socket, wire::KEEPER_FD))?;
        Errno::result(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        if libc::getppid() != parent {
            // It died before the line above.
            libc::_exit(1);
        }
        let first = wire::KEEPER_FD as u32 + 1;
        // Marks instead of closing: std reports a failed exec over a pipe. Kernels before 5.11 refuse; all of our own
        // descriptors are close-on-exec anyway.
        libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        Errno::result(libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()))?;
    }
    Ok(())
}

/// Takes the socket to the keeper, descriptor [`wire::KEEPER_FD`], and makes it close-on-exec. Once per process.
pub fn keeper_socket() -> io::Result<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(io::Error::other("the keeper's socket was taken before"));
    }
    let flags = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC);
    nix::fcntl::fcntl(wire::KEEPER_FD, flags).map_err(|error| {
        io::Error::other(format!("descriptor {} is not open ({error}); hint: fsb-keeper starts me", wire::KEEPER_FD))
    })?;
    // SAFETY: it is open, it was left to us by whoever exec'd us, and nobody took it before.
    Ok(unsafe { OwnedFd::from_raw_fd(wire::KEEPER_FD) })
}

/// What has become of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Child {
    /// It has ended and is not reaped yet. It stays so until [`reap`].
    Ended(i32),
    /// It, or a thread of it, has made us its tracer (PTRACE_TRACEME) and waits for us, with this signal, until
    /// [`untrace`].
    Stopped {
        /// The process's number or that of its thread.
        tid: i32,
        /// What it got, or was made up by the kernel to tell of an event.
        signal: i32,
    },
}

/// A child of any kind that has ended, or waits for us as its tracer. The kernel tells of the stops of a tracee whatever
/// it was asked for: WEXITED alone does not keep them out (`wait_task_stopped` in kernel/exit.c looks at `ptrace` first).
pub fn child() -> nix::Result<Option<Child>> {
    loop {
        // SAFETY: zeroed is a valid siginfo, which waitid fills in.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
        // SAFETY: a local structure.
        match Errno::result(unsafe { libc::waitid(libc::P_ALL, 0, &mut info, flags) }) {
            Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => return Ok(None),
            Err(error) => return Err(error),
            Ok(_) => {
                // SAFETY: waitid has filled in the fields of SIGCHLD, or left them zero.
                let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
                return Ok(match info.si_code {
                    _ if pid == 0 => None,
                    libc::CLD_EXITED | libc::CLD_KILLED | libc::CLD_DUMPED => Some(Child::Ended(pid)),
                    // Above the signal's number: a bit for system calls, and what happened.
                    _ => Some(Child::Stopped { tid: pid, signal: status & 0x7f }),
                });
            }
        }
    }
}

/// Lets a tracee of the calling thread go on as if it had no tracer, with the signal that it has got.
///
/// # Errors
/// `ESRCH` if it does not wait for this thread, or not any more.
pub fn untrace(tid: i32, signal: i32) -> nix::Result<()> {
    // SAFETY: no address is passed; the last argument is a number.
    let done = unsafe { libc::ptrace(libc::PTRACE_DETACH, tid, 0, libc::c_long::from(signal)) };
    Errno::result(done).map(|_| ())
}

/// Reaps the ended child `pid`. `ECHILD` if there is none.
pub fn reap(pid: i32) -> nix::Result<Exit> {
    loop {
        let mut status = 0;
        // SAFETY: a local integer.
        match Errno::result(unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG | libc::__WALL) }) {
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
            Ok(0) => return Err(Errno::ECHILD),
            Ok(_) if libc::WIFSTOPPED(status) => return Err(Errno::ECHILD),
            Ok(_) => {
                let code = libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
                let signal = libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status));
                return Ok(Exit { code, signal });
            }
        }
    }
}

/// Whether the process is a child of ours that nobody has reaped.
pub fn is_child(pidfd: impl AsFd) -> bool {
    // SAFETY: zeroed is a valid siginfo.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    // SAFETY: a local structure.
    unsafe { libc::waitid(libc::P_PIDFD, pidfd.as_fd().as_raw_fd() as u32, &mut info, flags) == 0 }
}

/// Process ids of our children, zombies included. The kernel may leave some out while others end (proc(5)): who
/// needs all of them asks until nothing changes.
pub fn children() -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    for task in std::fs::read_dir("/proc/self/task")? {
        let text = match std::fs::read_to_string(task?.path().join("children")) {
            // A thread that has ended meanwhile, a worker of the kernel's for io_uring among them.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => continue,
            text => text?,
        };
        pids.extend(text.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    Ok(pids)
}

/// Raises the soft limit of open files to the hard one. Returns it.
pub fn raise_open_files() -> nix::Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

/// How many bytes lie in a pipe (FIONREAD, pipe(7)).
pub fn pipe_bytes(pipe: impl AsRawFd) -> nix::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    Errno::result(unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &mut bytes) })?;
    Ok(bytes as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_has_its_socket_as_descriptor_3_and_no_other() {
        let (ours, theirs) = crate::socket::pair().unwrap();
        let inherited = std::fs::File::open("/dev/null").unwrap();
        let flags = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty());
        nix::fcntl::fcntl(inherited.as_raw_fd(), flags).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "ls /proc/$$/fd >&3"]);
        let (pid, pidfd) = spawn(&mut command, theirs.as_fd()).unwrap();
        drop(theirs);
        let mut buffer = [0; 256];
        let (n, _) = crate::socket::recv(&ours, &mut buffer, nix::sys::socket::MsgFlags::empty()).unwrap();
        let mut open: Vec<&str> = std::str::from_utf8(&buffer[..n]).unwrap().split_whitespace().collect();
        open.retain(|fd| fd.parse::<u32>().is_ok_and(|fd| fd < 10));
        assert_eq!(open, ["0", "1", "2", "3"]);
        while !pidfd::ended(pidfd.as_fd()) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(is_child(&pidfd));
        assert_eq!(reap(pid).unwrap(), Exit { code: Some(0), signal: None });
        assert!(!is_child(&pidfd));
        assert_eq!(reap(pid), Err(Errno::ECHILD));
    }

    #[test]
    fn children_are_listed_while_threads_come_and_go() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let over = std::sync::Arc::new(AtomicBool::new(false));
        let churn = {
            let over = over.clone();
            std::thread::spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    let threads: Vec<_> = (0..8).map(|_| std::thread::spawn(|| ())).collect();
                    threads.into_iter().for_each(|thread| thread.join().unwrap());
                }
            })
        };
        let listed: Vec<_> = (0..2000).map(|_| children()).collect();
        over.store(true, Ordering::SeqCst);
        churn.join().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        for pids in listed {
            assert!(pids.unwrap().contains(&(child.id() as i32)));
        }
    }

    #[test]
    fn the_bytes_in_a_pipe_are_counted() {
        let (read, write) = nix::unistd::pipe().unwrap();
        assert_eq!(pipe_bytes(read.as_raw_fd()), Ok(0));
        nix::unistd::write(&write, b"four").unwrap();
        assert_eq!(pipe_bytes(read.as_raw_fd()), Ok(4));
    }
}
