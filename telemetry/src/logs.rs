//! Logs: `LOG_LEVEL` and `LOG_FORMAT`.

use std::io::IsTerminal;
use tracing_subscriber::{EnvFilter, Layer, Registry};

/// The layer that writes lines to stderr, by `LOG_LEVEL` (default `info`) and `LOG_FORMAT` (`json`, or by default
/// `console`).
pub(crate) fn lines() -> Box<dyn Layer<Registry> + Send + Sync> {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let filter = filter(&variable("LOG_LEVEL"));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    if variable("LOG_FORMAT") == "json" {
        return lines.json().with_filter(filter).boxed();
    }
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    lines.with_ansi(colours).with_filter(filter).boxed()
}

/// A level that is none is as good as `info`: a program must not stay silent for a slip of the pen.
fn filter(level: &str) -> EnvFilter {
    let level = if level.is_empty() { "info" } else { level };
    EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_a_word_or_directives_and_anything_else_is_info() {
        assert_eq!(filter("").to_string(), "info");
        assert_eq!(filter("debug").to_string(), "debug");
        assert_eq!(filter("b=trace").to_string(), "b=trace");
        assert_eq!(filter("a=b=c").to_string(), "info");
    }
}
