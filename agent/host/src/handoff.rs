//! The sender's side of [`fsb_park::handoff`]: one message turns a paused container into a running one.

use crate::{memfd, socket};
pub use fsb_park::handoff::Stage;
use fsb_park::handoff::{self, Header, INLINE, MOST};
use nix::errno::Errno;
use nix::sys::socket::MsgFlags;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What became of a hand-off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The program runs: execve has closed the control socket. (A container that was killed looks the same; its
    /// `started` pipe and its end tell them apart.)
    Started,
    /// It never ran.
    Failed { stage: Stage, errno: i32 },
}

/// Sends program, environment and working directory to the process parked behind `ctl`.
///
/// # Errors
/// `InvalidInput` if a string holds a NUL, if there is no program, or if it is all too long; `BrokenPipe` if the
/// process is gone.
pub fn send<S: AsRef<[u8]>>(ctl: BorrowedFd<'_>, argv: &[S], env: &[S], cwd: &[u8]) -> io::Result<()> {
    let mut body = Vec::with_capacity(1024);
    for string in std::iter::once(cwd).chain(argv.iter().chain(env).map(AsRef::as_ref)) {
        if string.contains(&0) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a string holds a NUL byte"));
        }
        body.extend_from_slice(string);
        body.push(0);
    }
    if argv.is_empty() || body.len() > MOST {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no program, or more than the kernel takes"));
    }
    let header = Header { argc: argv.len(), envc: env.len(), bytes: body.len() }.to_bytes();
    if body.len() <= INLINE {
        body.splice(..0, header);
        socket::send(ctl, &body, &[], MsgFlags::empty())?;
    } else {
        let file = memfd::sealed(c"fsb-handoff", &[&body], false)?;
        socket::send(ctl, &header, &[file.as_raw_fd()], MsgFlags::empty())?;
    }
    Ok(())
}

/// Tells the process parked behind `ctl` that its hand-off is about to come. Whether it hears that matters to nobody.
pub fn rouse(ctl: BorrowedFd<'_>) {
    // SAFETY: no memory involved.
    let cpu = unsafe { libc::sched_getcpu() };
    let _ = socket::send(ctl, &handoff::rouse(cpu as u32), &[], MsgFlags::MSG_DONTWAIT);
}

/// Whether the parked process has read all that was sent to it: then it runs (SIOCOUTQ, unix(7)).
pub fn is_read(ctl: BorrowedFd<'_>) -> bool {
    let mut unread: libc::c_int = 0;
    // SAFETY: the kernel writes one int.
    let done = unsafe { libc::ioctl(ctl.as_raw_fd(), libc::TIOCOUTQ, &raw mut unread) };
    done == 0 && unread == 0
}

/// What became of it, without waiting: `None` = not known yet. `ctl` is readable when it is.
pub fn outcome(ctl: BorrowedFd<'_>) -> io::Result<Option<Outcome>> {
    let mut message = [0; 8];
    match socket::recv(ctl, &mut message, MsgFlags::MSG_DONTWAIT) {
        Err(Errno::EAGAIN) => Ok(None),
        Err(Errno::ECONNRESET) | Ok((0, _)) => Ok(Some(Outcome::Started)),
        Err(error) => Err(error.into()),
        Ok((8, _)) => {
            let number =
                |at: usize| u32::from_le_bytes([message[at], message[at + 1], message[at + 2], message[at + 3]]);
            let stage = Stage::from_code(number(0)).unwrap_or(Stage::Protocol);
            Ok(Some(Outcome::Failed { stage, errno: number(4) as i32 }))
        }
        Ok((n, _)) => Err(io::Error::other(format!("an answer of {n} bytes from a parked process"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fsb_park::handoff::{HEADER, Strings};
    use std::os::fd::AsFd;

    fn receive(argv: &[&str], env: &[&str], cwd: &str) -> (Vec<String>, Vec<String>, String) {
        let (a, b) = socket::pair().unwrap();
        send(a.as_fd(), argv, env, cwd.as_bytes()).unwrap();
        let mut buffer = vec![0; HEADER + INLINE];
        let (n, fds) = socket::recv(&b, &mut buffer, MsgFlags::empty()).unwrap();
        let header = Header::read(&buffer[..n]).unwrap();
        let mut body = buffer[HEADER..n].to_vec();
        if let Some(fd) = fds.into_iter().next() {
            use std::os::unix::fs::FileExt;
            body = vec![0; header.bytes];
            std::fs::File::from(fd).read_exact_at(&mut body, 0).unwrap();
        }
        let strings = Strings::read(header, &body).unwrap();
        let own = |text: &std::ffi::CStr| text.to_str().unwrap().to_owned();
        (strings.args().map(own).collect(), strings.envs().map(own).collect(), own(strings.cwd))
    }

    #[test]
    fn what_was_sent_is_what_arrives_in_line_and_in_a_memfd() {
        let long = "x".repeat(100_000);
        for argv in [vec!["sh", "-c", "", "a b"], vec!["sh", &long]] {
            let (args, envs, cwd) = receive(&argv, &["A=1", "B="], "/tmp");
            assert_eq!(args, argv);
            assert_eq!(envs, ["A=1", "B="]);
            assert_eq!(cwd, "/tmp");
        }
    }

    #[test]
    fn a_message_is_unread_until_it_is_received() {
        let (a, b) = socket::pair().unwrap();
        assert!(is_read(a.as_fd()));
        rouse(a.as_fd());
        assert!(!is_read(a.as_fd()));
        let mut buffer = [0; 16];
        let (n, _) = socket::recv(&b, &mut buffer, MsgFlags::empty()).unwrap();
        assert!(handoff::roused_from(&buffer[..n]).is_some() && is_read(a.as_fd()));
    }

    #[test]
    fn what_cannot_be_sent_is_refused() {
        let (a, _b) = socket::pair().unwrap();
        let none: [&str; 0] = [];
        assert_eq!(send(a.as_fd(), &none, &none, b"/").unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(send(a.as_fd(), &["a\0b"], &none[..], b"/").unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn an_outcome_is_unknown_until_the_other_side_speaks_or_closes() {
        let (a, b) = socket::pair().unwrap();
        assert_eq!(outcome(a.as_fd()).unwrap(), None);
        let mut message = [0; 8];
        message[0] = Stage::Exec.code() as u8;
        message[4] = 2;
        socket::send(&b, &message, &[], MsgFlags::empty()).unwrap();
        assert_eq!(outcome(a.as_fd()).unwrap(), Some(Outcome::Failed { stage: Stage::Exec, errno: 2 }));
        drop(b);
        assert_eq!(outcome(a.as_fd()).unwrap(), Some(Outcome::Started));
    }
}
