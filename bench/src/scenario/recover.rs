//! The agent server is killed while sandboxes run: how long until it serves again and knows all of them.

use crate::agent::{Agent, runtime};
use crate::clock;
use crate::image::{Image, REFERENCE};
use crate::interrupt;
use crate::keeper::{Keeper, Settings};
use crate::machine::{CpuTime, Machine, load};
use crate::payload::Payload;
use crate::report::{Report, Row, rounded};
use crate::rpc::request;
use crate::workspace::Workspace;
use anyhow::bail;
use fsb_proto::agent::InstancePhase;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::PathBuf;
use std::time::Duration;

/// It must serve again within this time.
const PATIENCE: Duration = Duration::from_secs(30);

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Running sandboxes
    #[arg(long, default_value_t = 200, value_name = "N")]
    pub n: usize,
    /// How often the server is killed; the slowest return counts
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
    let mut machine = Machine::here(workspace.path());
    let before = CpuTime::now();
    let keeper = Keeper::start(&workspace, &Settings { name: "recover".into(), ..Settings::default() })?;
    let runtime = runtime()?;
    let mut agent = Agent::connect(&runtime, &keeper.socket)?;
    agent.import(&image.archive, REFERENCE)?;
    let mut ids = Vec::with_capacity(options.n);
    for number in 0..options.n {
        interrupt::check()?;
        let request = request(&format!("stay-{number}"), &[Payload::Tiny.path(), "stay"]);
        ids.push(agent.create(request)?.instance_id);
    }
    let (mut slowest_ns, mut lost) = (0, 0);
    for _ in 0..options.rounds {
        interrupt::check()?;
        let old = keeper.agent()?;
        let killed = clock::now_ns();
        kill(Pid::from_raw(old), Signal::SIGKILL)?;
        let mut running = Vec::new();
        let served = loop {
            if let Ok(mut agent) = Agent::try_connect(&runtime, &keeper.socket)
                && let Ok(status) = agent.status()
            {
                let served = clock::now_ns();
                let runs = |phase| phase == InstancePhase::Running as i32;
                running.extend(status.instances.into_iter().filter(|i| runs(i.phase)).map(|i| i.instance_id));
                break served;
            }
            if clock::now_ns() - killed > PATIENCE.as_nanos() as u64 {
                bail!("the agent does not serve {PATIENCE:?} after it was killed; see {}", keeper.log.display());
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        slowest_ns = slowest_ns.max(served - killed);
        lost = lost.max(ids.iter().filter(|id| !running.contains(id)).count());
        // A server that dies young is restarted with back-off: this measures the first death, again and again.
        std::thread::sleep(Duration::from_secs(2));
    }
    machine.load_after = load();
    machine.steal_percent = CpuTime::now().steal_since(&before);
    let row = Row::of_values(
        &format!("sandboxes-{}", options.n),
        [("serving_ms", rounded(slowest_ns as f64 / 1e6, 1)), ("lost", lost.into()), ("rounds", options.rounds.into())],
    );
    if lost > 0 {
        machine.warnings.push(format!("{lost} sandboxes were lost"));
    }
    Ok(Report { scenario: "recover".into(), machine, cells: vec![row] })
}
