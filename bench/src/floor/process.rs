//! fork+exec and posix_spawn.

use crate::clock;
use std::ffi::{CStr, CString, c_char};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// A program that was started, and the read end of its standard output.
#[derive(Debug)]
pub struct Child {
    pub pid: i32,
    pub stdout: OwnedFd,
    /// When the call was made, in nanoseconds of the monotonic clock.
    pub called_ns: u64,
}

impl Child {
    /// Waits for its end and returns the wait status.
    pub fn wait(&self) -> io::Result<i32> {
        let mut status = 0;
        loop {
            // SAFETY: the status is a live integer.
            match unsafe { libc::waitpid(self.pid, &mut status, 0) } {
                -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                -1 => return Err(io::Error::last_os_error()),
                _ => return Ok(status),
            }
        }
    }
}

/// The arguments of a program as execve(2) takes them.
#[derive(Debug)]
pub struct Program {
    strings: Vec<CString>,
    pointers: Vec<*const c_char>,
    environment: [*const c_char; 2],
}

const PATH: &CStr = c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Program {
    /// `words[0]` is the program's absolute path. A word with a NUL byte is an error.
    pub fn new<T: Into<Vec<u8>>>(words: impl IntoIterator<Item = T>) -> io::Result<Self> {
        let strings = words.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>()?;
        let pointers = strings.iter().map(|word| word.as_ptr()).chain([std::ptr::null()]).collect();
        Ok(Self { strings, pointers, environment: [PATH.as_ptr(), std::ptr::null()] })
    }

    pub(super) fn path(&self) -> &CStr {
        &self.strings[0]
    }

    pub(super) fn argv(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }

    pub(super) fn envp(&self) -> *const *const c_char {
        self.environment.as_ptr()
    }
}

// SAFETY: nobody writes to what the pointers point to, which lives as long as the value; see `argv`.
unsafe impl Sync for Program {}

/// fork(2) and execve(2). The pipe is made before the clock runs.
pub fn fork(program: &Program) -> io::Result<Child> {
    let (stdout, write) = pipe()?;
    let called_ns = clock::now_ns();
    // SAFETY: the child makes three system calls and nothing else; all memory that they read was made before.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: as above; the pointers belong to `program`, which the child has a copy of.
            unsafe {
                libc::dup2(write.as_raw_fd(), 1);
                libc::execve(program.path().as_ptr(), program.argv(), program.envp());
                libc::_exit(127)
            }
        }
        pid => Ok(Child { pid, stdout, called_ns }),
    }
}

/// posix_spawn(3). The pipe is made before the clock runs.
pub fn spawn(program: &Program) -> io::Result<Child> {
    let (stdout, write) = pipe()?;
    // SAFETY: plain data that posix_spawn_file_actions_init fills.
    let mut actions: libc::posix_spawn_file_actions_t = unsafe { std::mem::zeroed() };
    // SAFETY: initialised before use, destroyed once below.
    unsafe {
        libc::posix_spawn_file_actions_init(&mut actions);
        libc::posix_spawn_file_actions_adddup2(&mut actions, write.as_raw_fd(), 1);
    }
    let mut pid = 0;
    let called_ns = clock::now_ns();
    // SAFETY: all pointers are live; argv and envp end with a null pointer. posix_spawn does not write to them.
    let error = unsafe {
        libc::posix_spawn(
            &mut pid,
            program.path().as_ptr(),
            &actions,
            std::ptr::null(),
            program.argv().cast::<*mut c_char>(),
            program.envp().cast::<*mut c_char>(),
        )
    };
    // SAFETY: initialised above.
    unsafe { libc::posix_spawn_file_actions_destroy(&mut actions) };
    match error {
        0 => Ok(Child { pid, stdout, called_ns }),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::{Payload, read_stamp};
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    #[test]
    fn a_payload_takes_its_stamp_between_the_call_and_its_reading() {
        let _alone = crate::sweep::alone();
        let dir = crate::workspace::Workspace::create(None).unwrap();
        for payload in Payload::ALL {
            let path = dir.path().join(payload.name());
            std::fs::write(&path, payload.program()).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            let program = Program::new([path.to_str().unwrap()]).unwrap();
            for start in [fork, spawn] {
                let child = start(&program).unwrap();
                let stamp = read_stamp(&child.stdout, Duration::from_secs(10)).unwrap();
                let read = clock::now_ns();
                assert!(child.called_ns < stamp && stamp < read, "{} < {stamp} < {read}", child.called_ns);
                assert_eq!(child.wait().unwrap(), 0);
            }
        }
    }
}
