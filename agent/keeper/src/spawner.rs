//! The spawner: makes paused containers. When it dies, what it left half-made is swept and it is started again.

use crate::backoff::Backoff;
use crate::daemon::{ALL, Daemon};
use crate::keeper::Keeper;
use crate::link::{Drained, Full};
use crate::pins::Pin;
use crate::{agent, instance, sweep};
use fsb_host::wire::{FromKeeper, FromSpawner, Made, Make, MakeFailed, ToSpawner};
use nix::sys::signal::Signal;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

/// Requests that wait for a spawner or for its answer at most.
const MOST_REQUESTS: usize = 4096;
/// A spawner that answers nothing for so long, with requests in flight, hangs.
const WATCHDOG: Duration = Duration::from_secs(10);
/// The longest instance id.
const LONGEST_ID: usize = 64;

/// The spawner that lives now, if any, and its requests.
pub(crate) struct Spawner {
    pub(crate) daemon: RefCell<Option<Rc<Daemon>>>,
    /// Until there is a spawner.
    waiting: RefCell<VecDeque<(Make, Option<Pin>)>>,
    /// Sent and not answered, each with its image's pin.
    in_flight: RefCell<BTreeMap<String, Option<Pin>>>,
    /// When the spawner last answered, or was last idle.
    progress: Cell<Instant>,
    busy: Notify,
}

impl Default for Spawner {
    fn default() -> Self {
        Self {
            daemon: RefCell::default(),
            waiting: RefCell::default(),
            in_flight: RefCell::default(),
            progress: Cell::new(Instant::now()),
            busy: Notify::new(),
        }
    }
}

/// Starts the spawner, serves it, sweeps behind it and starts it again, until the keeper stops.
pub(crate) async fn run(keeper: Rc<Keeper>) {
    let mut backoff = Backoff::default();
    let mut restarted = false;
    while !keeper.stopping.get() {
        let mut life = (Duration::ZERO, false);
        match Daemon::start(&keeper.settings.spawner, &keeper.environment()) {
            Err(error) => error!(program = keeper.settings.spawner.join(" "), %error, "the spawner cannot be started"),
            Ok(daemon) => {
                info!(pid = daemon.pid, "spawner started");
                let daemon = Rc::new(daemon);
                *keeper.spawner.daemon.borrow_mut() = Some(daemon.clone());
                if std::mem::replace(&mut restarted, true) {
                    agent::tell(&keeper, FromKeeper::SpawnerRestarted, Vec::new());
                }
                let mut waiting = Vec::from(std::mem::take(&mut *keeper.spawner.waiting.borrow_mut()));
                // Stable: who waits equally urgently keeps its place.
                waiting.sort_by_key(|(make, _)| !make.urgent);
                waiting.into_iter().for_each(|(make, pin)| send(&keeper, &daemon, make, pin));
                daemon.serve(|limit| drain_some(&keeper, &daemon, limit)).await;
                // What it finished before it died is whole.
                drain_some(&keeper, &daemon, ALL);
                keeper.spawner.daemon.borrow_mut().take();
                daemon.link.close();
                life = (daemon.age(), daemon.served.get());
                bury(&keeper).await;
            }
        }
        if keeper.stopping.get() {
            return;
        }
        let wait = backoff.after(life.0, life.1);
        warn!(lived_ms = life.0.as_millis() as u64, wait_ms = wait.as_millis() as u64, "the spawner is gone");
        tokio::time::sleep(wait).await;
    }
}

/// Kills what the dead spawner left, and answers its requests once nothing of them is left.
async fn bury(keeper: &Rc<Keeper>) {
    if keeper.stopping.get() {
        return;
    }
    sweep::kill_strangers(keeper).await;
    for id in keeper.tree.moulds() {
        let keeper = keeper.clone();
        tokio::task::spawn_local(async move { sweep::mould(&keeper, &id).await });
    }
    let lost = std::mem::take(&mut *keeper.spawner.in_flight.borrow_mut());
    // The next spawner need not wait for it.
    for (id, pin) in lost {
        let keeper = keeper.clone();
        tokio::task::spawn_local(async move {
            sweep::leftovers(&keeper, &id).await;
            drop(pin);
            refuse(&keeper, id, "spawner", "the spawner died while it made this container");
        });
    }
}

/// Kills a spawner that hangs. Sleeps while nothing is in flight.
pub(crate) async fn watch(keeper: Rc<Keeper>) {
    let spawner = &keeper.spawner;
    loop {
        if spawner.in_flight.borrow().is_empty() {
            spawner.busy.notified().await;
            continue;
        }
        let deadline = spawner.progress.get() + WATCHDOG;
        if Instant::now() < deadline {
            tokio::time::sleep_until(deadline).await;
            continue;
        }
        error!(in_flight = spawner.in_flight.borrow().len(), "the spawner has not answered for 10 s: it is killed");
        if let Some(daemon) = &*spawner.daemon.borrow() {
            daemon.kill(Signal::SIGKILL);
        }
        spawner.progress.set(Instant::now());
    }
}

/// Passes a request on, or keeps it until there is a spawner. The pin of its image goes with the container.
pub(crate) fn request(keeper: &Rc<Keeper>, make: Make, pin: Option<Pin>) {
    let spawner = &keeper.spawner;
    if !is_id(&make.id) {
        return refuse(keeper, make.id, "request", "the instance id is not made of up to 64 letters and digits");
    }
    let waits = |id: &str| spawner.waiting.borrow().iter().any(|(make, _)| make.id == id);
    let known = keeper.table.borrow().get(&make.id).is_some();
    if known || spawner.in_flight.borrow().contains_key(&make.id) || waits(&make.id) {
        return refuse(keeper, make.id, "request", "there is an instance of this id");
    }
    if spawner.in_flight.borrow().len() + spawner.waiting.borrow().len() >= MOST_REQUESTS {
        return refuse(keeper, make.id, "request", "too many requests are waiting for the spawner");
    }
    let daemon = spawner.daemon.borrow().clone();
    match daemon {
        Some(daemon) if !daemon.is_dead() => send(keeper, &daemon, make, pin),
        _ => spawner.waiting.borrow_mut().push_back((make, pin)),
    }
}

fn send(keeper: &Rc<Keeper>, daemon: &Rc<Daemon>, make: Make, pin: Option<Pin>) {
    let spawner = &keeper.spawner;
    if spawner.in_flight.borrow().is_empty() {
        spawner.progress.set(Instant::now());
        spawner.busy.notify_one();
    }
    spawner.in_flight.borrow_mut().insert(make.id.clone(), pin);
    let id = make.id.clone();
    if let Err(Full) = daemon.link.send(&ToSpawner::Make(make), Vec::new()) {
        spawner.in_flight.borrow_mut().remove(&id);
        refuse(keeper, id, "request", "the spawner does not read its requests");
    }
}

fn refuse(keeper: &Keeper, id: String, stage: &str, error: &str) {
    let failed = MakeFailed { id, stage: stage.to_owned(), error: error.to_owned() };
    agent::tell(keeper, FromKeeper::MakeFailed(failed), Vec::new());
}

/// Handles what lies in the spawner's socket, before a child is taken for nobody's.
pub(crate) fn drain(keeper: &Rc<Keeper>) {
    let daemon = keeper.spawner.daemon.borrow().clone();
    if let Some(daemon) = daemon {
        drain_some(keeper, &daemon, ALL);
    }
}

fn drain_some(keeper: &Rc<Keeper>, daemon: &Rc<Daemon>, limit: usize) -> Drained {
    daemon.link.drain(limit, |message, fds| handle(keeper, daemon, message, fds))
}

fn handle(keeper: &Rc<Keeper>, daemon: &Rc<Daemon>, message: FromSpawner, fds: Vec<OwnedFd>) {
    let answered = |id: &str| {
        keeper.spawner.progress.set(Instant::now());
        keeper.spawner.in_flight.borrow_mut().remove(id).flatten()
    };
    match message {
        FromSpawner::Ready => {
            daemon.served.set(true);
            info!(pid = daemon.pid, "spawner serves");
        }
        FromSpawner::Mould { pid, id } => {
            debug!(pid, mould = id, "mould");
            keeper.moulds.borrow_mut().insert(pid, id);
        }
        FromSpawner::Made(made) => {
            let pin = answered(&made.id);
            adopt(keeper, made, fds, pin);
        }
        FromSpawner::MakeFailed(failed) => {
            drop(answered(&failed.id));
            agent::tell(keeper, FromKeeper::MakeFailed(failed), Vec::new());
        }
    }
}

fn adopt(keeper: &Rc<Keeper>, made: Made, fds: Vec<OwnedFd>, pin: Option<Pin>) {
    if keeper.table.borrow().get(&made.id).is_some() {
        error!(instance = made.id, "the spawner has made an instance twice: the second one is killed");
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(made.pid), Signal::SIGKILL);
        return;
    }
    instance::adopt(keeper, made, fds, pin);
}

/// Ids become names of files.
fn is_id(text: &str) -> bool {
    (1..=LONGEST_ID).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}
