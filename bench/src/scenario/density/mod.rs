//! What a sandbox costs in memory, paused and running: by how much the machine's available memory drops for each one,
//! everything in it (the process, its page tables, cgroups, mounts, pipes, and what keeper, spawner, mould and agent
//! hold for it), and the proportional set size (PSS) of all processes of the node.

mod memory;

use crate::agent::{Agent, runtime};
use crate::helper::{Helper, Hub, Process};
use crate::image::{Image, REFERENCE};
use crate::interrupt;
use crate::keeper::{Keeper, Settings};
use crate::machine::{Watch, available_kib};
use crate::payload::Payload;
use crate::protocol::Ask;
use crate::report::{Report, Row, rounded};
use crate::rpc::request;
use crate::stats::slope;
use crate::workspace::Workspace;
use anyhow::{Context, bail};
use memory::Reading;
use std::path::{Path, PathBuf};

/// The slope is taken from here on: before, what is made once for all weighs too much.
const SLOPE_FROM: usize = 200;
/// Counts that would need more than this each, with half of the memory, are left out.
const KIB_EACH: i64 = 1024;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Numbers of sandboxes, rising; those that memory does not allow are left out
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100, 200, 400, 600, 800, 1000], value_name = "N,…")]
    pub counts: Vec<usize>,
    /// Rounds with paused ones, each with a new keeper; the middle slope counts
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub rounds: usize,
    /// Where all files are kept while it runs [default: /tmp]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
}

/// Runs it.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let dir = options.root.as_deref().unwrap_or(Path::new("/tmp"));
    let watch = Watch::begin(dir);
    let mut warnings = Vec::new();
    let room = available_kib()? / 2 / KIB_EACH;
    let counts: Vec<usize> = options.counts.iter().copied().filter(|&count| count as i64 <= room).collect();
    if counts.len() < options.counts.len() {
        warnings.push(format!("more than {room} sandboxes are left out: there is not enough memory"));
    }
    if counts.is_empty() {
        bail!("no number of sandboxes to measure fits into this machine's memory");
    }
    let mut cells = Vec::new();
    let mut rounds = Vec::with_capacity(options.rounds);
    for _ in 0..options.rounds.max(1) {
        rounds.push(paused(options, &counts)?);
    }
    rounds.sort_by(|a, b| a.slope_kib().total_cmp(&b.slope_kib()));
    let (least, most) = (rounds[0].slope_kib(), rounds[rounds.len() - 1].slope_kib());
    let middle = &rounds[rounds.len() / 2];
    if most - least > middle.slope_kib().abs() * 0.1 {
        warnings.push(format!("other programs took or gave memory meanwhile: rounds from {least:.0} to {most:.0} KiB"));
    }
    let mut row = middle.row("paused-slope");
    row.values.insert("least_kib".into(), rounded(least, 1));
    row.values.insert("most_kib".into(), rounded(most, 1));
    row.values.insert("rounds".into(), rounds.len().into());
    cells.push(row);
    cells.extend(middle.steps("paused"));
    let running = running(options, &counts)?;
    cells.push(running.row("running-slope"));
    cells.extend(running.steps("running"));
    Ok(Report { scenario: "density".into(), machine: watch.end(warnings), cells })
}

/// Readings at rising numbers of sandboxes, and the one without any.
struct Series {
    empty: Reading,
    at: Vec<(usize, Reading)>,
}

impl Series {
    /// The part that the slope is taken from: all of it where fewer than two numbers are large enough.
    fn tail(&self) -> Vec<(usize, Reading)> {
        let large: Vec<_> = self.at.iter().copied().filter(|(count, _)| *count >= SLOPE_FROM).collect();
        if large.len() >= 2 { large } else { std::iter::once((0, self.empty)).chain(self.at.clone()).collect() }
    }

    fn slope(&self, kib: fn(&Reading) -> i64) -> f64 {
        let points: Vec<(f64, f64)> = self.tail().iter().map(|(n, reading)| (*n as f64, kib(reading) as f64)).collect();
        slope(&points).unwrap_or(0.0)
    }

    fn slope_kib(&self) -> f64 {
        self.slope(|reading| reading.used_kib)
    }

    fn row(&self, name: &str) -> Row {
        let tail = self.tail();
        Row::of_values(
            name,
            [
                ("kib", rounded(self.slope_kib(), 1)),
                ("pss_kib", rounded(self.slope(|reading| reading.pss_kib), 1)),
                ("from", tail.first().map_or(0, |(count, _)| *count).into()),
                ("to", tail.last().map_or(0, |(count, _)| *count).into()),
            ],
        )
    }

    /// A row for each number: what each sandbox costs on the whole.
    fn steps(&self, name: &str) -> Vec<Row> {
        let each = |kib: i64, empty: i64, count: usize| rounded((kib - empty) as f64 / count.max(1) as f64, 1);
        let row = |(count, reading): &(usize, Reading)| {
            Row::of_values(
                &format!("{name}-{count}"),
                [
                    ("kib", each(reading.used_kib, self.empty.used_kib, *count)),
                    ("pss_kib", each(reading.pss_kib, self.empty.pss_kib, *count)),
                ],
            )
        };
        self.at.iter().map(row).collect()
    }
}

/// Paused containers, held by a program that does nothing else.
fn paused(options: &Options, counts: &[usize]) -> anyhow::Result<Series> {
    let workspace = Workspace::create(options.root.as_deref())?;
    Image::create(&workspace.path().join("image"))?;
    let mut helper = holder(&workspace)?;
    // The mould and what else is made once.
    helper.ask(&Ask::Hold { count: 1 })?;
    let empty = Reading::settled(helper.process().pid())?;
    let mut at = Vec::with_capacity(counts.len());
    for &count in counts {
        interrupt::check()?;
        helper.ask(&Ask::Hold { count: count + 1 })?;
        at.push((count, Reading::settled(helper.process().pid())?));
    }
    Ok(Series { empty, at })
}

fn holder(workspace: &Workspace) -> anyhow::Result<Helper> {
    let hub = Hub::open(workspace.path(), "paused.sock")?;
    let words = |word: &str| word.to_owned();
    let program = vec![
        std::env::current_exe()?.display().to_string(),
        words("paused"),
        words("--connect"),
        hub.path().display().to_string(),
        words("--root"),
        workspace.path().display().to_string(),
    ];
    let settings = Settings { name: "paused".into(), program, ..Settings::default() };
    let keeper = Keeper::start(workspace, &settings)?;
    let log = keeper.log.clone();
    let process: Process = keeper.into_process();
    hub.accept(process, &log, false)
}

/// Running sandboxes of an agent that keeps no stock beside them.
fn running(options: &Options, counts: &[usize]) -> anyhow::Result<Series> {
    let workspace = Workspace::create(options.root.as_deref())?;
    let image = Image::create(&workspace.path().join("image"))?;
    let settings = Settings { name: "running".into(), make: Some("cast"), ..Settings::default() };
    let keeper = Keeper::start(&workspace, &settings)?;
    let mut agent = Agent::connect(&runtime()?, &keeper.socket)?;
    agent.import(&image.archive, REFERENCE).context("import the image")?;
    let mut create = |number: usize| {
        let request = request(&format!("stay-{number}"), &[Payload::Tiny.path(), "stay"]);
        agent.create(request).map(drop)
    };
    create(0)?;
    let process = keeper.into_process();
    let empty = Reading::settled(process.pid())?;
    let mut at = Vec::with_capacity(counts.len());
    let mut alive = 0;
    for &count in counts {
        while alive < count {
            interrupt::check()?;
            alive += 1;
            create(alive)?;
        }
        at.push((count, Reading::settled(process.pid())?));
    }
    Ok(Series { empty, at })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(points: &[(usize, i64)]) -> Series {
        let reading = |used_kib| Reading { used_kib, pss_kib: used_kib / 10 };
        Series { empty: reading(1000), at: points.iter().map(|&(n, kib)| (n, reading(1000 + kib))).collect() }
    }

    #[test]
    fn the_slope_leaves_out_what_is_made_once() {
        let many = series(&[(10, 50_000), (200, 100_000), (600, 180_000), (1000, 260_000)]);
        let row = many.row("paused-slope");
        assert_eq!((row.number("kib"), row.number("pss_kib")), (Some(200.0), Some(20.0)));
        assert_eq!((row.number("from"), row.number("to")), (Some(200.0), Some(1000.0)));
        assert_eq!(many.steps("paused")[1].number("kib"), Some(500.0));
        let few = series(&[(2, 600), (4, 1200)]);
        assert_eq!(few.row("paused-slope").number("kib"), Some(300.0));
    }
}
