//! An epoll set of one's own: many descriptors that are looked at together, when it suits (epoll(7)).
//!
//! It is readable itself while one of its descriptors has news, so another loop can wait for it.

use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// News of one descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// What it was added with.
    pub token: u64,
    /// There is no other end any more.
    pub closed: bool,
}

/// News taken with one system call.
const BATCH: usize = 256;

/// A set of descriptors.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

impl Epoll {
    /// An empty one, close-on-exec.
    pub fn new() -> nix::Result<Self> {
        // SAFETY: epoll_create1 takes flags and returns a new descriptor or -1.
        let fd = Errno::result(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the kernel has just made it for us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Watches a descriptor for bytes to read, edge-triggered: it is told of once for everything that happens to it, so
    /// whoever is told reads all there is.
    pub fn add(&self, fd: impl AsFd, token: u64) -> nix::Result<()> {
        let mut event = libc::epoll_event { events: (libc::EPOLLIN | libc::EPOLLET) as u32, u64: token };
        self.control(libc::EPOLL_CTL_ADD, fd.as_fd(), &mut event)
    }

    /// Stops watching it.
    pub fn remove(&self, fd: impl AsFd) -> nix::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd.as_fd(), &mut libc::epoll_event { events: 0, u64: 0 })
    }

    fn control(&self, operation: i32, fd: BorrowedFd<'_>, event: &mut libc::epoll_event) -> nix::Result<()> {
        // SAFETY: two live descriptors and a live event.
        Errno::result(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), operation, fd.as_raw_fd(), event) })?;
        Ok(())
    }

    /// Appends what there is to tell now to `news`, without waiting. Returns whether there may be more.
    pub fn poll(&self, news: &mut Vec<Ready>) -> nix::Result<bool> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; BATCH];
        // SAFETY: the array has as many events as it says.
        let told = unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), BATCH as i32, 0) };
        let told = match Errno::result(told) {
            Err(Errno::EINTR) => return Ok(true),
            other => other? as usize,
        };
        let closed = |events: u32| events & (libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0;
        news.extend(events[..told].iter().map(|event| Ready { token: event.u64, closed: closed(event.events) }));
        Ok(told == BATCH)
    }
}

impl AsRawFd for Epoll {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Writes at an offset (pwrite(2)). Returns how many bytes were.
pub fn write_at(file: &impl AsRawFd, bytes: &[u8], offset: u64) -> nix::Result<usize> {
    let offset = libc::off_t::try_from(offset).map_err(|_| Errno::EFBIG)?;
    // SAFETY: the pointer and the length are those of `bytes`.
    Errno::result(unsafe { libc::pwrite(file.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), offset) })
        .map(|written| written as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::OFlag;

    #[test]
    fn bytes_and_ends_are_told_once() {
        let epoll = Epoll::new().unwrap();
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        epoll.add(&read, 7).unwrap();
        let told = || {
            let mut news = Vec::new();
            assert!(!epoll.poll(&mut news).unwrap());
            news
        };
        assert_eq!(told(), []);
        nix::unistd::write(&write, b"a").unwrap();
        assert_eq!(told(), [Ready { token: 7, closed: false }]);
        assert_eq!(told(), []);
        nix::unistd::write(&write, b"b").unwrap();
        drop(write);
        assert_eq!(told(), [Ready { token: 7, closed: true }]);
        epoll.remove(&read).unwrap();
        assert_eq!(told(), []);
    }

    #[test]
    fn bytes_are_written_where_they_belong() {
        let path = std::env::temp_dir().join(format!("fsb-host-write-at-{}", std::process::id()));
        let file = std::fs::File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(write_at(&file, b"cd", 2), Ok(2));
        assert_eq!(write_at(&file, b"ab", 0), Ok(2));
        let mut text = [0; 4];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut text, 0).unwrap();
        assert_eq!(&text, b"abcd");
        assert_eq!(write_at(&file, b"x", u64::MAX), Err(Errno::EFBIG));
    }
}
