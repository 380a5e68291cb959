//! `doctor`: what this machine needs to run sandboxes, each finding with its fix.

mod checks;

use crate::client;
use crate::config::Settings;
use crate::error::{Failure, Result};
use crate::local::{self, dirs::Dirs};
use crate::output::{self, FormatArg};
use serde::Serialize;

/// Check what this machine needs to run sandboxes.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    format: FormatArg,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Ok,
    /// It works, but slower, or without a part.
    Warning,
    /// Nothing starts like this.
    Missing,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    check: &'static str,
    verdict: Verdict,
    found: String,
    /// What to do about it; empty if all is well.
    fix: String,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, found: found.into(), fix: String::new() }
    }

    fn warning(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Warning, found: found.into(), fix: fix.into() }
    }

    fn missing(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Missing, found: found.into(), fix: fix.into() }
    }
}

#[derive(Serialize)]
struct Report {
    items: Vec<Finding>,
}

/// Exits with 1 if something is missing that is needed.
pub(crate) fn run(args: Args, settings: &Settings) -> Result<u8> {
    let dirs = Dirs::of(settings.root.as_deref());
    let mut report = Report { items: checks::all(&dirs) };
    if local::is_served(&dirs)
        && let Ok(answer) = client::runtime()?.block_on(local::up::ask(&dirs, settings))
    {
        report.items.push(checks::claims(&answer.unreadable_claims));
        report.items.push(checks::room(&answer.items));
        report.items.push(checks::moulds(&local::without_moulds(&dirs)));
    }
    output::show(args.format.output, &report, |_| {
        let mut table = output::table(["CHECK", "VERDICT", "FOUND", "FIX"]);
        for finding in &report.items {
            let verdict = match finding.verdict {
                Verdict::Ok => "ok",
                Verdict::Warning => "warning",
                Verdict::Missing => "MISSING",
            };
            table.add_row([finding.check, verdict, &finding.found, &finding.fix]);
        }
        output::tight(&mut table);
        table
    })?;
    Ok(u8::from(report.items.iter().any(|finding| finding.verdict == Verdict::Missing)))
}

/// Refuses to begin what cannot work.
pub(crate) fn need_what_is_needed(dirs: &Dirs) -> Result<()> {
    match checks::all(dirs).into_iter().find(|finding| finding.verdict == Verdict::Missing) {
        Some(missing) => Err(Failure::new(format!("{}: {}", missing.check, missing.found)).hint(missing.fix)),
        None => Ok(()),
    }
}

/// Tells on stderr what is not well, for a start that failed.
pub(crate) fn tell_problems(dirs: &Dirs) {
    let bad: Vec<Finding> = checks::all(dirs).into_iter().filter(|finding| finding.verdict != Verdict::Ok).collect();
    if bad.is_empty() {
        output::talk("doctor: this machine has all that is needed");
    }
    for finding in bad {
        output::talk(&format!("doctor: {}: {}; {}", finding.check, finding.found, finding.fix));
    }
}
