//! One start each 200 ms: caches are cold, processors asleep, nothing is in step. A start counts from the moment at
//! which it was to begin, so that what held it up is in its time.

use crate::image::Image;
use crate::machine::Watch;
use crate::payload::Payload;
use crate::report::{Report, ratios};
use crate::sampler::{Pace, Sampler};
use crate::stand::{CELLS, Stand};
use crate::workspace::Workspace;
use std::path::PathBuf;
use std::time::Duration;

/// What is staggered where nothing is asked for.
const DEFAULT: [&str; 5] = ["floor-spawn", "floor-cold", "agent-stock", "agent-cast", "path"];

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Samples of each cell and payload
    #[arg(long, default_value_t = 300, value_name = "N")]
    pub n: usize,
    /// Milliseconds from one start to the next, whichever cell it is of
    #[arg(long, default_value_t = 200, value_name = "MS")]
    pub interval_ms: u64,
    /// What is started
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Payload::Tiny])]
    pub payload: Vec<Payload>,
    /// Which cells
    #[arg(long, value_delimiter = ',', value_name = "NAMES", default_values_t = DEFAULT.map(String::from),
          value_parser = clap::builder::PossibleValuesParser::new(CELLS))]
    pub cells: Vec<String>,
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
    let names: Vec<&str> = CELLS.into_iter().filter(|name| options.cells.iter().any(|cell| cell == name)).collect();
    let mut sampler = Sampler::new(stand.cells(&names, &mut warnings)?);
    for index in 0..sampler.cells().len() {
        for &payload in &options.payload {
            sampler.add(index, None, payload, options.n);
        }
    }
    sampler.warm_up()?;
    let watch = Watch::begin(workspace.path());
    sampler.run(options.seed, Pace::Every(Duration::from_millis(options.interval_ms)))?;
    warnings.append(&mut sampler.warnings);
    let machine = watch.end(warnings);
    Ok(Report { scenario: "staggered".into(), machine, cells: sampler.take_rows(ratios::SPAWN, ratios::COLD) })
}
