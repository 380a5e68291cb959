//! Many starts asked for in one instant: when has each of them, and the last, reached the user's program. Ours from the
//! stock, which is made as large as the burst beforehand, ours through the whole path, and posix_spawn of as many.

use crate::bootstrap::Resampled;
use crate::burst::{Ask, Burst};
use crate::cell::{Cell, Source};
use crate::image::Image;
use crate::interrupt;
use crate::machine::{self, Watch};
use crate::payload::Payload;
use crate::progress::Progress;
use crate::report::{Report, Row, rounded};
use crate::stand::Stand;
use crate::stats::Summary;
use crate::workspace::Workspace;
use anyhow::bail;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// The cells, and what their rows begin with.
const CELLS: [(&str, &str); 3] = [("floor-spawn", "spawn"), ("agent-stock", "ours"), ("path", "path")];
/// Fewest rounds of a size.
const LEAST_ROUNDS: usize = 10;
/// What a paused container is reckoned with, generously.
const BYTES_EACH: usize = 512 << 10;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How many at once
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100, 500], value_name = "N")]
    pub sizes: Vec<usize>,
    /// Least samples of each cell: rounds are added until that many have started, but at least 10
    #[arg(long, default_value_t = 300, value_name = "N")]
    pub n: usize,
    /// Rounds of each size, whatever that comes to
    #[arg(long, value_name = "N")]
    pub rounds: Option<usize>,
    /// What is started
    #[arg(long, value_enum, default_value_t = Payload::Tiny)]
    pub payload: Payload,
    /// Where the private node and all files are kept while it runs [default: /tmp]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Order of the cells
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
}

/// Runs it.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let mut watch = None;
    let (mut warnings, mut cells) = (Vec::new(), Vec::new());
    let rounds = |size: usize| options.rounds.unwrap_or_else(|| options.n.div_ceil(size.max(1)).max(LEAST_ROUNDS));
    let mut progress = Progress::new(options.sizes.iter().map(|&size| rounds(size) * CELLS.len()).sum());
    for &size in &options.sizes {
        if size == 0 {
            bail!("a burst of nothing");
        }
        let workspace = Workspace::create(options.root.as_deref())?;
        watch.get_or_insert_with(|| Watch::begin(workspace.path()));
        cells.extend(of_size(&workspace, size, rounds(size), options, &mut progress, &mut warnings)?);
    }
    progress.end();
    let Some(watch) = watch else { bail!("no burst was asked for") };
    Ok(Report { scenario: "burst".into(), machine: watch.end(warnings), cells })
}

fn of_size(
    workspace: &Workspace,
    size: usize,
    rounds: usize,
    options: &Options,
    progress: &mut Progress,
    warnings: &mut Vec<String>,
) -> anyhow::Result<Vec<Row>> {
    let image = Image::create(&workspace.path().join("image"))?;
    let mut stand = Stand::new(workspace, &image);
    stand.env = vec![
        ("POOL_PER_IMAGE".into(), size.to_string()),
        ("POOL_MEMORY".into(), (size * BYTES_EACH + (64 << 20)).to_string()),
    ];
    let mut cells = stand.cells(&CELLS.map(|(cell, _)| cell), warnings)?;
    let mut found: Vec<Vec<Burst>> = vec![Vec::new(); cells.len()];
    let mut order: Vec<usize> = (0..cells.len()).collect();
    let mut random = StdRng::seed_from_u64(options.seed);
    // The first round warms up and is thrown away.
    for round in 0..=rounds {
        order.shuffle(&mut random);
        for &index in &order {
            interrupt::check()?;
            machine::rest(Duration::from_millis(50));
            let cell: &mut dyn Cell = cells[index].as_mut();
            match cell.burst(Ask { payload: options.payload, count: size }) {
                Ok(burst) if round > 0 => found[index].push(burst),
                Ok(_) => {}
                Err(error) => {
                    warnings.push(format!("{} at {size}: {error:#}", cell.name()));
                    let failed = Burst { failed: size as u64, ..Burst::default() };
                    found[index].push(failed);
                }
            }
            if round > 0 {
                progress.step(cell.name());
            }
        }
    }
    let mut rows = Vec::new();
    for (cell, bursts) in cells.iter_mut().zip(&found) {
        let Some((_, label)) = CELLS.iter().find(|(name, _)| *name == cell.name()) else { continue };
        if let Some(error) = bursts.iter().find_map(|burst| burst.error.as_ref()) {
            warnings.push(format!("{label}-{size}: a start failed: {error}"));
        }
        let mut row = row(format!("{label}-{size}"), options.payload, bursts);
        if let Some(us) = cell.refill_us() {
            row.values.insert("refill_cpu_us".into(), rounded(us, 1));
        }
        rows.push(row);
    }
    add_ratio(&mut rows, &found);
    Ok(rows)
}

fn row(name: String, payload: Payload, bursts: &[Burst]) -> Row {
    let mut row =
        Row { name, payload: Some(payload), ..Row::of_samples(bursts.iter().flat_map(Burst::took_ns).collect()) };
    let lasts = lasts(bursts);
    if let Some(last) = Summary::of(&lasts) {
        row.values.insert("last_us".into(), rounded(last.p50_us, 1));
        row.values.insert("last_max_us".into(), rounded(last.max_us, 1));
    }
    if let Some(interval) = Resampled::of(&lasts, &[50], 0).interval(0) {
        row.values.insert("last_low_us".into(), rounded(interval.low / 1e3, 1));
        row.values.insert("last_high_us".into(), rounded(interval.high / 1e3, 1));
    }
    let failed: u64 = bursts.iter().map(|burst| burst.failed).sum();
    let started = row.samples_ns.len() as u64;
    row.values.insert("rounds".into(), bursts.len().into());
    row.values.insert("failed".into(), failed.into());
    row.values.insert("retried".into(), 0.into());
    row.values.insert("success_percent".into(), rounded(started as f64 * 100.0 / (started + failed).max(1) as f64, 2));
    let mut sources: BTreeMap<Source, u64> = BTreeMap::new();
    for (source, count) in bursts.iter().flat_map(|burst| &burst.sources) {
        *sources.entry(*source).or_default() += count;
    }
    row.put_sources(&sources);
    row
}

/// The median of the last stamps against that of posix_spawn, with the interval that the rounds allow.
fn add_ratio(rows: &mut [Row], found: &[Vec<Burst>]) {
    let resampled: Vec<Resampled> =
        found.iter().enumerate().map(|(i, bursts)| Resampled::of(&lasts(bursts), &[50], i as u64)).collect();
    let Some(spawn) = rows.iter().position(|row| row.name.starts_with("spawn-")) else { return };
    let Some(by) = rows[spawn].number("last_us") else { return };
    for index in (0..rows.len()).filter(|&index| index != spawn) {
        let Some(own) = rows[index].number("last_us") else { continue };
        rows[index].values.insert("spawn_last_ratio".into(), rounded(own / by, 3));
        if let Some(interval) = resampled[index].ratio(&resampled[spawn], 0) {
            rows[index].values.insert("spawn_last_ratio_low".into(), rounded(interval.low, 3));
            rows[index].values.insert("spawn_last_ratio_high".into(), rounded(interval.high, 3));
        }
    }
}

fn lasts(bursts: &[Burst]) -> Vec<u64> {
    bursts.iter().filter_map(Burst::last_ns).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bursts(us: u64, failed: u64) -> Vec<Burst> {
        let one = |n: u64| Burst { failed, stamps_ns: vec![us * 500, us * 1000 + n], ..Burst::at(0) };
        (0..20).map(one).collect()
    }

    #[test]
    fn a_row_tells_the_last_stamp_and_what_failed_with_its_ratio_to_posix_spawn() {
        let found = [bursts(100, 0), bursts(150, 1)];
        let mut rows =
            vec![row("spawn-2".into(), Payload::Tiny, &found[0]), row("ours-2".into(), Payload::Tiny, &found[1])];
        add_ratio(&mut rows, &found);
        assert_eq!(rows[1].number("last_us"), Some(150.0));
        assert_eq!((rows[1].number("failed"), rows[1].number("success_percent")), (Some(20.0), Some(66.67)));
        assert_eq!(rows[1].number("spawn_last_ratio"), Some(1.5));
        assert!(rows[1].number("spawn_last_ratio_low") <= Some(1.5));
        assert_eq!(rows[0].number("spawn_last_ratio"), None);
        assert_eq!(rows[0].summary.unwrap().n, 40);
    }
}
