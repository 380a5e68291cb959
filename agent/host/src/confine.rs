//! Starting a program below a seccomp filter, as a container engine starts what it runs (seccomp(2)).

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// A filter that lets one system call fail with `errno` and allows all others: an array of `struct sock_filter`.
pub fn refusing(call: i64, errno: i32) -> Vec<u8> {
    let code = [
        // Load the number, compare it, and return SECCOMP_RET_ERRNO or SECCOMP_RET_ALLOW (linux/bpf_common.h).
        (0x20u16, 0u8, 0u8, 0u32),
        (0x15, 0, 1, call as u32),
        (0x06, 0, 0, 0x0005_0000 | errno as u32),
        (0x06, 0, 0, 0x7fff_0000),
    ];
    let bytes = |(code, yes, no, k): (u16, u8, u8, u32)| {
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&code.to_ne_bytes());
        bytes[2..4].copy_from_slice(&[yes, no]);
        bytes[4..].copy_from_slice(&k.to_ne_bytes());
        bytes
    };
    code.into_iter().flat_map(bytes).collect()
}

/// Has `command` load `filter` right before its execve. It cannot gain privileges any more then (no_new_privs).
pub fn confine(command: &mut Command, filter: Vec<u8>) {
    let load = move || {
        let program = libc::sock_fprog {
            len: (filter.len() / size_of::<libc::sock_filter>()) as u16,
            filter: filter.as_ptr().cast_mut().cast(),
        };
        // SAFETY: prctl with integers; the program points to instructions that outlive the call.
        let loaded = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) == 0
        };
        if loaded { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: two system calls between fork and exec, on memory that the closure owns; nothing is allocated.
    unsafe { command.pre_exec(load) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refused_call_fails_and_no_other() {
        let mut command = Command::new("sh");
        command.args(["-c", "mkdir /proc/self/nowhere; echo $?"]).stderr(std::process::Stdio::piped());
        confine(&mut command, refusing(libc::SYS_mkdir, libc::ENOTBLK));
        let refused = command.output().unwrap();
        assert_eq!(refused.stdout, b"1\n");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains("Block device required"), "{said}");
    }
}
