//! What the agent and the controller tell about themselves: logs on stderr, and, where a collector is named, traces over
//! OTLP.
//!
//! Set up once per process. Without a collector nothing of the traces is there: a span that
//! nobody reads costs one look at a flag.

mod export;
mod logs;

pub use export::{Traces, init, inject, is_tracing, request_span};
