//! All scenarios, one after the other, with so many samples that they end within 45 minutes on two processors.

use super::Scenario;
use crate::interrupt;
use crate::report::{Report, html, table};
use anyhow::{Context, bail};
use clap::{FromArgMatches, Subcommand};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What is run, as it would be typed.
const SCENARIOS: [&[&str]; 10] = [
    &["start", "--n", "500"],
    &["staggered"],
    &["burst"],
    &["contention"],
    &["churn", "--cycles", "100000", "--soak-seconds", "900"],
    &["density"],
    &["logs", "--rounds", "3"],
    &["rpc"],
    &["schedule"],
    &["recover", "--n", "200,1000"],
];

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Leave these out
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub without: Vec<String>,
    /// Where all files are kept while it runs [default: /tmp]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
}

/// Runs them. Each report is shown and, where `dir` is given, written as soon as it is there, and the page with all of
/// them last. A scenario that fails does not keep the others from running, but its error comes back.
pub fn run(options: &Options, dir: Option<&Path>) -> anyhow::Result<Vec<Report>> {
    if let Some(dir) = dir {
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    }
    let mut reports = Vec::new();
    let mut failed = Vec::new();
    let wanted = |words: &&&[&str]| !options.without.iter().any(|name| name == words[0]);
    for words in SCENARIOS.iter().filter(wanted) {
        interrupt::check()?;
        eprintln!("fsb-bench: {}", words.join(" "));
        let began = Instant::now();
        match parse(words, options.root.as_deref())?.run() {
            Ok(report) => {
                println!("{}", table::text(&report));
                if let Some(dir) = dir {
                    report.save(&dir.join(format!("{}.json", report.scenario)))?;
                }
                reports.push(report);
            }
            Err(error) => {
                eprintln!("fsb-bench: {} failed: {error:#}", words[0]);
                failed.push(words[0]);
            }
        }
        eprintln!("fsb-bench: {} took {} s", words[0], began.elapsed().as_secs());
    }
    if let Some(dir) = dir {
        html::save(&reports, &dir.join("report.html"))?;
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(reports)
}

/// The scenario that these words ask for.
fn parse(words: &[&str], root: Option<&Path>) -> anyhow::Result<Scenario> {
    let command = Scenario::augment_subcommands(clap::Command::new("all").no_binary_name(true));
    let mut words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    // The registry needs no files.
    if let Some(root) = root.filter(|_| words[0] != "schedule") {
        words.extend(["--root".to_owned(), root.display().to_string()]);
    }
    Ok(Scenario::from_arg_matches(&command.try_get_matches_from(words)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_is_run_once_with_options_that_it_knows() {
        let mut names: Vec<&str> = SCENARIOS.iter().map(|words| words[0]).collect();
        let command = Scenario::augment_subcommands(clap::Command::new("all"));
        let mut known: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
        names.sort_unstable();
        known.sort_unstable();
        assert_eq!(names, known);
        for words in SCENARIOS {
            parse(words, Some(Path::new("/tmp"))).unwrap();
        }
    }
}
