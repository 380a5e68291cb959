//! Logs of the keeper itself, to stderr.

use tracing_subscriber::EnvFilter;

/// `LOG_LEVEL` (default info) and `LOG_FORMAT` (`json` or, by default, console).
pub(crate) fn init() {
    let level = std::env::var("LOG_LEVEL").unwrap_or_default();
    let filter =
        EnvFilter::try_new(if level.is_empty() { "info" } else { &level }).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    if std::env::var("LOG_FORMAT").is_ok_and(|format| format == "json") {
        builder.json().init();
    } else {
        builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init();
    }
}
