//! `logs NAME`: what a sandbox has written, raw, each stream to its own.

use crate::client::{self, CALL, FastPath};
use crate::config::Settings;
use crate::error::Result;
use crate::{output, units};
use fsb_proto::fastpath::{LogLine, LogStream, LogsRequest};
use std::io::Write;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tonic::Status;

/// How long a stream that broke is tried again.
pub(crate) const RESUME: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_millis(100);

/// Show what a sandbox has written: stdout to stdout, stderr to stderr.
#[derive(clap::Args)]
#[command(after_help = "\
Of each sandbox the last 5 files of 10 MiB are kept; the variables LOG_MAX_FILES and LOG_MAX_SIZE of the agent change
that. Whoever follows more slowly than a sandbox writes misses the middle: it is said on stderr how much.
`run --wait` and `run --rm` miss nothing: the sandbox waits for them.")]
pub(crate) struct Args {
    /// The sandbox
    name: String,
    /// Go on until it ends
    #[arg(short, long)]
    follow: bool,
    /// Only the last N lines
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..))]
    tail: Option<i64>,
    /// Only what is newer: a duration, or a time like 2026-01-02T03:04:05Z
    #[arg(long, value_name = "WHEN", value_parser = units::moment)]
    since: Option<units::Moment>,
    /// Begin each line with its time
    #[arg(short, long)]
    timestamps: bool,
    /// The instance before the current one
    #[arg(short, long)]
    previous: bool,
    /// End with code 1, after the last line, if something was rotated away before it was read
    #[arg(long)]
    strict: bool,
}

pub(crate) async fn run(args: Args, settings: &Settings) -> Result<u8> {
    let mut client = client::connect(settings).await?;
    let request = LogsRequest {
        sandbox_id: args.name,
        namespace: settings.namespace.clone(),
        follow: args.follow,
        tail_lines: args.tail,
        since_ms: args.since.map_or(0, |since| since.back(SystemTime::now())),
        previous: args.previous,
        ..LogsRequest::default()
    };
    let mut printer = Printer::new(args.timestamps);
    match stream(&mut client, request, &mut printer).await {
        Ok(()) => Ok(u8::from(args.strict && printer.skipped)),
        Err(Broken::Output(failure)) => Err(failure),
        Err(Broken::Call(status)) => Err(client::failure(settings, &status)),
    }
}

/// Why a stream of lines stopped before its end.
pub(crate) enum Broken {
    Call(Status),
    Output(crate::error::Failure),
}

/// Prints lines until the server ends the stream. One that breaks goes on where it was, as soon as it can.
pub(crate) async fn stream(
    client: &mut FastPath,
    mut request: LogsRequest,
    printer: &mut Printer,
) -> std::result::Result<(), Broken> {
    let mut since = None;
    loop {
        match stretch(client, &mut request, printer, &mut since).await {
            Err(Broken::Call(status)) if client::is_passing(&status) && !request.instance_id.is_empty() => {
                if since.get_or_insert_with(Instant::now).elapsed() > RESUME {
                    return Err(Broken::Call(status));
                }
                tokio::time::sleep(AGAIN).await;
            }
            other => return other,
        }
    }
}

/// Prints lines until the stream ends or breaks. The request goes on behind them; `broken_since` is forgotten when one came.
async fn stretch(
    client: &mut FastPath,
    request: &mut LogsRequest,
    printer: &mut Printer,
    broken_since: &mut Option<Instant>,
) -> std::result::Result<(), Broken> {
    // The deadline is for the first answer; the stream itself lasts as long as the sandbox.
    let opening = tokio::time::timeout(CALL, client.logs(request.clone())).await;
    let opened = opening.unwrap_or_else(|_| Err(Status::deadline_exceeded("the log did not open in time")));
    let mut chunks = opened.map_err(Broken::Call)?.into_inner();
    while let Some(chunk) = chunks.message().await.map_err(Broken::Call)? {
        printer.skipped(chunk.skipped_bytes);
        for line in &chunk.lines {
            printer.line(line).map_err(Broken::Output)?;
        }
        output::flush().map_err(Broken::Output)?;
        *broken_since = None;
        if !chunk.instance_id.is_empty() {
            request.instance_id = chunk.instance_id;
        }
        request.from_offset = Some(chunk.next_offset);
        (request.tail_lines, request.since_ms) = (None, 0);
    }
    Ok(())
}

/// Writes lines out. A line that came in parts is put together again.
pub(crate) struct Printer {
    timestamps: bool,
    /// Something of the log was gone before it could be read.
    pub(crate) skipped: bool,
    /// Whether the next text of stdout and stderr begins a line.
    fresh: [bool; 2],
}

impl Printer {
    pub(crate) fn new(timestamps: bool) -> Self {
        Self { timestamps, skipped: false, fresh: [true; 2] }
    }

    fn skipped(&mut self, bytes: i64) {
        if bytes > 0 {
            self.skipped = true;
            output::warning(&format!(
                "{bytes} bytes of the log are missing here: they were rotated away before they were read"
            ));
        }
    }

    fn line(&mut self, line: &LogLine) -> Result<()> {
        let text = self.format(line);
        if line.stream == LogStream::Stderr as i32 {
            output::checked(std::io::stderr().lock().write_all(&text))
        } else {
            output::bytes(&text)
        }
    }

    fn format(&mut self, line: &LogLine) -> Vec<u8> {
        let fresh = &mut self.fresh[usize::from(line.stream == LogStream::Stderr as i32)];
        let mut text = Vec::with_capacity(line.text.len() + 40);
        if *fresh && self.timestamps {
            let time = UNIX_EPOCH + Duration::from_nanos(line.time_ns.max(0) as u64);
            text.extend_from_slice(units::rfc3339_nanos(time).as_bytes());
            text.push(b' ');
        }
        text.extend_from_slice(&line.text);
        if !line.partial {
            text.push(b'\n');
        }
        *fresh = !line.partial;
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(stream: LogStream, text: &'static str, partial: bool) -> LogLine {
        LogLine { stream: stream as i32, time_ns: 1_000_000_001, text: text.as_bytes().into(), partial }
    }

    #[test]
    fn a_line_in_parts_gets_one_time_and_one_line_end() {
        let mut printer = Printer::new(true);
        let mut text = Vec::new();
        for part in [
            line(LogStream::Stdout, "ab", true),
            line(LogStream::Stderr, "other", false),
            line(LogStream::Stdout, "cd", false),
            line(LogStream::Stdout, "next", true),
        ] {
            text.extend(printer.format(&part));
        }
        let time = "1970-01-01T00:00:01.000000001Z ";
        assert_eq!(String::from_utf8(text).unwrap(), format!("{time}ab{time}other\ncd\n{time}next"));
    }
}
