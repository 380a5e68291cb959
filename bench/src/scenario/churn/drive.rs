//! The client: begins cycles when they are due and follows each to its end on one watch stream.

use crate::clock;
use crate::image::REFERENCE;
use crate::payload::{Payload, parse_stamp};
use crate::{agent, interrupt};
use anyhow::{Context, bail};
use fsb_proto::fastpath::fast_path_service_client::FastPathServiceClient;
use fsb_proto::fastpath::{self, SandboxInfo, watch_event::Event};
use fsb_rpc::Channel;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};

/// The longest that a step of a cycle may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// More cycles than this under way mean that the rate is far too much.
const UNDER_WAY: usize = 4000;
/// How long after the last begin a sustained rate has ended everything.
const GRACE: Duration = Duration::from_secs(1);

type Client = FastPathServiceClient<Channel>;

/// What was seen at one rate.
#[derive(Debug, Default)]
pub struct Stage {
    pub rate: u32,
    /// From the time a create was due to the program's stamp.
    pub starts_ns: Vec<u64>,
    /// From the time a create was due to its answer.
    pub answers_ns: Vec<u64>,
    /// From the time a create was due until nothing was left.
    pub cycles_ns: Vec<u64>,
    pub failed: usize,
    /// The last failure.
    pub error: Option<String>,
    /// From the first begin to the last end.
    pub took: Duration,
    /// The last end came soon after the last begin.
    pub in_time: bool,
}

impl Stage {
    /// Cycles that ended well.
    pub fn done(&self) -> usize {
        self.cycles_ns.len()
    }

    /// Cycles that ended well, per second.
    pub fn done_per_s(&self) -> f64 {
        self.done() as f64 / self.took.as_secs_f64().max(1e-9)
    }
}

/// Who waits for what about a sandbox.
struct Waiter {
    ended: Option<oneshot::Sender<SandboxInfo>>,
    gone: Option<oneshot::Sender<()>>,
}

type Waiters = Arc<Mutex<HashMap<String, Waiter>>>;

/// A client of a controller.
pub struct Driver {
    client: Client,
    logs: PathBuf,
    waiters: Waiters,
    count: Arc<AtomicU64>,
    watcher: AbortHandle,
}

struct Cycle {
    start_ns: u64,
    answer_ns: u64,
    cycle_ns: u64,
}

impl Driver {
    /// To the controller at `socket`; `logs` is where the node's log files lie.
    pub async fn connect(socket: &Path, logs: &Path) -> anyhow::Result<Self> {
        let client = Client::new(agent::channel(socket).await?);
        let waiters = Waiters::default();
        let watching = watch(agent::channel(socket).await.map(Client::new)?, waiters.clone()).await?;
        let watcher = tokio::spawn(watching).abort_handle();
        Ok(Self { client, logs: logs.to_owned(), waiters, count: Arc::default(), watcher })
    }

    /// `count` cycles, `rate` per second.
    pub async fn run(&self, rate: u32, count: usize) -> anyhow::Result<Stage> {
        let mut stage = Stage { rate, ..Stage::default() };
        let mut due = pace(rate, count);
        let mut cycles: JoinSet<anyhow::Result<Cycle>> = JoinSet::new();
        let began = Instant::now();
        let mut last_due = began;
        let mut pacing = true;
        while pacing || !cycles.is_empty() {
            tokio::select! {
                next = due.recv(), if pacing => match next {
                    Some(due_ns) => {
                        last_due = Instant::now();
                        cycles.spawn(self.cycle(due_ns));
                        pacing = cycles.len() < UNDER_WAY && !interrupt::asked();
                    }
                    None => pacing = false,
                },
                Some(ended) = cycles.join_next() => match ended.map_err(Into::into).flatten() {
                    Ok(cycle) => {
                        stage.starts_ns.push(cycle.start_ns);
                        stage.answers_ns.push(cycle.answer_ns);
                        stage.cycles_ns.push(cycle.cycle_ns);
                    }
                    Err(error) => {
                        stage.failed += 1;
                        stage.error = Some(format!("{error:#}"));
                    }
                },
            }
        }
        interrupt::check()?;
        stage.took = began.elapsed();
        stage.in_time = last_due.elapsed() <= GRACE && stage.done() + stage.failed == count;
        Ok(stage)
    }

    fn cycle(&self, due_ns: u64) -> impl Future<Output = anyhow::Result<Cycle>> + Send + use<> {
        let name = format!("churn-{}", self.count.fetch_add(1, Ordering::Relaxed));
        let (client, waiters, logs) = (self.client.clone(), self.waiters.clone(), self.logs.clone());
        async move {
            let result = cycle(client, &waiters, &logs, &name, due_ns).await;
            lock(&waiters).remove(&name);
            result.with_context(|| name)
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

fn lock(waiters: &Waiters) -> std::sync::MutexGuard<'_, HashMap<String, Waiter>> {
    waiters.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn cycle(mut client: Client, waiters: &Waiters, logs: &Path, name: &str, due_ns: u64) -> anyhow::Result<Cycle> {
    let ((ended, has_ended), (gone, is_gone)) = (oneshot::channel(), oneshot::channel());
    lock(waiters).insert(name.to_owned(), Waiter { ended: Some(ended), gone: Some(gone) });
    let request = fastpath::CreateRequest {
        name: name.to_owned(),
        image: REFERENCE.to_owned(),
        command: vec![Payload::Tiny.path().to_owned()],
        ..Default::default()
    };
    within("the create", client.create_sandbox(request)).await??;
    let answer_ns = clock::now_ns() - due_ns;
    let info = within("the end", has_ended).await??;
    if info.phase != "Succeeded" {
        bail!("{}: {}", info.phase, info.reason);
    }
    let stamp = stamp(&logs.join(format!("{}.log", info.instance_id)));
    let request = fastpath::DeleteRequest { sandbox_id: name.to_owned(), force: true, ..Default::default() };
    within("the delete", client.delete_sandbox(request)).await??;
    within("the removal", is_gone).await??;
    let cycle_ns = clock::now_ns() - due_ns;
    let start_ns = stamp?.checked_sub(due_ns).context("a stamp before its create was due")?;
    Ok(Cycle { start_ns, answer_ns, cycle_ns })
}

async fn within<T>(what: &str, step: impl Future<Output = T>) -> anyhow::Result<T> {
    tokio::time::timeout(PATIENCE, step).await.with_context(|| format!("{what} took longer than {PATIENCE:?}"))
}

/// The stamp in a log file of one line: time, stream, `F`, text.
fn stamp(log: &Path) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(log).with_context(|| log.display().to_string())?;
    let word = text.split_whitespace().last().context("an empty log")?;
    parse_stamp(word.as_bytes()).with_context(|| format!("not a stamp: {word:?}"))
}

/// Times at which cycles are due, each sent when it has come. A thread of its own keeps them exact: the runtime's
/// timers know milliseconds only.
fn pace(rate: u32, count: usize) -> mpsc::Receiver<u64> {
    let (send, due) = mpsc::channel(count.clamp(1, UNDER_WAY * 2));
    std::thread::spawn(move || {
        let begin = clock::now_ns() + 2_000_000;
        for number in 0..count as u64 {
            let at = begin + number * 1_000_000_000 / u64::from(rate.max(1));
            std::thread::sleep(Duration::from_nanos(at.saturating_sub(clock::now_ns())));
            // Nobody listens any more: the rate was far too much.
            if send.blocking_send(at).is_err() {
                return;
            }
        }
    });
    due
}

/// Opens the watch stream and returns the task that tells those who wait.
async fn watch(mut client: Client, waiters: Waiters) -> anyhow::Result<impl Future<Output = ()>> {
    let mut events = client.watch(fastpath::WatchRequest::default()).await?.into_inner();
    Ok(async move {
        while let Ok(Some(event)) = events.message().await {
            match event.event {
                Some(Event::Changed(info)) if matches!(info.phase.as_str(), "Succeeded" | "Failed" | "Lost") => {
                    let ended = lock(&waiters).get_mut(&info.sandbox_id).and_then(|waiter| waiter.ended.take());
                    if let Some(ended) = ended {
                        let _ = ended.send(info);
                    }
                }
                Some(Event::Removed(info)) => {
                    let gone = lock(&waiters).get_mut(&info.sandbox_id).and_then(|waiter| waiter.gone.take());
                    if let Some(gone) = gone {
                        let _ = gone.send(());
                    }
                }
                _ => {}
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycles_are_due_at_even_times_and_none_comes_early() {
        let mut due = pace(1000, 50);
        let mut times = Vec::new();
        while let Some(at) = due.blocking_recv() {
            assert!(clock::now_ns() >= at);
            times.push(at);
        }
        assert_eq!(times.len(), 50);
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] == 1_000_000));
    }
}
