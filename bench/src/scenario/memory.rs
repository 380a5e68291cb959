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
use std::path::PathBuf;
use std::time::Duration;

/// Where available memory is read.
const STEPS: [usize; 5] = [100, 200, 300, 400, 500];
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
    let workspace = Workspace::create(options.root.as_deref())?;
    Image::create(&workspace.path().join("image"))?;
    let mut machine = Machine::here(workspace.path());
    let before = CpuTime::now();
    let mut helper = holder(&workspace)?;
    let mut points = Vec::new();
    for count in STEPS {
        interrupt::check()?;
        helper.ask(&Ask::Hold { count })?;
        points.push((count as f64, -(settled_kib()? as f64)));
    }
    machine.load_after = load();
    machine.steal_percent = CpuTime::now().steal_since(&before);
    let kib = slope(&points).unwrap_or(f64::NAN);
    let ends = (points[points.len() - 1].1 - points[0].1) / (STEPS[STEPS.len() - 1] - STEPS[0]) as f64;
    let mut warnings = Vec::new();
    if (kib - ends).abs() > kib * 0.1 {
        warnings.push(format!("other programs took or gave memory meanwhile: the ends alone say {ends:.0} KiB"));
    }
    let row = Row::of_values(
        "paused-slope",
        [
            ("kib", rounded(kib, 1)),
            ("ends_kib", rounded(ends, 1)),
            ("from", STEPS[0].into()),
            ("to", STEPS[STEPS.len() - 1].into()),
        ],
    );
    Ok(Report { scenario: "memory".into(), machine, cells: vec![row], warnings })
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
