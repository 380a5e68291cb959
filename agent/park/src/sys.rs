//! System calls of the parked program, each wrapped where it is used by more than one step.

use core::ffi::CStr;
use core::mem::zeroed;

/// struct clone_args (clone(2)).
#[repr(C)]
#[derive(Default)]
pub(crate) struct CloneArgs {
    pub(crate) flags: u64,
    pub(crate) pidfd: u64,
    pub(crate) child_tid: u64,
    pub(crate) parent_tid: u64,
    pub(crate) exit_signal: u64,
    pub(crate) stack: u64,
    pub(crate) stack_size: u64,
    pub(crate) tls: u64,
    pub(crate) set_tid: u64,
    pub(crate) set_tid_size: u64,
    pub(crate) cgroup: u64,
}

/// `libc::CLONE_INTO_CGROUP` is truncated to 0; this is the kernel's value.
pub(crate) const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

pub(crate) fn errno() -> i32 {
    // SAFETY: points to this thread's errno.
    unsafe { *libc::__errno_location() }
}

pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: does not return.
    unsafe { libc::_exit(code) }
}

pub(crate) fn close(fd: i32) {
    // SAFETY: no memory involved.
    unsafe { libc::close(fd) };
}

pub(crate) fn set_cloexec(fd: i32) {
    // SAFETY: no memory involved.
    unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
}

/// Reads to the end of a file that begins at offset 0. `None` if it does not fit or cannot be read.
pub(crate) fn read_all(fd: i32, buffer: &mut [u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let rest = &mut buffer[at..];
        if rest.is_empty() {
            return None;
        }
        // SAFETY: the pointer and length are those of `rest`.
        let n = unsafe { libc::pread(fd, rest.as_mut_ptr().cast(), rest.len(), at as i64) };
        match n {
            0 => return Some(at),
            n if n > 0 => at += n as usize,
            _ if errno() == libc::EINTR => {}
            _ => return None,
        }
    }
}

/// The processor that this runs on; what never is one if the kernel does not say.
pub(crate) fn cpu() -> u32 {
    // SAFETY: no memory involved.
    unsafe { libc::sched_getcpu() as u32 }
}

pub(crate) fn send(socket: i32, bytes: &[u8]) {
    // SAFETY: the pointer and length are those of `bytes`.
    unsafe { libc::send(socket, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
}

/// Tells the maker which step failed and ends.
pub(crate) fn fail(socket: i32, step: u32) -> ! {
    let errno = errno() as u32;
    let mut message = [0; 8];
    message[..4].copy_from_slice(&step.to_le_bytes());
    message[4..].copy_from_slice(&errno.to_le_bytes());
    send(socket, &message);
    exit(126)
}

/// Receives one message and up to `fds.len()` descriptors. Returns bytes (0 at end-of-file) and descriptors; `None`
/// on an error.
pub(crate) fn recv(socket: i32, buffer: &mut [u8], fds: &mut [i32]) -> Option<(usize, usize)> {
    recv_with(socket, buffer, fds, 0)
}

/// [`recv`] without waiting: `None` with errno EAGAIN if there is no message.
pub(crate) fn try_recv(socket: i32, buffer: &mut [u8], fds: &mut [i32]) -> Option<(usize, usize)> {
    recv_with(socket, buffer, fds, libc::MSG_DONTWAIT)
}

fn recv_with(socket: i32, buffer: &mut [u8], fds: &mut [i32], flags: i32) -> Option<(usize, usize)> {
    // Room for 32 descriptors with its header, aligned as cmsg(3) wants it.
    let mut control = [0u64; 24];
    let mut io = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: msghdr is plain data.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &mut io;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    let n = loop {
        // SAFETY: message points to live buffers of the lengths given.
        let n = unsafe { libc::recvmsg(socket, &mut message, libc::MSG_CMSG_CLOEXEC | flags) };
        if n >= 0 || errno() != libc::EINTR {
            break n;
        }
    };
    if n < 0 || message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return None;
    }
    let mut count = 0;
    // SAFETY: the kernel has written a well-formed control message within msg_controllen.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&message);
        if !header.is_null() && (*header).cmsg_type == libc::SCM_RIGHTS {
            let bytes = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
            let data = libc::CMSG_DATA(header).cast::<i32>();
            for i in 0..bytes / 4 {
                let fd = data.add(i).read_unaligned();
                match fds.get_mut(i) {
                    Some(slot) => *slot = fd,
                    None => close(fd),
                }
                count += 1;
            }
        }
    }
    (count <= fds.len()).then_some((n as usize, count))
}

/// Default dispositions and an empty mask: Rust programs ignore SIGPIPE, and a child would inherit that.
pub(crate) fn reset_signals() {
    // SAFETY: only sets dispositions and the mask of this process.
    unsafe {
        for signal in 1..65 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, core::ptr::null_mut());
        libc::umask(0o022);
    }
}

/// From the short slice that carried the start along to the one that everybody has, with the usual policy and nice value:
/// what the program sets itself stays (sched_setattr(2)).
pub(crate) fn usual_slice() {
    // struct sched_attr in its first form: its size, and zero for SCHED_OTHER, nice 0 and the kernel's own slice.
    let attributes = [48u64, 0, 0, 0, 0, 0];
    // SAFETY: the kernel reads as many bytes as the first field says.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, attributes.as_ptr(), 0) };
}

pub(crate) fn no_new_privs() -> bool {
    // SAFETY: no memory involved.
    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 }
}

/// Loads a filter; an empty one is none.
pub(crate) fn load_seccomp(filter: &[u8]) -> bool {
    if filter.is_empty() {
        return true;
    }
    #[repr(C)]
    struct Program {
        len: u16,
        filter: *const u8,
    }
    let program = Program { len: (filter.len() / 8) as u16, filter: filter.as_ptr() };
    // SAFETY: the kernel copies `len` instructions of 8 bytes each from the slice.
    unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &program) == 0 }
}

/// mount(2); `None` passes a null pointer.
pub(crate) fn mount(
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: u64,
    data: Option<&CStr>,
) -> bool {
    let pointer = |text: Option<&CStr>| text.map_or(core::ptr::null(), CStr::as_ptr);
    // SAFETY: NUL-terminated strings or null.
    unsafe { libc::mount(pointer(source), target.as_ptr(), pointer(kind), flags as _, pointer(data).cast()) == 0 }
}

/// Opens a path below `dir` without following any link (openat2(2): BENEATH | NO_SYMLINKS | NO_MAGICLINKS).
pub(crate) fn open_beneath(dir: i32, path: &CStr, flags: i32) -> i32 {
    let how: [u64; 3] = [(flags | libc::O_CLOEXEC) as u64, 0, 0x02 | 0x04 | 0x08];
    // SAFETY: struct open_how is three u64.
    unsafe { libc::syscall(libc::SYS_openat2, dir, path.as_ptr(), how.as_ptr(), 24usize) as i32 }
}
