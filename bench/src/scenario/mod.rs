//! What is measured.

pub mod burst;
pub mod churn;
pub mod contention;
pub mod density;
pub mod logs;
pub mod recover;
pub mod rpc;
pub mod schedule;
pub mod staggered;
pub mod start;
