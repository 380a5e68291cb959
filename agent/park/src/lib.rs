//! The formats that the parked program reads: how it is set up, how it is told to cast, and the hand-off.
//!
//! The readers here allocate nothing and never panic on any input; the writers are in `fsb-host`.
#![no_std]
#![forbid(unsafe_code)]

pub mod cast;
pub mod handoff;
pub mod plan;
mod read;

/// The control socket of the parked program.
pub const CTL_FD: i32 = 100;
/// Its write end of the `started` pipe.
pub const STARTED_FD: i32 = 101;
/// Its plan, a memfd; closed once read.
pub const PLAN_FD: i32 = 102;
/// First descriptor above those.
pub const END_FD: u32 = 103;

/// Written on `started` right before execve.
pub const STARTED_EXEC: u8 = b'x';
/// Written on `started` when execve has failed.
pub const STARTED_FAILED: u8 = b'N';
/// Sent on the control socket when the container is ready and parked.
pub const READY: &[u8] = b"R";
