//! What a paused container costs: by how much the machine's available memory drops for each one, everything in it
//! (the process, its page tables, cgroups, mounts, pipes, and what keeper, spawner and mould hold for it).

use crate::helper::{Hub, Process};
use crate::image::Image;
use crate::keeper::{Keeper, Settings};
use crate::machine::{CpuTime, Machine, available_kib, load};
use crate::protocol::Ask;
use crate::report::{Report, Row, rounded};
use crate::stats::{median, slope};
use crate::workspace::Workspace;
use crate::{helper::Helper, interrupt};
use anyhow::Context;
use std::path::PathBuf;
use std::time::Duration;

/// Where available memory is read.
const STEPS: [usize; 5] = [100, 200, 300, 400, 500];
/// Rounds, each with a new keeper; the middle slope counts.
const ROUNDS: usize = 3;
/// Readings at each step; the middle one counts.
const READINGS: usize = 15;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Where all files are kept while it runs [default: /tmp]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
}

/// Runs it.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let mut machine = None;
    let before = CpuTime::now();
    let mut slopes = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let workspace = Workspace::create(options.root.as_deref())?;
        Image::create(&workspace.path().join("image"))?;
        machine.get_or_insert_with(|| Machine::here(workspace.path()));
        slopes.push(round(&workspace)?);
    }
    let mut machine = machine.unwrap_or_default();
    machine.load_after = load();
    machine.steal_percent = rounded(CpuTime::now().steal_since(&before), 1).as_f64().unwrap_or(0.0);
    slopes.sort_by(f64::total_cmp);
    let kib = slopes[slopes.len() / 2];
    let (least, most) = (slopes[0], slopes[slopes.len() - 1]);
    if most - least > kib.abs() * 0.1 {
        machine
            .warnings
            .push(format!("other programs took or gave memory meanwhile: rounds from {least:.0} to {most:.0} KiB"));
    }
    let row = Row::of_values(
        "paused-slope",
        [
            ("kib", rounded(kib, 1)),
            ("least_kib", rounded(least, 1)),
            ("most_kib", rounded(most, 1)),
            ("from", STEPS[0].into()),
            ("to", STEPS[STEPS.len() - 1].into()),
            ("rounds", ROUNDS.into()),
        ],
    );
    Ok(Report { scenario: "memory".into(), machine, cells: vec![row] })
}

/// KiB per paused container, with a keeper of its own.
fn round(workspace: &Workspace) -> anyhow::Result<f64> {
    let mut helper = holder(workspace)?;
    let mut points = Vec::with_capacity(STEPS.len());
    for count in STEPS {
        interrupt::check()?;
        helper.ask(&Ask::Hold { count })?;
        points.push((count as f64, -(settled_kib()? as f64)));
    }
    slope(&points).context("no slope")
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

/// The median of some readings, after what was just made has come to rest.
fn settled_kib() -> anyhow::Result<i64> {
    std::thread::sleep(Duration::from_millis(500));
    let mut readings = Vec::with_capacity(READINGS);
    for _ in 0..READINGS {
        std::thread::sleep(Duration::from_millis(20));
        readings.push(available_kib()?);
    }
    Ok(median(&readings).unwrap_or(0))
}
