//! From a call to the first act of the user's program, one start after the other.

use crate::image::Image;
use crate::machine::Watch;
use crate::payload::Payload;
use crate::report::{Report, ratios};
use crate::sampler::{Pace, Sampler};
use crate::stand::{CELLS, Stand};
use crate::workspace::Workspace;
use std::path::PathBuf;
use std::time::Duration;

/// Cells that take tens of milliseconds: they get fewer samples.
const SLOW: [&str; 6] = ["agent-libcontainer", "bwrap", "crun", "runc", "youki", "containerd"];
/// Samples of a slow cell.
const SLOW_SAMPLES: usize = 300;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Samples of each cell and payload (slow cells: at most 300)
    #[arg(long, default_value_t = 1000, value_name = "N")]
    pub n: usize,
    /// What is started
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Payload::ALL)]
    pub payload: Vec<Payload>,
    /// Which cells [default: all that this machine can run]
    #[arg(long, value_delimiter = ',', value_name = "NAMES", value_parser = clap::builder::PossibleValuesParser::new(CELLS))]
    pub cells: Vec<String>,
    /// Where the private node and all files are kept while it runs [default: /tmp]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Order of the samples
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Least microseconds between two samples; up to 15 ms more until nothing else runs
    #[arg(long, default_value_t = 3000, value_name = "US")]
    pub gap_us: u64,
}

/// Runs it.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let workspace = Workspace::create(options.root.as_deref())?;
    let image = Image::create(&workspace.path().join("image"))?;
    let mut stand = Stand::new(&workspace, &image);
    let mut warnings = Vec::new();
    let wanted = |name: &&str| options.cells.is_empty() || options.cells.iter().any(|cell| cell == name);
    let names: Vec<&str> = CELLS.into_iter().filter(wanted).collect();
    let mut sampler = Sampler::new(stand.cells(&names, &mut warnings)?);
    for index in 0..sampler.cells().len() {
        let slow = SLOW.contains(&sampler.cells()[index].name());
        let samples = if slow { options.n.min(SLOW_SAMPLES) } else { options.n };
        for &payload in &options.payload {
            sampler.add(index, None, payload, samples);
        }
    }
    sampler.warm_up()?;
    let watch = Watch::begin(workspace.path());
    sampler.run(options.seed, Pace::Rest(Duration::from_micros(options.gap_us)))?;
    warnings.append(&mut sampler.warnings);
    let machine = watch.end(warnings);
    let mut cells = sampler.take_rows(ratios::SPAWN, ratios::COLD);
    cells.extend(sampler.stages());
    Ok(Report { scenario: "start".into(), machine, cells })
}
