//! Wire types of Fast Sandbox and the validated domain types behind them.
//!
//! Everything that comes from outside is converted here, once: behind this crate a name is a name and a port is a
//! port. Nothing in it does IO.

pub mod bounds;
pub mod domain;
mod refusal;

pub use domain::{Invalid, Resources, SandboxSpec};
pub use refusal::{REFUSAL_KEY, Refusal};

/// The Fast-Path, package `fastpath.v1`.
pub mod fastpath {
    /// Generated from `proto/fastpath.proto`.
    #[allow(clippy::all, unreachable_pub, unused_qualifications, missing_docs)]
    pub mod v1 {
        tonic::include_proto!("fastpath.v1");
    }
    pub use v1::*;
}

/// The agent's own interface, package `agent.v1`.
pub mod agent {
    /// Generated from `proto/agent.proto`.
    #[allow(clippy::all, unreachable_pub, unused_qualifications, missing_docs)]
    pub mod v1 {
        tonic::include_proto!("agent.v1");
    }
    pub use v1::*;
}
