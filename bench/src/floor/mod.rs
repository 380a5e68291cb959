//! Floors: the least that starting a program can cost on this kernel, written by hand.
//!
//! Apart from the kernel's own interface they share nothing with the product but its seccomp filter, so that a
//! slower product cannot hide behind a slower floor.
//!
//! **Unsafe code.** fork, posix_spawn, clone3 and the mount interface have no safe form, and a floor that went
//! through the product's wrappers would not be one. This module is therefore exempt from the rule that only the host
//! crates have `unsafe`; each block says why it is sound.

pub mod cold;
pub mod copier;
pub mod process;
mod profile;
mod sys;
