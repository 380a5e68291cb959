//! The user programs that are started, and the stamp that each of them writes.

use crate::clock;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

/// How a payload writes its stamp: 16 hexadecimal digits and a line feed.
pub const STAMP_BYTES: usize = 17;

/// A user program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Payload {
    /// No libc, a few KB.
    Tiny,
    /// Static with libc, about busybox's size.
    Libc,
}

impl Payload {
    /// All of them.
    pub const ALL: [Payload; 2] = [Payload::Tiny, Payload::Libc];

    /// Its name in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Payload::Tiny => "tiny",
            Payload::Libc => "libc",
        }
    }

    /// The program.
    pub fn program(self) -> &'static [u8] {
        match self {
            Payload::Tiny => include_bytes!(concat!(env!("OUT_DIR"), "/tiny")),
            Payload::Libc => include_bytes!(concat!(env!("OUT_DIR"), "/libc")),
        }
    }

    /// Its path inside an image of the bench.
    pub fn path(self) -> &'static str {
        match self {
            Payload::Tiny => "/bin/tiny",
            Payload::Libc => "/bin/libc",
        }
    }
}

/// The time in a stamp, in nanoseconds of the monotonic clock.
pub fn parse_stamp(line: &[u8]) -> Option<u64> {
    let digits = line.strip_suffix(b"\n").unwrap_or(line);
    if digits.len() != STAMP_BYTES - 1 {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// Reads a stamp from the read end of a program's standard output.
pub fn read_stamp(output: impl AsFd, patience: Duration) -> io::Result<u64> {
    let end = clock::now_ns() + patience.as_nanos() as u64;
    let mut text = Vec::with_capacity(STAMP_BYTES);
    while text.len() < STAMP_BYTES {
        let left = Duration::from_nanos(end.saturating_sub(clock::now_ns()));
        let timeout = PollTimeout::from(left.as_millis().min(60_000) as u16);
        if poll(&mut [PollFd::new(output.as_fd(), PollFlags::POLLIN)], timeout)? == 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the payload wrote no stamp in time"));
        }
        let mut buffer = [0; 64];
        match nix::unistd::read(std::os::fd::AsRawFd::as_raw_fd(&output.as_fd()), &mut buffer)? {
            0 => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the payload ended without a stamp")),
            n => text.extend_from_slice(&buffer[..n]),
        }
    }
    parse_stamp(&text).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("not a stamp: {:?}", String::from_utf8_lossy(&text)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_sixteen_digits() {
        assert_eq!(parse_stamp(b"00000000000000ff\n"), Some(255));
        assert_eq!(parse_stamp(b"00000000000000ff"), Some(255));
        for bad in [&b""[..], b"ff\n", b"00000000000000fg\n", b"00000000000000ff\n\n"] {
            assert_eq!(parse_stamp(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_payloads_are_of_the_sizes_that_the_report_says() {
        assert!(Payload::Tiny.program().len() < 16 << 10);
        assert!((1 << 20..3 << 20).contains(&Payload::Libc.program().len()));
    }
}
