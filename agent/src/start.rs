//! The start path: from a request to a running process.
//!
//! [`launch`] is the path itself, one step after the other; every step is a span and a stage of the histogram. What
//! it has taken so far is in [`Undo`], which gives it back in reverse when a step fails. Metrics, events and refills
//! come after the answer.

use crate::Agent;
use crate::admission::{Decision, Ticket};
use crate::command;
use crate::error::{Error, Result, StartError};
use crate::images::Resolved;
use crate::instance::{Instance, Phase, source_word};
use crate::metrics::Timing;
use crate::order::Order;
use crate::stage::Stage;
use crate::undo::Undo;
use crate::{lock, now_ms, stop};
use fsb_host::cgroup::{self, Limits};
use fsb_host::handoff::{self, Outcome};
use fsb_host::wire::Binding;
use fsb_host::{late, pidfd};
use fsb_proto::agent;
use fsb_proto::domain::{DEFAULT_MEMORY_BYTES, DEFAULT_PIDS};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::Instrument;

/// Time for a create whose caller gives none.
pub(crate) const DEFAULT_DEADLINE: Duration = Duration::from_secs(60);
/// The most time that a caller may give.
pub(crate) const LONGEST_DEADLINE: Duration = Duration::from_secs(3600);
/// Containers that died while they were paused are replaced so many times.
const ATTEMPTS: usize = 3;
/// The limits that every paused container was made with.
const MADE_WITH: Limits = Limits { memory_bytes: DEFAULT_MEMORY_BYTES, pids: DEFAULT_PIDS, cpu_millis: None };

/// A sandbox that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// 32 hexadecimal characters.
    pub instance_id: String,
    /// Unix milliseconds.
    pub started_at_ms: i64,
    /// Where its container came from.
    pub source: agent::Source,
    /// It was there already.
    pub existed: bool,
}

/// Starts a sandbox, detached from its caller: a client that hangs up never leaves half of one. What is left to do
/// after the answer is done after it.
pub(crate) async fn create(agent: &Arc<Agent>, order: Order, within: Duration) -> Result<Started, StartError> {
    let (answer, answered) = oneshot::channel();
    let agent = agent.clone();
    // At a level that is always on: every event of a start says whose it is.
    let span = tracing::error_span!("create", request = order.request_id, claim = order.binding.claim_uid);
    let tracker = agent.tracker.clone();
    tracker.spawn(
        async move {
            let mut timing = Timing::begin();
            let result = start(&agent, &order, within, &mut timing).await;
            let source = result.as_ref().map_or(agent::Source::Unknown, |(started, _)| started.source);
            let failed = result.as_ref().err().cloned();
            let (result, instance) = match result {
                Ok((started, instance)) => (Ok(started), instance),
                Err(error) => (Err(error), None),
            };
            let _ = answer.send(result);
            agent.after_start(&order, instance, source, failed.as_ref(), &timing);
        }
        .instrument(span),
    );
    answered.await.unwrap_or_else(|_| {
        Err(StartError::new(Stage::Admission, Error::Internal("the start ended without a result".into())))
    })
}

/// Admission, then [`launch`] within its deadline, then either the commit or the way back.
async fn start(
    agent: &Arc<Agent>,
    order: &Order,
    within: Duration,
    timing: &mut Timing,
) -> Result<(Started, Option<Arc<Instance>>), StartError> {
    let deadline = Instant::now() + within;
    let _one = agent.under_way.begin();
    if let Some(image) = agent.images.cached(&order.spec.image, &order.spec.user) {
        agent.under_way.rouse(&image.shelf);
    }
    let instance = match admit(agent, order, within, deadline).await? {
        Ok(instance) => instance,
        Err(existing) => return existed(&existing, within, deadline).await.map(|started| (started, None)),
    };
    timing.done(Stage::Admission);
    let mut undo = Undo::new(agent.clone(), instance.clone());
    let launched = tokio::time::timeout_at(deadline, launch(agent, order, &instance, &mut undo, timing)).await;
    let failed = match launched {
        Ok(Ok(at_ms)) => match commit(agent, &instance, at_ms) {
            Ok(started) => {
                undo.disarm();
                return Ok((started, Some(instance)));
            }
            Err(error) => StartError::new(Stage::Acknowledge, error),
        },
        Ok(Err(cause)) => StartError::new(timing.current(), cause),
        Err(_) => StartError::new(timing.current(), Error::Deadline(within)),
    };
    Err(undo.unwind(failed).await)
}

/// A slot and the ports, or the instance that the same create made before.
async fn admit(
    agent: &Arc<Agent>,
    order: &Order,
    within: Duration,
    deadline: Instant,
) -> Result<Result<Arc<Instance>, Arc<Instance>>, StartError> {
    let failed = |cause| StartError::new(Stage::Admission, cause);
    loop {
        let decision = lock(&agent.ledger)
            .admit(&order.ask(), |generation| Arc::new(Instance::new(Binding { generation, ..order.binding.clone() })));
        match decision.map_err(failed)? {
            Decision::Existing(instance) => return Ok(Err(instance)),
            Decision::Admitted(grant) => {
                let instance = lock(&agent.ledger).newest(grant.uid());
                let ticket = Ticket::new(grant, agent.ledger.clone());
                let Some(instance) = instance else {
                    return Err(failed(Error::Internal("an admitted claim is not in the ledger".into())));
                };
                instance.state().ticket = Some(ticket);
                return Ok(Ok(instance));
            }
            // A newer generation is the controller's word that the old one must not run any more.
            Decision::Superseded(old) => {
                stop::give_way(agent, &old);
                let ended = tokio::time::timeout_at(deadline, old.released()).await;
                ended.map_err(|_| failed(Error::Deadline(within)))?;
            }
        }
    }
}

/// Image, container, record, limits, working directory, hand-off: everything between admission and a running program.
/// Returns since when it runs, in Unix milliseconds.
async fn launch(
    agent: &Arc<Agent>,
    order: &Order,
    instance: &Arc<Instance>,
    undo: &mut Undo,
    timing: &mut Timing,
) -> Result<i64> {
    let spec = &order.spec;
    timing.enter(Stage::Image);
    let span = tracing::debug_span!("image");
    let image = agent.image_for(instance, spec, order.overlay(), order.pull).instrument(span);
    let image = unless_removed(instance, image).await?;
    let argv = command::argv(&image.wrapper, &image.entrypoint, &image.cmd, &spec.command, &spec.args)?;
    image.shelf.expect(argv[0], &image.env);
    timing.shelf = Some(image.shelf.clone());
    timing.done(Stage::Image);

    let mut attempt = 1;
    loop {
        match hand_over(agent, order, instance, &image, &argv, undo, timing).await {
            Err(Failure::Died) if attempt < ATTEMPTS => {
                tracing::warn!(instance = %instance.id(), "the paused container was dead, taking another");
                undo.discard_container().await;
                attempt += 1;
            }
            Err(Failure::Died) => {
                return Err(Error::Unavailable(
                    "paused containers of this image die; hint: see the agent's log".into(),
                ));
            }
            Err(Failure::Error(error)) => return Err(error),
            Ok(at_ms) => return Ok(at_ms),
        }
    }
}

/// Why a container could not be handed over.
enum Failure {
    /// It died before it could take its program: another one may.
    Died,
    Error(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

async fn hand_over(
    agent: &Arc<Agent>,
    order: &Order,
    instance: &Arc<Instance>,
    image: &Arc<Resolved>,
    argv: &[&str],
    undo: &mut Undo,
    timing: &mut Timing,
) -> Result<i64, Failure> {
    timing.enter(Stage::Take);
    let taken = agent.pool.take(agent, &image.shelf).instrument(tracing::debug_span!("take"));
    let (paused, source) = unless_removed(instance, taken).await?;
    let paused = undo.holds(paused);
    let id = agent.enter(instance, paused, source, image);
    timing.done(Stage::Take);

    // Sent, not waited for: a sent message outlives this process, and the keeper reads it before it looks at anything
    // that the program does.
    timing.enter(Stage::Bind);
    let binding = {
        let mut state = instance.state();
        state.binding.source = source_word(source).to_owned();
        // From here on a change of the binding is sent by whoever makes it.
        state.in_keeper = true;
        state.binding.clone()
    };
    let bound = agent.keeper.bind(&id, binding).instrument(tracing::debug_span!("bind")).await?;
    timing.done(Stage::Bind);

    timing.enter(Stage::Limits);
    let limits = order.limits();
    if limits != MADE_WITH {
        let _span = tracing::debug_span!("limits").entered();
        cgroup::set_limits(&paused.made.cgroups, &limits, Some(&MADE_WITH))
            .map_err(|error| Error::Start(format!("limits: {error}")))?;
    }
    timing.done(Stage::Limits);

    timing.enter(Stage::Late);
    let cwd = if order.spec.working_dir.is_empty() { &image.working_dir } else { &order.spec.working_dir };
    if cwd != "/" {
        let _span = tracing::debug_span!("late").entered();
        late::create_dir(paused.pidfd.as_fd(), paused.made.pid, Path::new(cwd)).map_err(|error| match error {
            late::Error::Gone => Failure::Died,
            late::Error::Dir(errno) => command::chdir_error(cwd, errno as i32).into(),
        })?;
    }
    timing.done(Stage::Late);

    timing.enter(Stage::HandOff);
    if instance.state().removal.is_some() {
        return Err(Error::Deleted.into());
    }
    let env = command::env(&image.env, &id[..12], &order.spec.envs);
    let env: Vec<&str> = env.iter().map(String::as_str).collect();
    let awake = agent.under_way.is_awake(paused);
    {
        let _span = tracing::debug_span!("hand_off").entered();
        handoff::send(paused.ctl.get_ref().as_fd(), argv, &env, cwd.as_bytes()).map_err(|error| {
            match error.kind() {
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Failure::Died,
                _ => Error::Start(format!("the command could not be handed over: {error}")).into(),
            }
        })?;
    }
    timing.done(Stage::HandOff);

    timing.enter(Stage::Exec);
    let outcome = agent.under_way.outcome(paused, awake).instrument(tracing::debug_span!("exec")).await;
    match outcome.map_err(|error| Error::io(format!("the control end of {id}"), &error))? {
        Outcome::Started => {}
        Outcome::Failed { stage: handoff::Stage::Chdir, errno } => {
            return Err(command::chdir_error(cwd, errno).into());
        }
        Outcome::Failed { stage: handoff::Stage::Exec, errno } => {
            return Err(command::exec_error(argv[0], &owned(&env), errno).into());
        }
        Outcome::Failed { stage: handoff::Stage::Protocol, errno } => {
            return Err(Error::Internal(format!("the parked program did not understand its command ({errno})")).into());
        }
    }
    timing.done(Stage::Exec);

    timing.enter(Stage::Acknowledge);
    let at_ms = now_ms();
    // End-of-file from a process that runs a program is an execve. One that has ended may have been killed before it came
    // to that; only the keeper, which reads the `started` pipe, can tell.
    if !pidfd::runs(paused.pidfd.as_fd(), paused.made.pid) {
        agent.keeper.launched(vec![(id.to_string(), at_ms)]).await?;
        acknowledged(instance, bound).instrument(tracing::debug_span!("acknowledge")).await?;
    } else {
        agent.launched.note(&id, at_ms);
    }
    timing.done(Stage::Acknowledge);
    Ok(at_ms)
}

/// What may take long, unless the instance is to go meanwhile. What is there at once costs nothing more.
async fn unless_removed<T>(instance: &Instance, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        biased;
        done = work => done,
        () = instance.until(|state| state.removal.map(drop)) => Err(Error::Deleted),
    }
}

fn owned(env: &[&str]) -> Vec<String> {
    env.iter().map(|entry| (*entry).to_owned()).collect()
}

/// Waits for the keeper's word that the record is kept and that the program ran.
async fn acknowledged(instance: &Arc<Instance>, bound: oneshot::Receiver<bool>) -> Result<(), Failure> {
    match bound.await {
        Ok(true) => {}
        Ok(false) => return Err(Failure::Died),
        Err(_) => return Err(Error::Unavailable("the keeper is gone".into()).into()),
    }
    let ran = instance
        .until(|state| match (state.seen_started, &state.end) {
            (true, _) => Some(Ok(())),
            (false, Some(end)) => Some(Err(end.start_errno)),
            (false, None) => None,
        })
        .await;
    match ran {
        Ok(()) => Ok(()),
        Err(Some(errno)) => Err(command::exec_error("the program", &[], errno).into()),
        Err(None) => Err(Failure::Died),
    }
}

/// From here on it runs, whoever asks.
fn commit(agent: &Arc<Agent>, instance: &Arc<Instance>, at_ms: i64) -> Result<Started> {
    let (started, over) = {
        let mut state = instance.state();
        if state.removal.is_some() {
            return Err(Error::Deleted);
        }
        state.phase = Phase::Running;
        state.seen_started = true;
        // The keeper, which may have seen it later, is told the same.
        state.started_at_ms = at_ms;
        let started =
            Started { instance_id: state.id.to_string(), started_at_ms: at_ms, source: state.source, existed: false };
        (started, state.end.is_some())
    };
    instance.changed();
    if over {
        agent.reap(instance.clone());
    }
    Ok(started)
}

/// The result of the create that came first.
async fn existed(instance: &Arc<Instance>, within: Duration, deadline: Instant) -> Result<Started, StartError> {
    let waited = instance.until(|state| match (&state.failure, state.phase) {
        (Some(failure), _) => Some(Err(failure.clone())),
        (None, Phase::Creating) => None,
        (None, _) => Some(Ok(Started {
            instance_id: state.id.to_string(),
            started_at_ms: state.started_at_ms,
            source: state.source,
            existed: true,
        })),
    });
    let waited = tokio::time::timeout_at(deadline, waited).await;
    waited.unwrap_or_else(|_| Err(StartError::new(Stage::Admission, Error::Deadline(within))))
}
