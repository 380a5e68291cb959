//! What is measured.

pub mod memory;
pub mod recover;
pub mod schedule;
pub mod start;
