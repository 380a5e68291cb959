//! Where lines go. Writing never fails and never waits for a reader.

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::{SFlag, fstat};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// A pipe that poll(2) calls writable takes so many bytes without waiting (pipe(7), `PIPE_BUF`).
const PIPE_BYTES: usize = 4096;

/// A descriptor, in the way in which writing to it does not wait.
enum Way {
    /// A file, or an opening of a pipe or terminal that is ours alone and does not wait: the flag belongs to the opening,
    /// which stderr shares with everybody who inherited it.
    Plain(OwnedFd),
    Socket(OwnedFd),
    /// A pipe that cannot be opened again (somebody else's, or without a reader): asked before each write.
    Asked(OwnedFd),
}

/// A program's stderr.
pub(crate) struct Output {
    /// `None` = there is none: every line is dropped.
    way: Option<Way>,
    is_json: bool,
    state: Mutex<State>,
    dropped: AtomicU64,
}

#[derive(Default)]
struct State {
    /// As many dropped lines were told of.
    told: u64,
    /// The last line ends in its middle.
    is_cut: bool,
}

impl Output {
    /// To the file, pipe, socket or terminal behind `fd`.
    pub(crate) fn open(fd: BorrowedFd<'_>, is_json: bool) -> Self {
        Self { way: way(fd), is_json, state: Mutex::default(), dropped: AtomicU64::new(0) }
    }

    /// Lines that were dropped so far.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Writes a line, which ends with its line feed, or drops it.
    pub(crate) fn write(&self, line: &[u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let dropped = self.dropped();
        let mut before = Vec::new();
        if state.is_cut {
            before.push(b'\n');
        }
        if dropped > state.told {
            before.extend(self.note(dropped).into_bytes());
        }
        let text = if before.is_empty() { line } else { &[&before, line].concat() };
        let written = self.put(text);
        if written == text.len() {
            *state = State { told: dropped, is_cut: false };
        } else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            state.is_cut = if written == 0 { state.is_cut } else { text[written - 1] != b'\n' };
        }
    }

    fn note(&self, dropped: u64) -> String {
        let text = "lines of this log could not be written and were dropped";
        if self.is_json {
            format!("{{\"level\":\"WARN\",\"fields\":{{\"message\":\"{text}\",\"dropped\":{dropped}}}}}\n")
        } else {
            format!(" WARN {text} dropped={dropped}\n")
        }
    }

    /// Writes as much as goes in at once. Returns how much that was.
    fn put(&self, text: &[u8]) -> usize {
        let mut written = 0;
        while written < text.len() {
            match self.some(&text[written..]) {
                Ok(0) => break,
                Ok(bytes) => written += bytes,
                Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
        written
    }

    fn some(&self, text: &[u8]) -> nix::Result<usize> {
        match &self.way {
            None => Ok(0),
            Some(Way::Plain(fd)) => nix::unistd::write(fd, text),
            Some(Way::Socket(fd)) => send(fd.as_raw_fd(), text, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL),
            Some(Way::Asked(fd)) => {
                let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
                poll(&mut fds, PollTimeout::ZERO)?;
                if !fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLOUT)) {
                    return Err(Errno::EAGAIN);
                }
                nix::unistd::write(fd, &text[..text.len().min(PIPE_BYTES)])
            }
        }
    }
}

fn way(fd: BorrowedFd<'_>) -> Option<Way> {
    let same = || fd.try_clone_to_owned().ok();
    let kind = SFlag::from_bits_truncate(fstat(fd.as_raw_fd()).ok()?.st_mode) & SFlag::S_IFMT;
    if kind == SFlag::S_IFSOCK {
        return same().map(Way::Socket);
    }
    if kind != SFlag::S_IFIFO && kind != SFlag::S_IFCHR {
        return same().map(Way::Plain);
    }
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    match std::fs::OpenOptions::new().write(true).custom_flags(flags).open(path) {
        Ok(own) => Some(Way::Plain(own.into())),
        Err(_) => same().map(Way::Asked),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;

    /// As many lines as no pipe or socket holds, written by a thread that must come to its end.
    fn write_much(fd: &OwnedFd, asked: bool) -> Output {
        let mut output = Output::open(fd.as_fd(), false);
        if asked {
            output.way = Some(Way::Asked(fd.try_clone().unwrap()));
        }
        let (done, waits) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            (0..20_000).for_each(|number| output.write(format!("line {number} {}\n", "x".repeat(100)).as_bytes()));
            done.send(output).unwrap();
        });
        waits.recv_timeout(std::time::Duration::from_secs(20)).expect("a log waits for its reader")
    }

    fn pair() -> (OwnedFd, OwnedFd) {
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        (one.into(), other.into())
    }

    #[test]
    fn a_reader_that_does_not_read_on_costs_lines_and_is_told_how_many() {
        for (writer, reader, asked) in [
            nix::unistd::pipe().map(|(reader, writer)| (writer, reader, false)).unwrap(),
            nix::unistd::pipe().map(|(reader, writer)| (writer, reader, true)).unwrap(),
            Some(pair()).map(|(writer, reader)| (writer, reader, false)).unwrap(),
        ] {
            let output = write_much(&writer, asked);
            let dropped = output.dropped();
            assert!(dropped > 1000, "{dropped}");
            let mut reader = File::from(reader);
            let mut room = vec![0; 16 << 10];
            reader.read_exact(&mut room).unwrap();
            output.write(b"heard again\n");
            drop((output, writer));
            let mut rest = String::new();
            reader.read_to_string(&mut rest).unwrap();
            let end: Vec<&str> = rest.lines().rev().take(2).collect();
            assert_eq!(end[0], "heard again");
            assert!(end[1].ends_with(&format!("dropped={dropped}")), "{end:?}");
        }
    }

    #[test]
    fn whoever_shares_the_pipe_still_waits_as_before() {
        let (_reader, writer) = nix::unistd::pipe().unwrap();
        let _output = Output::open(writer.as_fd(), false);
        let flags = nix::fcntl::fcntl(writer.as_raw_fd(), nix::fcntl::FcntlArg::F_GETFL).unwrap();
        assert!(!OFlag::from_bits_truncate(flags).contains(OFlag::O_NONBLOCK));
    }

    #[test]
    fn a_full_disk_and_a_closed_pipe_cost_lines_only() {
        let full = OwnedFd::from(File::options().write(true).open("/dev/full").unwrap());
        assert_eq!(write_much(&full, false).dropped(), 20_000);
        let (reader, writer) = nix::unistd::pipe().unwrap();
        drop(reader);
        assert_eq!(write_much(&writer, false).dropped(), 20_000);
        let (reader, writer) = pair();
        drop(reader);
        assert_eq!(write_much(&writer, false).dropped(), 20_000);
    }

    #[test]
    fn a_note_is_an_object_where_lines_are() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let output = Output::open(writer.as_fd(), true);
        output.dropped.store(3, Ordering::Relaxed);
        output.write(b"{}\n");
        drop((output, writer));
        let mut text = String::new();
        File::from(reader).read_to_string(&mut text).unwrap();
        assert!(text.starts_with("{\"level\":\"WARN\"") && text.ends_with(",\"dropped\":3}}\n{}\n"), "{text}");
    }
}
