//! stdout is data, stderr is talk.

use crate::error::{Failure, Result};
use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde::Serialize;
use std::io::{ErrorKind, IsTerminal, Write};

/// How data is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    #[default]
    Table,
    Wide,
    Yaml,
    Json,
}

/// The flag `-o`.
#[derive(clap::Args, Clone, Copy)]
pub(crate) struct FormatArg {
    /// How to show it
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Format,
}

/// The exit code of a program whose reader went away, as shells tell it: 128 and SIGPIPE.
const READER_GONE: i32 = 141;

/// Writes to stdout. A reader that went away (`| head`) ends the program without a word.
pub(crate) fn bytes(bytes: &[u8]) -> Result<()> {
    checked(std::io::stdout().lock().write_all(bytes))
}

/// Pushes out what was written.
pub(crate) fn flush() -> Result<()> {
    checked(std::io::stdout().lock().flush())
}

/// The result of a write to stdout.
pub(crate) fn checked(result: std::io::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(READER_GONE),
        other => other.map_err(|error| Failure::new(format!("cannot write the output: {error}"))),
    }
}

/// Writes a line to stdout.
pub(crate) fn line(text: &str) -> Result<()> {
    bytes(format!("{text}\n").as_bytes())
}

/// Shows `value` as YAML or JSON, or `table` for people.
pub(crate) fn show(format: Format, value: &impl Serialize, table: impl FnOnce(bool) -> Table) -> Result<()> {
    let broken = |error: String| Failure::new(format!("cannot show the answer: {error}"));
    match format {
        Format::Table => line(&trimmed(&table(false))),
        Format::Wide => line(&trimmed(&table(true))),
        Format::Yaml => bytes(serde_yaml_ng::to_string(value).map_err(|error| broken(error.to_string()))?.as_bytes()),
        Format::Json => line(&serde_json::to_string_pretty(value).map_err(|error| broken(error.to_string()))?),
    }
}

/// Without the spaces that fill up the last column.
fn trimmed(table: &Table) -> String {
    table.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// A table without lines, as kubectl prints it.
pub(crate) fn table<I: Into<String>>(header: impl IntoIterator<Item = I>) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(header.into_iter().map(Into::into).collect::<Vec<String>>());
    tight(&mut table);
    table
}

/// Pairs of a name and a value, one a line.
pub(crate) fn pairs<K: Into<String>>(rows: impl IntoIterator<Item = (K, String)>) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    for (key, value) in rows {
        table.add_row([key.into(), value]);
    }
    tight(&mut table);
    table
}

/// No space before the first column, three between columns.
pub(crate) fn tight(table: &mut Table) {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
}

/// A table cell for what may be missing.
pub(crate) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

fn colour(text: &str, code: &str) -> String {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) || !std::io::stderr().is_terminal();
    if plain { text.to_owned() } else { format!("\x1b[{code}m{text}\x1b[0m") }
}

/// Writes a line to stderr. Whoever does not listen misses it: `eprintln!` would panic.
pub(crate) fn talk(text: &str) {
    let _ = std::io::stderr().lock().write_all(format!("{text}\n").as_bytes());
}

/// Says on stderr why the command failed.
pub(crate) fn failure(failure: &Failure) {
    talk(&format!("{} {failure}", colour("error:", "1;31")));
    if let Some(text) = &failure.hint {
        hint(text);
    }
}

/// Says on stderr what to do.
pub(crate) fn hint(text: &str) {
    talk(&format!("{} {text}", colour("hint:", "1;36")));
}

/// Says on stderr what is odd.
pub(crate) fn warning(text: &str) {
    talk(&format!("{} {text}", colour("warning:", "1;33")));
}

/// A spinner on stderr that shows up when something takes longer than a moment; nothing without a terminal.
pub(crate) fn spinner(text: &str) -> indicatif::ProgressBar {
    if !std::io::stderr().is_terminal() {
        return indicatif::ProgressBar::hidden();
    }
    let spinner = indicatif::ProgressBar::new_spinner().with_message(text.to_owned());
    spinner.enable_steady_tick(std::time::Duration::from_millis(120));
    spinner
}
