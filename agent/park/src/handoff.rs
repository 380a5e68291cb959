//! The message that turns a paused container into a running one.
//!
//! ```text
//! magic u32 | argc u32 | envc u32 | bytes u32 | cwd NUL | argc × (argument NUL) | envc × (KEY=VALUE NUL)
//! ```
//! Before it a parked process may be roused: it then looks for its hand-off for a moment without sleeping, so that the
//! time in which its processor wakes up passes while the agent still prepares the start. The message is a byte and the
//! number of the agent's processor (u32): on the same one it would only keep the agent from going on.
//!
//! Numbers are little-endian; `bytes` counts what follows the header. A message over [`INLINE`] bytes is in a memfd
//! instead: then the socket carries the header alone, with the memfd attached, whose content is what follows.

use crate::read::Reader;
use core::ffi::CStr;

/// "FSH1".
pub const MAGIC: u32 = u32::from_le_bytes(*b"FSH1");
/// Length of the header, in bytes.
pub const HEADER: usize = 16;
/// Length of the message that rouses, in bytes.
pub const ROUSE: usize = 5;
/// How often a roused process looks before it sleeps again: some 100 µs.
pub const LOOKS: u32 = 200;
/// The longest message that is sent in line, in bytes.
pub const INLINE: usize = 16 << 10;
/// The most that a hand-off in a memfd may hold, in bytes: above the kernel's own limit for execve.
pub const MOST: usize = 4 << 20;

/// What went wrong in the parked program, sent back as `stage u32 | errno u32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The working directory could not be entered.
    Chdir,
    /// The program could not be executed.
    Exec,
    /// The message was not well-formed.
    Protocol,
}

impl Stage {
    /// The number on the wire.
    pub const fn code(self) -> u32 {
        match self {
            Stage::Chdir => 1,
            Stage::Exec => 2,
            Stage::Protocol => 3,
        }
    }

    /// From the number on the wire.
    pub const fn from_code(code: u32) -> Option<Self> {
        match code {
            1 => Some(Stage::Chdir),
            2 => Some(Stage::Exec),
            3 => Some(Stage::Protocol),
            _ => None,
        }
    }
}

/// The message that rouses, from an agent on the processor `cpu`.
pub fn rouse(cpu: u32) -> [u8; ROUSE] {
    let [a, b, c, d] = cpu.to_le_bytes();
    [b'!', a, b, c, d]
}

/// The agent's processor, if `message` is one that rouses.
pub fn roused_from(message: &[u8]) -> Option<u32> {
    match *message {
        [b'!', a, b, c, d] => Some(u32::from_le_bytes([a, b, c, d])),
        _ => None,
    }
}

/// The front of a hand-off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub argc: usize,
    pub envc: usize,
    /// Bytes that follow the header.
    pub bytes: usize,
}

impl Header {
    /// Reads a header; `None` if it is not one, or asks for more than [`MOST`].
    pub fn read(message: &[u8]) -> Option<Self> {
        let mut reader = Reader(message);
        if reader.u32()? != MAGIC {
            return None;
        }
        let header = Self { argc: reader.u32()? as usize, envc: reader.u32()? as usize, bytes: reader.u32()? as usize };
        let strings = header.argc.checked_add(header.envc)?.checked_add(1)?;
        // Each string has at least its NUL.
        (header.argc > 0 && header.bytes <= MOST && strings <= header.bytes).then_some(header)
    }

    /// Its bytes on the wire.
    pub fn to_bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        for (slot, value) in
            bytes.chunks_exact_mut(4).zip([MAGIC, self.argc as u32, self.envc as u32, self.bytes as u32])
        {
            slot.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }
}

/// The strings of a hand-off, checked: exactly as many as the header says, each ended by a NUL, nothing behind them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strings<'a> {
    pub cwd: &'a CStr,
    rest: &'a [u8],
    header: Header,
}

impl<'a> Strings<'a> {
    /// Checks the bytes behind a header.
    pub fn read(header: Header, body: &'a [u8]) -> Option<Self> {
        if body.len() != header.bytes || body.last() != Some(&0) {
            return None;
        }
        let nuls = body.iter().filter(|byte| **byte == 0).count();
        if nuls != header.argc + header.envc + 1 {
            return None;
        }
        let mut reader = Reader(body);
        let cwd = reader.string()?;
        Some(Self { cwd, rest: reader.0, header })
    }

    /// The arguments, the program first.
    pub fn args(&self) -> impl Iterator<Item = &'a CStr> + use<'a> {
        self.all().take(self.header.argc)
    }

    /// The environment, `KEY=VALUE` each.
    pub fn envs(&self) -> impl Iterator<Item = &'a CStr> + use<'a> {
        self.all().skip(self.header.argc)
    }

    fn all(&self) -> impl Iterator<Item = &'a CStr> + use<'a> {
        let mut reader = Reader(self.rest);
        core::iter::from_fn(move || reader.string())
    }
}
