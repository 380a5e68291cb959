//! Our side: real sandboxes of a real agent, whose keeper writes their logs.

use super::writers::{Found, Work, real_ns};
use super::{Round, lead_ns};
use crate::agent::{Agent, runtime};
use crate::clock;
use crate::floor::copier::Rotation;
use crate::helper::children;
use crate::image::{Image, REFERENCE};
use crate::interrupt;
use crate::keeper::{Keeper, Settings};
use crate::rpc::request;
use crate::workspace::Workspace;
use anyhow::{Context, bail};
use fsb_proto::agent::InstancePhase;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longer than any round.
const PATIENCE: Duration = Duration::from_secs(120);

/// An agent that keeps what it is given.
pub(super) struct Ours {
    socket: PathBuf,
    logs: PathBuf,
    keeper: i32,
    count: usize,
    _keeper: Keeper,
}

impl Ours {
    /// Starts one. `engine` is a value of `FSB_LOG_ENGINE`, or empty for the keeper's own choice.
    pub(super) fn start(
        workspace: &Workspace,
        name: &str,
        image: &Image,
        rotation: Rotation,
        engine: &str,
    ) -> anyhow::Result<Self> {
        let env = vec![
            ("LOG_MAX_SIZE".into(), rotation.max_bytes.to_string()),
            ("LOG_MAX_FILES".into(), rotation.files.to_string()),
            ("FSB_LOG_ENGINE".into(), engine.to_owned()),
        ];
        let keeper = Keeper::start(workspace, &Settings { name: name.into(), env, ..Settings::default() })?;
        let mut agent = Agent::connect(&runtime()?, &keeper.socket)?;
        agent.import(&image.archive, REFERENCE)?;
        let server = keeper.agent()?;
        Ok(Self {
            socket: keeper.socket.clone(),
            logs: workspace.path().join("log"),
            keeper: parent(server)?,
            count: 0,
            _keeper: keeper,
        })
    }

    /// One round: all writers write, and end.
    pub(super) fn round(&mut self, work: &Work) -> anyhow::Result<Round> {
        let mut agent = self.connect()?;
        let begin_ns = clock::now_ns() + lead_ns(work.writers);
        let mut ids = Vec::with_capacity(work.writers);
        for number in 0..work.writers {
            interrupt::check()?;
            self.count += 1;
            let words = work.words(number, begin_ns);
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            ids.push(agent.create(request(&format!("lines-{}", self.count), &words))?.instance_id);
        }
        let (now, real) = (clock::now_ns(), real_ns());
        if now >= begin_ns {
            bail!("{} writers could not be started in time", work.writers);
        }
        std::thread::sleep(Duration::from_nanos(begin_ns - now));
        let mut agent = self.connect()?;
        let cpu = cpu_ns(self.keeper)?;
        wait(&mut agent, &ids)?;
        let cpu_ns = cpu_ns(self.keeper)? - cpu;
        let mut found = Found::default();
        for (number, id) in ids.iter().enumerate() {
            found.read(work, number, &self.logs.join(format!("{id}.log")))?;
        }
        let mut agent = self.connect()?;
        for id in &ids {
            agent.remove(id)?;
        }
        Ok(Round { cpu_ns, took_ns: found.written_ns.saturating_sub(real + (begin_ns - now)), found })
    }

    /// A new connection: an agent gives one up whose client does not answer its pings, which a bench that reads logs or
    /// waits for another agent does not.
    fn connect(&self) -> anyhow::Result<Agent> {
        Agent::connect(&runtime()?, &self.socket)
    }
}

/// Until all have ended, which the keeper says when their logs are complete.
fn wait(agent: &mut Agent, ids: &[String]) -> anyhow::Result<()> {
    let end = clock::now_ns() + PATIENCE.as_nanos() as u64;
    loop {
        // Seldom: an answer about 500 instances takes the time of a processor that the writers need.
        std::thread::sleep(Duration::from_millis(100));
        interrupt::check()?;
        let runs = |phase| phase == InstancePhase::Running as i32;
        let instances = agent.status()?.instances;
        if !instances.iter().any(|instance| runs(instance.phase) && ids.contains(&instance.instance_id)) {
            return Ok(());
        }
        if clock::now_ns() > end {
            bail!("the writers do not end within {PATIENCE:?}");
        }
    }
}

fn parent(pid: i32) -> anyhow::Result<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).context("no parent")?;
    let parent = line.trim().parse()?;
    debug_assert!(children(parent).contains(&pid));
    Ok(parent)
}

/// Processor time of a process and its kernel workers, in nanoseconds (proc(5)).
fn cpu_ns(pid: i32) -> anyhow::Result<u64> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"))?;
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.unwrap_or(100) as u64;
    Ok(ticks * 1_000_000_000 / per_second)
}
