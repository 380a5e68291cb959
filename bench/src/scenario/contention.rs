//! Starts beside busy loops, as many neighbours as processors have them and more: what a platform sees when its node is
//! full of work.

use crate::busy;
use crate::image::Image;
use crate::machine::Watch;
use crate::payload::Payload;
use crate::report::{Report, ratios};
use crate::sampler::{Pace, Sampler};
use crate::stand::Stand;
use crate::workspace::Workspace;
use std::path::PathBuf;
use std::time::Duration;

/// The cells, and what their rows begin with.
const CELLS: [(&str, &str); 3] = [("floor-spawn", "spawn"), ("agent-stock", "stock"), ("path", "path")];
/// Busy loops need a moment until the scheduler has spread them.
const SETTLE: Duration = Duration::from_secs(1);

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Samples of each cell
    #[arg(long, default_value_t = 500, value_name = "N")]
    pub n: usize,
    /// Numbers of busy loops beside, each a process with the default nice value
    #[arg(long, value_delimiter = ',', default_values_t = [2, 4], value_name = "N")]
    pub loops: Vec<usize>,
    /// What is started
    #[arg(long, value_enum, default_value_t = Payload::Tiny)]
    pub payload: Payload,
    /// Where the private node and all files are kept while it runs [default: /tmp]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Order of the samples
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
}

/// Runs it.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let workspace = Workspace::create(options.root.as_deref())?;
    let image = Image::create(&workspace.path().join("image"))?;
    let mut stand = Stand::new(&workspace, &image);
    let mut warnings = Vec::new();
    let mut sampler = Sampler::new(stand.cells(&CELLS.map(|(cell, _)| cell), &mut warnings)?);
    let watch = Watch::begin(workspace.path());
    let mut cells = Vec::new();
    for &loops in &options.loops {
        for index in 0..sampler.cells().len() {
            let cell = sampler.cells()[index].name();
            let label = CELLS.iter().find(|(name, _)| *name == cell).map(|(_, label)| format!("{label}-{loops}"));
            sampler.add(index, label, options.payload, options.n);
        }
        sampler.warm_up()?;
        let beside = busy::start(loops, workspace.path())?;
        std::thread::sleep(SETTLE);
        sampler.run(options.seed, Pace::Rest(Duration::from_millis(3)))?;
        drop(beside);
        cells.extend(sampler.take_rows(&format!("spawn-{loops}"), ratios::COLD));
    }
    warnings.append(&mut sampler.warnings);
    Ok(Report { scenario: "contention".into(), machine: watch.end(warnings), cells })
}
