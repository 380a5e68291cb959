//! The host side of a sandbox: cgroups, descriptors, processes and the messages between the daemons of one agent.
//!
//! With `fsb-park` this is the only code with `unsafe` in it. Everything is synchronous and knows no runtime, so
//! the single-threaded daemons and the agent share it.
#![cfg_attr(not(test), warn(clippy::print_stderr, clippy::print_stdout))]

pub mod cgroup;
pub mod confine;
pub mod count;
pub mod epoll;
pub mod handoff;
pub mod late;
pub mod layer;
pub mod logfile;
pub mod making;
pub mod memfd;
pub mod mount;
pub mod oom;
pub mod openat;
pub mod park;
pub mod paths;
pub mod pidfd;
pub mod privileges;
pub mod process;
pub mod profile;
pub mod sched;
pub mod seccomp;
pub mod socket;
pub mod spread;
pub mod tree;
pub mod usage;
pub mod wire;
