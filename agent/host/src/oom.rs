//! Whom the kernel kills first when the node runs out of memory.

use crate::pidfd;
use std::fs::OpenOptions;
use std::io::{Read, Seek, Write};
use std::os::fd::BorrowedFd;

/// Raises the `oom_score_adj` of the process behind `pidfd`, whose id is `pid`, to `score`, unless it is higher. What it
/// forks from here on inherits it. Where the caller has CAP_SYS_RESOURCE the least that the process may go back to moves
/// along; without it that stays what the caller itself was started with (`__set_oom_adj` in the kernel's fs/proc/base.c).
/// `ESRCH` if the process has ended.
pub fn raise(pidfd: BorrowedFd<'_>, pid: i32, score: i32) -> std::io::Result<()> {
    let mut file = pidfd::open_proc(pidfd, pid, "oom_score_adj", OpenOptions::new().read(true).write(true))?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let now: i32 = text.trim().parse().map_err(|_| std::io::Error::other(format!("oom_score_adj is {text:?}")))?;
    file.rewind()?;
    // Written also where it is the same: writing is what moves the least.
    file.write_all(now.max(score).to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_score_is_raised_and_never_lowered() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pid = child.id() as i32;
        let fd = pidfd::open(pid).unwrap();
        let score = || std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().to_owned();
        for (asked, then) in [(900, "900"), (500, "900"), (1000, "1000")] {
            raise(fd.as_fd(), pid, asked).unwrap();
            assert_eq!(score(), then);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let own = std::process::id() as i32;
        assert_eq!(raise(fd.as_fd(), own, 0).unwrap_err().raw_os_error(), Some(libc::ESRCH), "another's number");
    }
}
