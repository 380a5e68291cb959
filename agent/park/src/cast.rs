//! The request that a mould casts a paused container from.
//!
//! ```text
//! magic u32 | v2 u8 | cgroups u8 | plugins u8 | host name NUL | plugins × (target NUL)
//! ```
//! Descriptors: root file system (a detached mount), control socket, stdout, stderr, `started`, one detached mount
//! per plugin, then `cgroup.procs` of each v1 cgroup, or on v2 the cgroup's directory.
//!
//! The mould answers `pid i32` with the pidfd attached, or a negative errno; the new process itself says
//! [`crate::READY`] on its control socket, or `step u32 | errno u32` and ends.

use crate::read::Reader;
use core::ffi::CStr;

/// "FSC1".
pub const MAGIC: u32 = u32::from_le_bytes(*b"FSC1");
/// The longest request, in bytes.
pub const MOST: usize = 4096;
/// The most descriptors.
pub const FDS: usize = 32;
/// Descriptors before those of plugins and cgroups.
pub const FIXED_FDS: usize = 5;

/// A request, read in place.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The last descriptor is a v2 directory to be born in.
    pub v2: bool,
    pub cgroups: usize,
    pub plugins: usize,
    pub host: &'a CStr,
    targets: &'a [u8],
}

impl<'a> Request<'a> {
    /// Reads a request that came with `fds` descriptors.
    pub fn read(message: &'a [u8], fds: usize) -> Option<Self> {
        let mut reader = Reader(message);
        if reader.u32()? != MAGIC {
            return None;
        }
        let (v2, cgroups, plugins) = (reader.u8()? != 0, reader.u8()? as usize, reader.u8()? as usize);
        let host = reader.string()?;
        let targets = reader.0;
        for _ in 0..plugins {
            reader.string()?;
        }
        let right = fds == FIXED_FDS + plugins + cgroups && (!v2 || cgroups == 1) && reader.0.is_empty();
        right.then_some(Self { v2, cgroups, plugins, host, targets })
    }

    /// Absolute paths in the container that the plugins are mounted on.
    pub fn targets(&self) -> impl Iterator<Item = &'a CStr> + use<'a> {
        let mut reader = Reader(self.targets);
        core::iter::from_fn(move || reader.string())
    }
}

/// The step of a cast that failed.
pub const STEPS: [&str; 24] = [
    "",
    "join cgroup",
    "attach root file system",
    "enter root file system",
    "find /proc, /dev, /sys in the image",
    "move /sys",
    "mount /proc",
    "mount /dev",
    "make device nodes",
    "mount /dev/pts",
    "mount /dev/shm",
    "mount /dev/mqueue",
    "mount plugin",
    "pivot root",
    "detach old root",
    "protect path",
    "mask path",
    "set groups",
    "set user",
    "set capabilities",
    "no_new_privs",
    "seccomp",
    "descriptors",
    "protocol",
];

/// The number of a step's name in [`STEPS`].
pub const fn step(name: &str) -> u32 {
    let mut i = 0;
    while i < STEPS.len() {
        let (a, b) = (STEPS[i].as_bytes(), name.as_bytes());
        let mut same = a.len() == b.len();
        let mut k = 0;
        while same && k < a.len() {
            same = a[k] == b[k];
            k += 1;
        }
        if same {
            return i as u32;
        }
        i += 1;
    }
    panic!("no such step")
}
