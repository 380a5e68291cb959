//! The agent server is killed while sandboxes run: how long until it serves again and knows all of them.

use crate::agent::{Agent, runtime};
use crate::clock;
use crate::image::{Image, REFERENCE};
use crate::interrupt;
use crate::keeper::{Keeper, Settings};
use crate::machine::Watch;
use crate::payload::Payload;
use crate::report::{Report, Row, rounded};
use crate::rpc::request;
use crate::workspace::Workspace;
use anyhow::bail;
use fsb_proto::agent::InstancePhase;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::HashSet;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// It must serve again within this time.
const PATIENCE: Duration = Duration::from_secs(30);
/// A server that dies young is restarted with back-off: this measures the first death, again and again.
const BETWEEN: Duration = Duration::from_secs(2);

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Numbers of running sandboxes, rising
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1000], value_name = "N,…")]
    pub n: Vec<usize>,
    /// How often the server is killed with each number; the slowest return counts
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub rounds: usize,
    /// Where all files are kept while it runs [default: /tmp]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
}

/// Runs it.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let workspace = Workspace::create(options.root.as_deref())?;
    let image = Image::create(&workspace.path().join("image"))?;
    let watch = Watch::begin(workspace.path());
    let keeper = Keeper::start(&workspace, &Settings { name: "recover".into(), ..Settings::default() })?;
    let runtime = runtime()?;
    Agent::connect(&runtime, &keeper.socket)?.import(&image.archive, REFERENCE)?;
    let mut ids = HashSet::new();
    let (mut cells, mut warnings) = (Vec::new(), Vec::new());
    for &count in &options.n {
        // Those of the number before are still there.
        let mut agent = Agent::connect(&runtime, &keeper.socket)?;
        for number in ids.len()..count {
            interrupt::check()?;
            let request = request(&format!("stay-{number}"), &[Payload::Tiny.path(), "stay"]);
            ids.insert(agent.create(request)?.instance_id);
        }
        let mut returns = Vec::with_capacity(options.rounds);
        for _ in 0..options.rounds {
            std::thread::sleep(BETWEEN);
            interrupt::check()?;
            returns.push(round(&runtime, &keeper, &ids)?);
        }
        let slowest = returns.iter().map(|(serving_ns, _)| *serving_ns).max().unwrap_or(0);
        let quickest = returns.iter().map(|(serving_ns, _)| *serving_ns).min().unwrap_or(0);
        let lost = returns.iter().map(|(_, lost)| *lost).max().unwrap_or(0);
        if lost > 0 {
            warnings.push(format!("{lost} of {count} sandboxes were lost"));
        }
        cells.push(Row::of_values(
            &format!("sandboxes-{count}"),
            [
                ("serving_ms", rounded(slowest as f64 / 1e6, 1)),
                ("least_ms", rounded(quickest as f64 / 1e6, 1)),
                ("lost", lost.into()),
                ("rounds", options.rounds.into()),
            ],
        ));
    }
    Ok(Report { scenario: "recover".into(), machine: watch.end(warnings), cells })
}

/// Kills the server. Returns the nanoseconds until it has said what runs, and how many of `ids` it does not know.
fn round(runtime: &Rc<Runtime>, keeper: &Keeper, ids: &HashSet<String>) -> anyhow::Result<(u64, usize)> {
    let old = keeper.agent()?;
    let killed = clock::now_ns();
    kill(Pid::from_raw(old), Signal::SIGKILL)?;
    loop {
        if let Ok(mut agent) = Agent::try_connect(runtime, &keeper.socket)
            && let Ok(status) = agent.status()
        {
            let serving_ns = clock::now_ns() - killed;
            let running = status.instances.iter().filter(|i| i.phase == InstancePhase::Running as i32);
            let known = running.filter(|instance| ids.contains(&instance.instance_id)).count();
            return Ok((serving_ns, ids.len() - known));
        }
        if clock::now_ns() - killed > PATIENCE.as_nanos() as u64 {
            bail!("the agent does not serve {PATIENCE:?} after it was killed; see {}", keeper.log.display());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
