//! Our agent without RPC: `agent-stock`, `agent-cast`, `agent-libcontainer`. A private keeper starts this program in
//! the place of fsb-agent; it opens the agent's library on the keeper's socket and calls its start directly, from a
//! task of the agent's own runtime, as a gRPC handler would. Admission, bind and default limits are included.

use crate::agent::Stock;
use crate::burst::{self, Burst};
use crate::cell::{Source, Started};
use crate::clock;
use crate::helper::{Helper, Hub};
use crate::image::{Image, REFERENCE};
use crate::keeper::{Keeper, Settings};
use crate::payload::{Payload, parse_stamp};
use crate::protocol::{Answer, Ask, Line};
use crate::rpc::request;
use crate::workspace::Workspace;
use anyhow::{Context, bail};
use fsb_agent::{Agent, Config};
use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// How long the stock may take to be full before a burst.
const REFILLED: Duration = Duration::from_secs(45);
/// How long a payload may take to its end, and its removal.
const PATIENCE: Duration = Duration::from_secs(20);

/// What it is told, besides an agent's environment.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The bench's socket.
    #[arg(long)]
    pub connect: PathBuf,
    /// The image's archive.
    #[arg(long)]
    pub archive: PathBuf,
}

/// Starts the helper of one cell, below a keeper of its own that gets `env` besides.
pub fn start(
    workspace: &Workspace,
    image: &Image,
    cell: &'static str,
    env: Vec<(String, String)>,
) -> anyhow::Result<Helper> {
    let make = cell.strip_prefix("agent-").with_context(|| format!("no such cell: {cell}"))?;
    let hub = Hub::open(workspace.path(), &format!("{make}-hub.sock"))?;
    let program = vec![
        std::env::current_exe()?.display().to_string(),
        "agent-cells".to_owned(),
        "--connect".to_owned(),
        hub.path().display().to_string(),
        "--archive".to_owned(),
        image.archive.display().to_string(),
    ];
    let warm = if make == "stock" { vec![REFERENCE.to_owned()] } else { Vec::new() };
    let settings = Settings { name: make.to_owned(), program, make: Some(make), warm, env };
    let keeper = Keeper::start(workspace, &settings)?;
    let log = keeper.log.clone();
    hub.accept(keeper.into_process(), &log, false)
}

/// Serves the bench until it hangs up.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let keeper = fsb_host::process::keeper_socket().context("the keeper's socket")?;
    let line = Line::new(UnixStream::connect(&args.connect).context("connect to the bench")?)?;
    let config = Config::parse(|key| std::env::var(key).ok())?;
    // Agents of one run share the image store, as on a local node: an import of what is there is cheap.
    let import = fsb_image::Import {
        reference: REFERENCE.to_owned(),
        cmd: vec![Payload::Tiny.path().to_owned()],
        ..Default::default()
    };
    fsb_image::Store::open(config.paths.images())?.import_blocking(&args.archive, &import)?;
    let logs = config.paths.logs().to_owned();
    let stock = (config.make == fsb_agent::MakeMode::Stock).then(Stock::default);
    let runtime = fsb_agent::runtime()?;
    let agent = runtime.block_on(Agent::open(config, keeper))?;
    let mut cells = Cells { runtime, agent, logs, stock, count: 0 };
    line.serve(|ask| match ask {
        Ask::Start { payload, due_ns, .. } => Ok(Answer::Started(cells.start(payload, due_ns)?)),
        Ask::Burst { ask, .. } => Ok(Answer::Burst(cells.burst(ask)?)),
        Ask::Stages => {
            cells.refilled()?;
            Ok(Answer::Stages(stages(&cells.agent.metrics_text())))
        }
        Ask::Hold { .. } => bail!("this helper holds nothing"),
    })?;
    Ok(())
}

struct Cells {
    runtime: Runtime,
    agent: Arc<Agent>,
    logs: PathBuf,
    /// `None` where every start makes its own container.
    stock: Option<Stock>,
    count: u64,
}

impl Cells {
    fn refilled(&mut self) -> anyhow::Result<()> {
        let Some(stock) = &mut self.stock else { return Ok(()) };
        stock.wait(|| Ok(i32::try_from(self.agent.stock(REFERENCE))?))
    }

    fn start(&mut self, payload: Payload, due_ns: Option<u64>) -> anyhow::Result<Started> {
        self.refilled()?;
        self.count += 1;
        let request = request(&format!("bench-{}", self.count), &[payload.path()]);
        let agent = self.agent.clone();
        due_ns.into_iter().for_each(clock::wait_until);
        let task = self.runtime.spawn(async move {
            let called_ns = clock::now_ns();
            (called_ns, agent.start(request).await)
        });
        let (called_ns, started) = self.runtime.block_on(task)?;
        let started = started?;
        let id = started.instance_id.clone();
        let agent = self.agent.clone();
        let ended = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, agent.wait_ended(&id)).await });
        let stamp = stamp(&self.logs.join(format!("{id}.log")));
        self.runtime
            .block_on(async { tokio::time::timeout(PATIENCE, agent.stop_and_remove(&id)).await })
            .with_context(|| format!("{id} is not gone after {PATIENCE:?}"))??;
        // The next sample, of whatever cell, must not meet this one's refill.
        self.refilled()?;
        ended.with_context(|| format!("{id} did not end within {PATIENCE:?}"))??;
        Ok(Started { called_ns, stamp_ns: stamp?, source: Source::from_wire(started.source as i32) })
    }
}

impl Cells {
    /// All calls in one instant; ends and stamps are looked at when all calls have returned.
    fn burst(&mut self, ask: burst::Ask) -> anyhow::Result<Burst> {
        if let Some(stock) = &mut self.stock {
            let ready = stock.wait_within(REFILLED, || Ok(i32::try_from(self.agent.stock(REFERENCE))?))?;
            if (ready as usize) < ask.count {
                bail!("the stock has {ready} containers for a burst of {}", ask.count);
            }
        }
        let first = self.count + 1;
        self.count += ask.count as u64;
        let requests: Vec<_> =
            (first..=self.count).map(|n| request(&format!("bench-{n}"), &[ask.payload.path()])).collect();
        let (agent, logs) = (self.agent.clone(), self.logs.clone());
        let called_ns = clock::now_ns();
        let calls: Vec<_> = requests
            .into_iter()
            .map(|request| {
                let agent = agent.clone();
                self.runtime.spawn(async move { agent.start(request).await })
            })
            .collect();
        self.runtime.block_on(async {
            let mut burst = Burst::at(called_ns);
            let mut started = Vec::with_capacity(ask.count);
            for call in calls {
                match call.await? {
                    Ok(one) => started.push(one),
                    Err(error) => burst.put(Err(error.into())),
                }
            }
            for one in started {
                let id = one.instance_id;
                let ended = tokio::time::timeout(PATIENCE, agent.wait_ended(&id)).await;
                burst.put(match ended {
                    Ok(Ok(_)) => stamp(&logs.join(format!("{id}.log"))),
                    Ok(Err(error)) => Err(error.into()),
                    Err(_) => Err(anyhow::anyhow!("{id} did not end within {PATIENCE:?}")),
                });
                Source::from_wire(one.source as i32).into_iter().for_each(|source| burst.put_source(source, 1));
                tokio::time::timeout(PATIENCE, agent.stop_and_remove(&id))
                    .await
                    .with_context(|| format!("{id} is not gone after {PATIENCE:?}"))??;
            }
            Ok(burst)
        })
    }
}

/// Mean microseconds of each step, from the agent's own metrics.
fn stages(metrics: &str) -> BTreeMap<String, f64> {
    let value = |kind: &str, stage: &str| -> Option<f64> {
        let name = format!("fsb_agent_start_stage_seconds_{kind}{{stage=\"{stage}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&name))?.trim().parse().ok()
    };
    let names = metrics.lines().filter_map(|line| {
        line.strip_prefix("fsb_agent_start_stage_seconds_count{stage=\"")?.split_once('"').map(|(stage, _)| stage)
    });
    names
        .filter_map(|stage| Some((stage.to_owned(), value("sum", stage)? * 1e6 / value("count", stage)?.max(1.0))))
        .collect()
}

/// The stamp in a log file: the text of its first line, after time, stream and tag.
fn stamp(log: &Path) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(log).with_context(|| log.display().to_string())?;
    cri_stamp(&text).with_context(|| format!("no stamp in {}: {text:?}", log.display()))
}

fn cri_stamp(log: &str) -> Option<u64> {
    parse_stamp(log.lines().next()?.splitn(4, ' ').nth(3)?.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_the_mean_of_what_the_metrics_sum_up() {
        let metrics = "fsb_agent_start_stage_seconds_sum{stage=\"take\"} 0.004\n\
                       fsb_agent_start_stage_seconds_count{stage=\"take\"} 2\nother 1\n";
        assert_eq!(stages(metrics), BTreeMap::from([("take".to_owned(), 2000.0)]));
    }

    #[test]
    fn the_stamp_is_the_text_of_the_first_log_line() {
        let log = "2026-01-02T03:04:05.000000006Z stdout F 00000000000000ff\n2026 stdout F x\n";
        assert_eq!(cri_stamp(log), Some(255));
        assert_eq!(cri_stamp(""), None);
        assert_eq!(cri_stamp("2026 stderr F no such file\n"), None);
    }
}
