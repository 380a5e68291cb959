//! The controller: takes sandboxes over the Fast-Path, finds an agent for each, and keeps the promises of the claims.
//!
//! ```text
//! fast_path (gRPC)  →  registry (pure)  →  agents (one connection, one stream of reports each)
//!        ↓ after the answer                      ↑ snapshots and changes
//!    claims (table, queue, store)       →  reconcile: decide() pure, apply() thin
//! ```
#![cfg_attr(not(test), warn(clippy::print_stderr, clippy::print_stdout))]

pub mod agents;
pub mod backoff;
pub mod claims;
pub mod clock;
pub mod config;
pub mod core;
pub mod error;
mod fast_path;
pub mod metrics;
mod names;
pub mod privileges;
pub mod reconcile;
pub mod registry;
mod server;
mod start;

pub use config::Config;
pub use error::Error;
pub use server::{Addresses, Controller};
