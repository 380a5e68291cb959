//! How the parked program is set up: one plan per mould, or per container that libcontainer made.
//!
//! ```text
//! magic u32 | mode u8 | bounding, effective, permitted, inheritable u64 | uid, gid u32 | n u32 | n × group u32
//! | n u32 | n × masked path NUL | n u32 | n × read-only path NUL | bytes u32 | seccomp filter
//! ```

use crate::read::Reader;
use core::ffi::CStr;

/// "FSP1".
pub const MAGIC: u32 = u32::from_le_bytes(*b"FSP1");
/// The longest plan, in bytes.
pub const MOST: usize = 32 << 10;
/// The most supplementary groups (NGROUPS_MAX is 65536, credentials(7); images have a handful).
pub const GROUPS: usize = 256;

/// What the program is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// libcontainer has done everything but the seccomp filter: load it and park.
    Park,
    /// Cast paused containers on request.
    Mould,
}

/// A plan, read in place.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    pub mode: Mode,
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub uid: u32,
    pub gid: u32,
    groups: &'a [u8],
    masked: &'a [u8],
    readonly: &'a [u8],
    /// `struct sock_filter` array.
    pub seccomp: &'a [u8],
}

impl<'a> Plan<'a> {
    /// Reads a plan.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        if reader.u32()? != MAGIC {
            return None;
        }
        let mode = match reader.u8()? {
            0 => Mode::Park,
            1 => Mode::Mould,
            _ => return None,
        };
        let plan = Self {
            mode,
            bounding: reader.u64()?,
            effective: reader.u64()?,
            permitted: reader.u64()?,
            inheritable: reader.u64()?,
            uid: reader.u32()?,
            gid: reader.u32()?,
            groups: {
                let n = reader.u32()? as usize;
                if n > GROUPS {
                    return None;
                }
                reader.bytes(n * 4)?
            },
            masked: strings(&mut reader)?,
            readonly: strings(&mut reader)?,
            seccomp: {
                let n = reader.u32()? as usize;
                reader.bytes(n)?
            },
        };
        (reader.0.is_empty() && plan.seccomp.len().is_multiple_of(8)).then_some(plan)
    }

    /// Supplementary groups.
    pub fn groups(&self) -> impl Iterator<Item = u32> + use<'a> {
        self.groups.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    /// Paths of the container below /proc that are hidden.
    pub fn masked(&self) -> impl Iterator<Item = &'a CStr> + use<'a> {
        iterate(self.masked)
    }

    /// Paths of the container below /proc that are read-only.
    pub fn readonly(&self) -> impl Iterator<Item = &'a CStr> + use<'a> {
        iterate(self.readonly)
    }
}

fn strings<'a>(reader: &mut Reader<'a>) -> Option<&'a [u8]> {
    let n = reader.u32()?;
    let start = reader.0;
    for _ in 0..n {
        reader.string()?;
    }
    Some(&start[..start.len() - reader.0.len()])
}

fn iterate<'a>(bytes: &'a [u8]) -> impl Iterator<Item = &'a CStr> + use<'a> {
    let mut reader = Reader(bytes);
    core::iter::from_fn(move || reader.string())
}
