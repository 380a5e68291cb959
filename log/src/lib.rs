//! A program's own log: lines on stderr, by `LOG_LEVEL` and `LOG_FORMAT`.
//!
//! A log is no reason to end or to wait. A line that stderr does not take at once (a full disk, a reader that is gone or
//! does not read on) is dropped, counted, and told with the next line that gets through. `eprintln!` ends the thread
//! there, and so does tracing's own writer, which reports its failure with it.
#![cfg_attr(not(test), warn(clippy::print_stderr, clippy::print_stdout))]

mod output;

use output::Output;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::LazyLock;
use tracing::Subscriber;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

static STDERR: LazyLock<Output> = LazyLock::new(|| Output::open(io::stderr().as_fd(), is_json()));

/// Writes a line, whatever the level.
pub fn line(text: &str) {
    STDERR.write(format!("{text}\n").as_bytes());
}

/// Lines that could not be written so far.
pub fn dropped() -> u64 {
    STDERR.dropped()
}

/// Whether lines are objects (`LOG_FORMAT=json`) and not for people (`console`, the default).
pub fn is_json() -> bool {
    std::env::var("LOG_FORMAT").is_ok_and(|format| format == "json")
}

/// The layer that writes lines, by `LOG_LEVEL` (default `info`) and `directives` beyond it. Once per process: from here
/// on panics are lines, too.
pub fn layer<S>(directives: &str) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = Backtrace::capture();
        match backtrace.status() {
            BacktraceStatus::Captured => tracing::error!("{panic}\n{backtrace}"),
            _ => tracing::error!("{panic}"),
        }
    }));
    let filter = filter(&std::env::var("LOG_LEVEL").unwrap_or_default(), directives);
    let lines = tracing_subscriber::fmt::layer().with_writer(Lines).log_internal_errors(false);
    if is_json() {
        return lines.json().with_filter(filter).boxed();
    }
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    lines.with_ansi(colours).with_filter(filter).boxed()
}

/// Sets up the log of a program that makes no traces.
pub fn init(directives: &str) {
    tracing_subscriber::registry().with(layer(directives)).init();
}

/// The exit code of a program's `main`, which tells its failure here.
pub fn exit<E: std::fmt::Display>(program: &str, outcome: Result<(), E>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            match tracing::dispatcher::has_been_set() {
                true => tracing::error!("{error:#}"),
                false => line(&format!("{program}: {error:#}")),
            }
            ExitCode::FAILURE
        }
    }
}

/// A level that is none is as good as `info`: a program must not stay silent for a slip of the pen.
fn filter(level: &str, directives: &str) -> EnvFilter {
    let level = if level.is_empty() { "info" } else { level };
    let with = |level: &str| EnvFilter::try_new(format!("{level},{directives}"));
    with(level).or_else(|_| with("info")).unwrap_or_default()
}

/// tracing's way to stderr: it hands over each event as one line.
struct Lines;

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        STDERR.write(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        Self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_a_word_or_directives_and_anything_else_is_info() {
        assert_eq!(filter("", "").to_string(), "info");
        assert_eq!(filter("debug", "").to_string(), "debug");
        assert_eq!(filter("b=trace", "").to_string(), "b=trace");
        assert_eq!(filter("a=b=c", "").to_string(), "info");
        assert_eq!(filter("", "a=error").to_string(), "a=error,info");
    }
}
