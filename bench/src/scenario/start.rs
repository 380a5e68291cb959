//! From a call to the first act of the user's program, one start after the other.

use crate::agent::{Agent, runtime};
use crate::cell::{Cell, Remote, Source};
use crate::helper::{Helper, Hub, Process};
use crate::image::{Image, REFERENCE};
use crate::keeper::{Keeper, Settings};
use crate::machine::{CpuTime, Machine, load};
use crate::node::Node;
use crate::payload::Payload;
use crate::peer::Runtime as Peer;
use crate::plan::Plan;
use crate::report::{Report, Row, rounded};
use crate::rpc::{AgentRpc, WholePath};
use crate::stats::Summary;
use crate::workspace::Workspace;
use crate::{interrupt, lib_cells, machine};
use anyhow::{Context, bail};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

/// The cells, in the order in which they are shown.
pub const CELLS: [&str; 10] = [
    "floor-fork",
    "floor-spawn",
    "floor-cold",
    "agent-stock",
    "agent-cast",
    "agent-libcontainer",
    "agent-rpc",
    "path",
    "runc",
    "crun",
];
/// Cells that take tens of milliseconds: they get fewer samples.
const SLOW: [&str; 3] = ["agent-libcontainer", "runc", "crun"];
/// Samples of a slow cell.
const SLOW_SAMPLES: usize = 300;
/// Samples of each cell and payload that are taken first and thrown away.
const WARM_UP: usize = 5;
/// So many failures in a row switch a cell off.
const HOPELESS: usize = 10;

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
    let mut about = Machine::here(workspace.path());
    let mut bench = Bench::new(&workspace, &image)?;
    let mut warnings = Vec::new();
    let mut cells: Vec<Box<dyn Cell>> = Vec::new();
    for name in CELLS {
        if options.cells.is_empty() || options.cells.iter().any(|cell| cell == name) {
            interrupt::check()?;
            match bench.cell(name) {
                Ok(cell) => cells.push(cell),
                Err(error) => warnings.push(format!("{name} is left out: {error:#}")),
            }
        }
    }
    if cells.is_empty() {
        bail!("nothing to measure: {}", warnings.join("; "));
    }
    let mut units: Vec<Unit> = Vec::new();
    for (index, cell) in cells.iter().enumerate() {
        let samples = if SLOW.contains(&cell.name()) { options.n.min(SLOW_SAMPLES) } else { options.n };
        units.extend(options.payload.iter().map(|&payload| Unit::new(index, payload, samples)));
    }
    let gap = Duration::from_micros(options.gap_us);
    for unit in &mut units {
        for _ in 0..WARM_UP {
            interrupt::check()?;
            if let Err(error) = cells[unit.cell].start(unit.payload) {
                warnings.push(format!("{} {}: {error:#}", cells[unit.cell].name(), unit.payload.name()));
                break;
            }
        }
    }
    let before = CpuTime::now();
    about.load_before = load();
    let plan = Plan::new(units.iter().map(|unit| unit.samples).collect(), options.seed);
    let mut progress = Progress::new(plan.total());
    for round in plan.rounds() {
        for unit in round {
            interrupt::check()?;
            machine::rest(gap);
            let unit = &mut units[unit];
            unit.sample(cells[unit.cell].as_mut());
            progress.step(cells[unit.cell].name());
        }
    }
    progress.end();
    about.load_after = load();
    about.steal_percent = rounded(CpuTime::now().steal_since(&before), 1).as_f64().unwrap_or(0.0);
    for unit in &units {
        warnings.extend(unit.warning(cells[unit.cell].name()));
    }
    if about.load_before > about.cpus as f64 * 0.75 {
        warnings.push(format!("the machine was busy with other things: load {:.2} at the start", about.load_before));
    }
    if about.steal_percent > 1.0 {
        warnings.push(format!("the hypervisor took {:.1} % of the time away", about.steal_percent));
    }
    let mut rows: Vec<Row> = units.iter().map(|unit| unit.row(cells[unit.cell].as_ref())).collect();
    rows.sort_by_key(|row| row.payload);
    add_ratios(&mut rows);
    for cell in cells.iter_mut().filter(|cell| cell.name().starts_with("agent-")) {
        let stages = cell.stages();
        if !stages.is_empty() {
            let values = stages.iter().map(|(stage, us)| (stage.as_str(), rounded(*us, 1)));
            rows.push(Row::of_values(&format!("{}-stages-us", cell.name()), values));
        }
    }
    about.warnings = warnings;
    Ok(Report { scenario: "start".into(), machine: about, cells: rows })
}

/// One cell with one payload, and what was found.
struct Unit {
    cell: usize,
    payload: Payload,
    samples: usize,
    took_ns: Vec<u64>,
    sources: BTreeMap<Source, u64>,
    failed: u64,
    retried: u64,
    in_a_row: usize,
    last_error: Option<String>,
}

impl Unit {
    fn new(cell: usize, payload: Payload, samples: usize) -> Self {
        Self {
            cell,
            payload,
            samples,
            took_ns: Vec::with_capacity(samples),
            sources: BTreeMap::new(),
            failed: 0,
            retried: 0,
            in_a_row: 0,
            last_error: None,
        }
    }

    /// Takes one sample. A start that fails is counted and tried once more.
    fn sample(&mut self, cell: &mut dyn Cell) {
        if self.in_a_row >= HOPELESS {
            return;
        }
        for attempt in 0..2 {
            self.retried += attempt;
            let started = cell.start(self.payload);
            match started.and_then(|s| Ok((s.took_ns().context("a stamp from before the call")?, s.source))) {
                Ok((took_ns, source)) => {
                    self.in_a_row = 0;
                    self.took_ns.push(took_ns);
                    if let Some(source) = source {
                        *self.sources.entry(source).or_default() += 1;
                    }
                    return;
                }
                Err(error) => {
                    self.failed += 1;
                    self.in_a_row += 1;
                    self.last_error = Some(format!("{error:#}"));
                }
            }
        }
    }

    fn warning(&self, name: &str) -> Option<String> {
        let error = self.last_error.as_ref()?;
        let hopeless = if self.in_a_row >= HOPELESS { ", given up" } else { "" };
        Some(format!("{name} {}: {} starts failed{hopeless}, the last with: {error}", self.payload.name(), self.failed))
    }

    fn row(&self, cell: &dyn Cell) -> Row {
        let mut row = Row {
            name: cell.name().to_owned(),
            payload: Some(self.payload),
            summary: Summary::of(&self.took_ns),
            ..Row::default()
        };
        row.values.insert("failed".into(), self.failed.into());
        row.values.insert("retried".into(), self.retried.into());
        if !self.sources.is_empty() {
            for (source, key) in
                [(Source::Stock, "stock"), (Source::Cast, "cast"), (Source::Libcontainer, "libcontainer")]
            {
                row.values.insert(key.into(), self.sources.get(&source).copied().unwrap_or(0).into());
            }
        }
        if !cell.leaves_out().is_empty() {
            row.values.insert("leaves_out".into(), cell.leaves_out().into());
        }
        row
    }
}

/// Adds to each row how it compares with the floors of the same payload.
fn add_ratios(rows: &mut [Row]) {
    let floor = |rows: &[Row], name: &str, payload| {
        rows.iter().find(|row| row.name == name && row.payload == payload).and_then(|row| row.summary)
    };
    for index in 0..rows.len() {
        let payload = rows[index].payload;
        let Some(own) = rows[index].summary else { continue };
        let mut ratios = Vec::new();
        if let Some(spawn) = floor(rows, "floor-spawn", payload) {
            ratios.push(("spawn_p50_ratio", own.p50_us / spawn.p50_us));
            ratios.push(("spawn_p99_ratio", own.p99_us / spawn.p99_us));
        }
        if let Some(cold) = floor(rows, "floor-cold", payload) {
            ratios.push(("cold_p50_ratio", own.p50_us / cold.p50_us));
        }
        for (key, ratio) in ratios {
            rows[index].values.insert(key.into(), rounded(ratio, 3));
        }
    }
}

/// What cells need, started when the first one needs it. Fields end in this order: helpers before their keepers.
struct Bench<'a> {
    workspace: &'a Workspace,
    image: &'a Image,
    launcher: Option<Rc<RefCell<Helper>>>,
    keepers: Vec<Keeper>,
    node: Option<Node>,
}

impl<'a> Bench<'a> {
    fn new(workspace: &'a Workspace, image: &'a Image) -> anyhow::Result<Self> {
        Ok(Self { workspace, image, launcher: None, keepers: Vec::new(), node: None })
    }

    fn cell(&mut self, name: &'static str) -> anyhow::Result<Box<dyn Cell>> {
        Ok(match name {
            "floor-fork" | "floor-spawn" => {
                let launcher = self.launcher()?;
                Box::new(Remote::new(name, "everything but the process", &launcher))
            }
            "floor-cold" => Box::new(Remote::new(name, "admission, log, record", &self.launcher()?)),
            "runc" => {
                Peer::Runc.find().context("runc is not installed")?;
                Box::new(Remote::new(name, "seccomp, overlay, log", &self.launcher()?))
            }
            "crun" => {
                Peer::Crun.find().context("crun is not installed")?;
                let launcher = launcher(self.workspace, true)?;
                Box::new(Remote::new(name, "seccomp, overlay, log", &Rc::new(RefCell::new(launcher))))
            }
            "agent-stock" | "agent-cast" | "agent-libcontainer" => {
                let helper = lib_cells::start(self.workspace, self.image, name)?;
                Box::new(Remote::new(name, "", &Rc::new(RefCell::new(helper))))
            }
            "agent-rpc" => Box::new(self.agent_rpc()?),
            "path" => Box::new(self.whole_path()?),
            other => bail!("no such cell: {other}"),
        })
    }

    fn launcher(&mut self) -> anyhow::Result<Rc<RefCell<Helper>>> {
        if self.launcher.is_none() {
            self.launcher = Some(Rc::new(RefCell::new(launcher(self.workspace, false)?)));
        }
        self.launcher.clone().context("no launcher")
    }

    fn agent_rpc(&mut self) -> anyhow::Result<AgentRpc> {
        let settings = Settings { name: "rpc".into(), warm: vec![REFERENCE.into()], ..Settings::default() };
        let keeper = Keeper::start(self.workspace, &settings)?;
        let socket = keeper.socket.clone();
        self.keepers.push(keeper);
        let mut agent = Agent::connect(&runtime()?, &socket)?;
        agent.import(&self.image.archive, REFERENCE)?;
        agent.warm(REFERENCE)?;
        Ok(AgentRpc::new(agent))
    }

    fn whole_path(&mut self) -> anyhow::Result<WholePath> {
        let node = Node::up(self.workspace)?;
        let sockets = (node.controller()?, node.agent()?);
        self.node = Some(node);
        let runtime = runtime()?;
        let mut agent = Agent::connect(&runtime, &sockets.1)?;
        agent.import(&self.image.archive, REFERENCE)?;
        agent.warm(REFERENCE)?;
        WholePath::connect(&runtime, &sockets.0, agent)
    }
}

/// Starts a launcher.
fn launcher(workspace: &Workspace, hide_unified: bool) -> anyhow::Result<Helper> {
    let name = if hide_unified { "launcher-crun" } else { "launcher" };
    let hub = Hub::open(workspace.path(), &format!("{name}.sock"))?;
    let log = workspace.path().join(format!("{name}.out"));
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("launcher").arg("--connect").arg(hub.path()).arg("--root").arg(workspace.path());
    command.arg("--cgroup").arg(workspace.name());
    if hide_unified {
        command.arg("--hide-unified");
    }
    let process = Process::start(&mut command, name, &log)?;
    hub.accept(process, &log, true)
}

/// Writes a report where it was asked for.
pub fn save(report: &Report, path: &Path) -> anyhow::Result<()> {
    std::fs::write(path, report.to_json()).with_context(|| path.display().to_string())
}

/// One line on a terminal; nothing elsewhere.
struct Progress {
    total: usize,
    done: usize,
    shown: bool,
}

impl Progress {
    fn new(total: usize) -> Self {
        Self { total, done: 0, shown: std::io::stderr().is_terminal() }
    }

    fn step(&mut self, name: &str) {
        self.done += 1;
        if self.shown && self.done.is_multiple_of(50) {
            let _ = write!(std::io::stderr(), "\r{:>3} %  {name:<20}", self.done * 100 / self.total.max(1));
        }
    }

    fn end(&self) {
        if self.shown {
            let _ = write!(std::io::stderr(), "\r{:40}\r", "");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Started;

    struct Flaky(u32);

    impl Cell for Flaky {
        fn name(&self) -> &'static str {
            "flaky"
        }

        fn start(&mut self, _: Payload) -> anyhow::Result<Started> {
            self.0 += 1;
            match self.0 % 3 {
                0 => bail!("no"),
                1 => Ok(Started { called_ns: 1000, stamp_ns: 4000, source: Some(Source::Cast) }),
                _ => Ok(Started { called_ns: 2000, stamp_ns: 1000, source: None }),
            }
        }
    }

    #[test]
    fn failed_and_retried_starts_are_counted_and_never_timed() {
        let mut unit = Unit::new(0, Payload::Tiny, 10);
        let mut cell = Flaky(0);
        for _ in 0..3 {
            unit.sample(&mut cell);
        }
        // 1 works, 2 (a stamp before its call) and 3 fail, 4 works.
        let row = unit.row(&cell);
        assert_eq!((row.summary.unwrap().n, row.number("failed"), row.number("retried")), (2, Some(2.0), Some(1.0)));
        assert_eq!((row.number("cast"), row.number("stock")), (Some(2.0), Some(0.0)));
        assert!(unit.warning("flaky").unwrap().contains("the last with: no"));
    }

    #[test]
    fn ratios_are_to_the_floors_of_the_same_payload() {
        let row = |name: &str, payload, us: u64| Row {
            name: name.into(),
            payload: Some(payload),
            summary: Summary::of(&[us * 1000]),
            ..Row::default()
        };
        let mut rows = vec![
            row("floor-spawn", Payload::Tiny, 100),
            row("floor-cold", Payload::Tiny, 800),
            row("agent-cast", Payload::Tiny, 1200),
            row("floor-spawn", Payload::Libc, 400),
            row("path", Payload::Libc, 600),
        ];
        add_ratios(&mut rows);
        assert_eq!(rows[2].number("spawn_p50_ratio"), Some(12.0));
        assert_eq!(rows[2].number("cold_p50_ratio"), Some(1.5));
        assert_eq!(rows[4].number("spawn_p50_ratio"), Some(1.5));
        assert_eq!(rows[4].number("cold_p50_ratio"), None);
    }
}
