//! Parked: wait for the hand-off, then become the user's program.

use crate::sys;
use core::ffi::{CStr, c_char};
use core::ptr::null;
use fsb_park::handoff::{HEADER, Header, INLINE, LOOKS, Stage, Strings, roused_from};
use fsb_park::{CTL_FD, STARTED_EXEC, STARTED_FAILED, STARTED_FD};

/// Pointers that fit without asking the kernel for memory.
const POINTERS: usize = 512;

/// Waits for the hand-off. Ends quietly when nobody can send one any more.
pub(crate) fn park() -> ! {
    let mut buffer = [0u8; HEADER + INLINE];
    let mut fds = [-1; 1];
    let (n, count) = receive(&mut buffer, &mut fds);
    let Some(header) = Header::read(&buffer[..n]) else { refuse(Stage::Protocol) };
    let body = match count {
        0 => &buffer[HEADER..n],
        _ => match map(fds[0], header.bytes) {
            Some(body) => body,
            None => refuse(Stage::Protocol),
        },
    };
    let Some(strings) = Strings::read(header, body) else { refuse(Stage::Protocol) };
    let mut small = [null::<c_char>(); POINTERS];
    let need = header.argc + header.envc + 2;
    let pointers = if need <= POINTERS {
        &mut small[..]
    } else {
        match allocate(need) {
            Some(pointers) => pointers,
            None => refuse(Stage::Protocol),
        }
    };
    let (args, envs) = pointers.split_at_mut(header.argc + 1);
    for (slot, arg) in args.iter_mut().zip(strings.args()) {
        *slot = arg.as_ptr();
    }
    for (slot, env) in envs.iter_mut().zip(strings.envs()) {
        *slot = env.as_ptr();
    }
    // SAFETY: a NUL-terminated string.
    if unsafe { libc::chdir(strings.cwd.as_ptr()) } != 0 {
        refuse(Stage::Chdir)
    }
    sys::close(fds[0]);
    // SAFETY: one static byte. The reader is the keeper, which keeps the pipe empty.
    unsafe { libc::write(STARTED_FD, [STARTED_EXEC].as_ptr().cast(), 1) };
    let Some(program) = strings.args().next() else { refuse(Stage::Protocol) };
    sys::usual_slice();
    execute(program, strings.envs(), args.as_ptr(), envs.as_ptr());
    refuse(Stage::Exec)
}

/// The hand-off's message: its bytes and descriptors.
fn receive(buffer: &mut [u8], fds: &mut [i32]) -> (usize, usize) {
    let mut looks = 0;
    loop {
        let received = match looks {
            0 => sys::recv(CTL_FD, buffer, fds),
            _ => sys::try_recv(CTL_FD, buffer, fds),
        };
        match received {
            Some((0, 0)) => sys::exit(0),
            Some((n, count)) => match roused_from(&buffer[..n]) {
                Some(agent) => looks = if agent == sys::cpu() { 0 } else { LOOKS },
                None => return (n, count),
            },
            None if looks > 0 && sys::errno() == libc::EAGAIN => looks -= 1,
            None => refuse(Stage::Protocol),
        }
    }
}

/// execve, with a search along the PATH of the new environment for a name without a slash, as execvp(3) does. Returns
/// with errno set: what went wrong with a file that is there beats that others are not.
fn execute<'a>(
    program: &CStr,
    envs: impl Iterator<Item = &'a CStr>,
    args: *const *const c_char,
    env: *const *const c_char,
) {
    let name = program.to_bytes();
    // SAFETY: NUL-terminated strings in null-terminated arrays that live until the call returns.
    let exec = |path: &CStr| unsafe { libc::execve(path.as_ptr(), args, env) };
    if name.contains(&b'/') || name.is_empty() {
        exec(program);
        return;
    }
    let path = envs.filter_map(|entry| entry.to_bytes().strip_prefix(b"PATH=")).last().unwrap_or(b"/bin:/usr/bin");
    let mut best = libc::ENOENT;
    let mut candidate = [0u8; libc::PATH_MAX as usize];
    for dir in path.split(|byte| *byte == b':') {
        // An empty entry is the working directory (execvp(3)); a relative one is too, in the end.
        let dir = if dir.is_empty() { &b"."[..] } else { dir };
        let length = dir.len() + 1 + name.len();
        if length >= candidate.len() {
            continue;
        }
        candidate[..dir.len()].copy_from_slice(dir);
        candidate[dir.len()] = b'/';
        candidate[dir.len() + 1..length].copy_from_slice(name);
        candidate[length] = 0;
        if let Ok(path) = CStr::from_bytes_until_nul(&candidate) {
            exec(path);
        }
        match sys::errno() {
            libc::ENOENT | libc::ENOTDIR => {}
            libc::EACCES => best = libc::EACCES,
            other => {
                best = other;
                break;
            }
        }
    }
    // SAFETY: this thread's errno.
    unsafe { *libc::__errno_location() = best };
}

/// Says what failed, to the agent and to the keeper, and ends.
fn refuse(stage: Stage) -> ! {
    let errno = sys::errno() as u32;
    // SAFETY: one static byte.
    unsafe { libc::write(STARTED_FD, [STARTED_FAILED].as_ptr().cast(), 1) };
    let mut message = [0; 8];
    message[..4].copy_from_slice(&stage.code().to_le_bytes());
    message[4..].copy_from_slice(&errno.to_le_bytes());
    sys::send(CTL_FD, &message);
    sys::exit(127)
}

fn map(fd: i32, bytes: usize) -> Option<&'static [u8]> {
    // SAFETY: a new private mapping that is never unmapped; the memfd is sealed, so it cannot shrink under it.
    unsafe {
        let mut stat: libc::stat = core::mem::zeroed();
        if libc::fstat(fd, &mut stat) != 0 || (stat.st_size as usize) < bytes {
            return None;
        }
        let p = libc::mmap(core::ptr::null_mut(), bytes, libc::PROT_READ, libc::MAP_PRIVATE, fd, 0);
        (p != libc::MAP_FAILED).then(|| core::slice::from_raw_parts(p.cast::<u8>(), bytes))
    }
}

fn allocate(pointers: usize) -> Option<&'static mut [*const c_char]> {
    let bytes = pointers * size_of::<*const c_char>();
    // SAFETY: new zeroed memory (null pointers) of that size, never unmapped.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let p = libc::mmap(core::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        (p != libc::MAP_FAILED).then(|| core::slice::from_raw_parts_mut(p.cast(), pointers))
    }
}
