//! A plain log copier, written by hand: epoll, read(2), one CRI record per line, write(2). What a container runtime's
//! log thread does, and no more: no open lines, no retries on a full disk, no requests to serve meanwhile.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ChildStdout;
use std::time::{SystemTime, UNIX_EPOCH};

/// As much as a pipe holds.
const READ: usize = 64 << 10;
/// `2026-01-02T03:04:05.000000006Z stdout F `
const PREFIX: usize = 40;

/// When to begin a new file, and how many there may be.
#[derive(Debug, Clone, Copy)]
pub struct Rotation {
    pub max_bytes: u64,
    pub files: usize,
}

struct Copy {
    pipe: ChildStdout,
    path: PathBuf,
    file: File,
    bytes: u64,
    /// The beginning of a line whose end has not come yet.
    open: Vec<u8>,
}

/// Copies every pipe into its file until all are at their end. Returns the processor time that this took, in
/// nanoseconds.
pub fn copy(pipes: Vec<(ChildStdout, PathBuf)>, rotation: Rotation) -> io::Result<u64> {
    let begin = thread_cpu_ns();
    // SAFETY: takes flags; the kernel makes a descriptor for us or returns -1.
    let epoll = match unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) } {
        -1 => return Err(io::Error::last_os_error()),
        // SAFETY: it was just made for us.
        fd => unsafe { OwnedFd::from_raw_fd(fd) },
    };
    let mut copies = Vec::with_capacity(pipes.len());
    for (pipe, path) in pipes {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: copies.len() as u64 };
        // SAFETY: two live descriptors and a live event.
        if unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, pipe.as_raw_fd(), &mut event) } == -1 {
            return Err(io::Error::last_os_error());
        }
        let file = File::create(&path)?;
        copies.push(Some(Copy { pipe, path, file, bytes: 0, open: Vec::new() }));
    }
    let mut left = copies.len();
    let mut input = vec![0; READ];
    let mut records = Vec::with_capacity(4 * READ);
    let mut stamp = Stamp::default();
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 256];
    while left > 0 {
        // SAFETY: the array has as many events as it says.
        let ready = unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), events.len() as i32, -1) };
        if ready == -1 {
            match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                error => return Err(error),
            }
        }
        for event in &events[..ready as usize] {
            let place = event.u64 as usize;
            let Some(copy) = &mut copies[place] else { continue };
            let bytes = copy.pipe.read(&mut input)?;
            if bytes == 0 {
                // Closing it takes it out of the epoll set (epoll(7)).
                copies[place] = None;
                left -= 1;
                continue;
            }
            records.clear();
            frame(&input[..bytes], stamp.now(), &mut copy.open, &mut records);
            if copy.bytes > 0 && copy.bytes + records.len() as u64 > rotation.max_bytes {
                copy.file = rotate(&copy.path, rotation.files)?;
                copy.bytes = 0;
            }
            copy.file.write_all(&records)?;
            copy.bytes += records.len() as u64;
        }
    }
    Ok(thread_cpu_ns() - begin)
}

fn frame(mut input: &[u8], prefix: &[u8; PREFIX], open: &mut Vec<u8>, records: &mut Vec<u8>) {
    while let Some(end) = newline(input) {
        records.extend_from_slice(prefix);
        if !open.is_empty() {
            records.append(open);
        }
        records.extend_from_slice(&input[..=end]);
        input = &input[end + 1..];
    }
    open.extend_from_slice(input);
}

fn newline(text: &[u8]) -> Option<usize> {
    // SAFETY: memchr looks at no more than the length of the slice.
    let found = unsafe { libc::memchr(text.as_ptr().cast(), i32::from(b'\n'), text.len()) };
    (!found.is_null()).then(|| found as usize - text.as_ptr() as usize)
}

fn rotate(path: &Path, files: usize) -> io::Result<File> {
    let numbered = |number: usize| match number {
        0 => path.to_owned(),
        number => PathBuf::from(format!("{}.{number}", path.display())),
    };
    for number in (0..files - 1).rev() {
        match std::fs::rename(numbered(number), numbered(number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    File::create(path)
}

/// The time of a read, formatted anew only where it has changed.
struct Stamp {
    second: u64,
    prefix: [u8; PREFIX],
}

impl Default for Stamp {
    fn default() -> Self {
        Self { second: u64::MAX, prefix: *b"0000-00-00T00:00:00.000000000Z stdout F " }
    }
}

impl Stamp {
    fn now(&mut self) -> &[u8; PREFIX] {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if since.as_secs() != self.second {
            self.second = since.as_secs();
            // SAFETY: zeroed is a valid tm, which gmtime_r fills in from a live integer.
            let time = unsafe {
                let mut time: libc::tm = std::mem::zeroed();
                libc::gmtime_r(&(self.second as libc::time_t), &mut time);
                time
            };
            let (year, month) = (time.tm_year + 1900, time.tm_mon + 1);
            let (day, hour, minute, second) = (time.tm_mday, time.tm_hour, time.tm_min, time.tm_sec);
            let text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
            self.prefix[..text.len()].copy_from_slice(text.as_bytes());
        }
        let mut nanoseconds = since.subsec_nanos();
        for digit in self.prefix[20..29].iter_mut().rev() {
            *digit = b'0' + (nanoseconds % 10) as u8;
            nanoseconds /= 10;
        }
        &self.prefix
    }
}

fn thread_cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a live timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_framed_over_the_ends_of_reads() {
        let (mut open, mut records) = (Vec::new(), Vec::new());
        let prefix = Stamp::default().prefix;
        frame(b"one\ntw", &prefix, &mut open, &mut records);
        frame(b"o\n", &prefix, &mut open, &mut records);
        let text = String::from_utf8(records).unwrap();
        assert_eq!(text.replace("0000-00-00T00:00:00.000000000Z ", ""), "stdout F one\nstdout F two\n");
        assert!(open.is_empty());
    }
}
