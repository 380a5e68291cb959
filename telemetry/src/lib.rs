//! What the agent and the controller tell about themselves: logs on stderr ([`fsb_log`]), and, where a collector is
//! named, traces over OTLP.
//!
//! Set up once per process. Without a collector nothing of the traces is there: a span that
//! nobody reads costs one look at a flag.
#![warn(clippy::print_stderr, clippy::print_stdout)]

mod export;

pub use export::{Traces, init, inject, is_tracing, request_span};
