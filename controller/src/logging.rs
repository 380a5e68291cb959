//! Logs of this program: `LOG_LEVEL` (info) and `LOG_FORMAT` (json | console).

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Sets up logging to stderr, once per process.
pub fn init() {
    let level = std::env::var("LOG_LEVEL").ok().filter(|level| !level.is_empty()).unwrap_or_else(|| "info".into());
    let filter = EnvFilter::try_new(&level).unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match std::env::var("LOG_FORMAT").as_deref() {
        Ok("json") => logs.json().init(),
        _ => logs.with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()).init(),
    }
}
