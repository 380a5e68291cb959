//! What the keeper's logs cost: writers of 100-byte lines, and a plain copier that frames, stamps and rotates the same
//! lines, in turns in one run.
//!
//! The time of a round is that from the common start of all writers to the last write into a file; the processor time
//! is that of the keeper with its kernel workers, or of the copier's thread. Both sides write into the same directory's
//! file system, into as many files of the same size, all larger than what is written, so that no line may be missing.
//! Ours also watches a second pipe per sandbox (its standard error) and serves its agent.

mod ours;
mod plain;
mod writers;

use crate::floor::copier::Rotation;
use crate::image::Image;
use crate::interrupt;
use crate::machine::Watch;
use crate::report::{Report, Row, rounded};
use crate::workspace::Workspace;
use ours::Ours;
use std::collections::BTreeMap;
use std::path::PathBuf;
use writers::{Found, Work};

/// How often a log is rotated.
const ROTATIONS: u64 = 4;
/// A log that is never rotated.
const WHOLE: Rotation = Rotation { max_bytes: 1 << 40, files: 2 };
/// Lines of one write(2) where writers are as fast as they can: as many as the C library's buffer takes. One at a time,
/// the writers are what is measured.
const TOGETHER: u64 = 40;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Numbers of writers
    #[arg(long, value_delimiter = ',', default_values_t = [1, 50, 500], value_name = "N,…")]
    pub writers: Vec<usize>,
    /// MiB that all writers of a round write together
    #[arg(long, default_value_t = 256, value_name = "MIB")]
    pub mib: u64,
    /// Rounds of each cell; the middle one counts
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub rounds: usize,
    /// Numbers of writers that share a steady rate
    #[arg(long, value_delimiter = ',', default_values_t = [50, 500], value_name = "N,…")]
    pub steady: Vec<usize>,
    /// Lines per second of all of them together
    #[arg(long, default_value_t = 20_000, value_name = "N")]
    pub rate: u64,
    /// Seconds of a round at the steady rate
    #[arg(long, default_value_t = 3, value_name = "S")]
    pub seconds: u64,
    /// The keeper's engine: uring or epoll [default: what it chooses]
    #[arg(long, default_value = "", hide_default_value = true, value_name = "ENGINE")]
    pub engine: String,
    /// Where all files are kept while it runs [default: /tmp]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
}

/// One round of one side.
#[derive(Debug, Clone, Copy)]
struct Round {
    cpu_ns: u64,
    took_ns: u64,
    found: Found,
}

impl Round {
    fn mb_per_s(&self, work: &Work) -> f64 {
        work.bytes() as f64 * 1e3 / self.took_ns.max(1) as f64
    }

    fn cpu_ms_per_mb(&self, work: &Work) -> f64 {
        self.cpu_ns as f64 / work.bytes() as f64
    }

    fn cpu_percent(&self) -> f64 {
        self.cpu_ns as f64 * 100.0 / self.took_ns.max(1) as f64
    }
}

/// Nanoseconds until writers begin, so that all of them have been started.
fn lead_ns(writers: usize) -> u64 {
    1_000_000_000 + writers as u64 * 20_000_000
}

/// Both sides of a kind of round.
struct Pair {
    name: String,
    work: Work,
    rotation: Rotation,
    ours: Vec<Round>,
    plain: Vec<Round>,
}

impl Pair {
    fn is_rotated(&self) -> bool {
        self.rotation.max_bytes < WHOLE.max_bytes
    }
}

/// Runs it.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let workspace = Workspace::create(options.root.as_deref())?;
    let image = Image::create(&workspace.path().join("image"))?;
    let program = writers::install(&image)?;
    let watch = Watch::begin(workspace.path());
    let mut whole = Ours::start(&workspace, "whole", &image, WHOLE, &options.engine)?;
    let mut pairs = pairs(options);
    // The size of a log file is the same for all logs of an agent.
    let mut rotated = BTreeMap::new();
    for pair in pairs.iter().filter(|pair| pair.is_rotated()) {
        let ours = Ours::start(&workspace, &format!("logs-{}", pair.name), &image, pair.rotation, &options.engine)?;
        rotated.insert(pair.name.clone(), ours);
    }
    for round in 0..options.rounds {
        for pair in &mut pairs {
            interrupt::check()?;
            let ours = rotated.get_mut(&pair.name).unwrap_or(&mut whole);
            // Who is first changes from round to round.
            for turn in 0..2 {
                if (round + turn) % 2 == 0 {
                    pair.ours.push(ours.round(&pair.work)?);
                } else {
                    pair.plain.push(plain::round(
                        &pair.work,
                        &program,
                        &workspace.path().join("plain"),
                        pair.rotation,
                    )?);
                }
            }
        }
    }
    let lost: u64 = pairs.iter().flat_map(|pair| &pair.ours).map(|round| round.found.lost).sum();
    let warnings = if lost > 0 { vec![format!("{lost} lines were lost")] } else { Vec::new() };
    let cells = pairs.iter().flat_map(rows).collect();
    Ok(Report { scenario: "logs".into(), machine: watch.end(warnings), cells })
}

fn pairs(options: &Options) -> Vec<Pair> {
    let mut pairs = Vec::new();
    let mut add = |name: String, work, rotation| {
        pairs.push(Pair { name, work, rotation, ours: Vec::new(), plain: Vec::new() });
    };
    for &writers in &options.writers {
        let lines = (options.mib << 20) / writers::LINE / writers.max(1) as u64;
        let work = Work { writers, lines, together: TOGETHER, per_second: 0 };
        add(writers.to_string(), work, WHOLE);
        // A record is 40 bytes longer than its line.
        let max_bytes = lines * (writers::LINE + 40) / ROTATIONS;
        add(format!("{writers}-rotated"), work, Rotation { max_bytes, files: 2 * ROTATIONS as usize });
    }
    for &writers in &options.steady {
        let per_second = (options.rate / writers.max(1) as u64).max(1);
        let work = Work { writers, lines: per_second * options.seconds, together: 1, per_second };
        add(format!("steady-{writers}"), work, WHOLE);
    }
    pairs
}

fn rows(pair: &Pair) -> [Row; 2] {
    let work = &pair.work;
    let sides = [("ours", &pair.ours, &pair.plain), ("plain", &pair.plain, &pair.ours)];
    sides.map(|(side, rounds, others)| {
        let middle = |figure: &dyn Fn(&Round) -> f64| median(rounds.iter().map(figure).collect());
        let ratio = |figure: &dyn Fn(&Round) -> f64| {
            median(rounds.iter().zip(others.iter()).map(|(own, other)| figure(own) / figure(other)).collect())
        };
        let stall_ns = rounds.iter().map(|round| round.found.stall_ns).max().unwrap_or(0);
        let lost: u64 = rounds.iter().map(|round| round.found.lost).sum();
        let mut row = Row::of_values(&format!("{side}-{}", pair.name), []);
        let mut put = |key: &str, value: serde_json::Value| row.values.insert(key.to_owned(), value);
        if work.per_second == 0 {
            put("mb_per_s", rounded(middle(&|round| round.mb_per_s(work)), 1));
        } else {
            put("lines_per_s", (work.per_second * work.writers as u64).into());
            put("cpu_percent", rounded(middle(&Round::cpu_percent), 1));
        }
        put("cpu_ms_per_mb", rounded(middle(&|round| round.cpu_ms_per_mb(work)), 2));
        put("lost", lost.into());
        put("stall_ms", rounded(stall_ns as f64 / 1e6, 1));
        if side == "ours" {
            if work.per_second == 0 {
                put("mb_per_s_ratio", rounded(ratio(&|round| round.mb_per_s(work)), 2));
            }
            put("cpu_ratio", rounded(ratio(&|round| round.cpu_ms_per_mb(work)), 2));
        }
        put("rounds", rounds.len().into());
        row
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
