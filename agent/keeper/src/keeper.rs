//! What the keeper's tasks share, and its life from start to stop.

use crate::instance::Handles;
use crate::log::Logs;
use crate::pins::Pins;
use crate::settings::Settings;
use crate::setup::Ground;
use crate::store::Store;
use crate::table::Table;
use crate::tracees::Tracees;
use crate::{agent, reaper, retention, spawner, stop};
use anyhow::{Context, anyhow};
use fsb_host::cgroup::Tree;
use fsb_host::paths::Paths;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::File;
use std::rc::Rc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// Everything. No borrow of a cell is held across an await or a call that may drain a socket.
pub(crate) struct Keeper {
    pub(crate) settings: Settings,
    pub(crate) paths: Paths,
    pub(crate) tree: Tree,
    tree_json: String,
    pub(crate) store: Store,
    pub(crate) logs: Logs,
    /// New for every keeper.
    pub(crate) incarnation: String,
    pub(crate) table: RefCell<Table<Handles>>,
    pub(crate) pins: Pins,
    pub(crate) tracees: Tracees,
    pub(crate) agent: agent::Agent,
    pub(crate) spawner: spawner::Spawner,
    /// The spawners' moulds, by process id.
    pub(crate) moulds: RefCell<BTreeMap<i32, String>>,
    /// Told when a record has ended or gone, or an agent has connected.
    pub(crate) ended: Notify,
    pub(crate) stopping: Cell<bool>,
    _lock: File,
}

impl Keeper {
    /// For the daemons, on top of our own.
    pub(crate) fn environment(&self) -> [(&str, &str); 1] {
        [("FSB_CGROUP_TREE", &self.tree_json)]
    }
}

/// Runs until SIGTERM or SIGINT.
pub(crate) async fn run(settings: Settings, ground: Ground, logs: Logs) -> anyhow::Result<()> {
    // Before the first child, so that no signal is missed.
    let child_ended = signal(SignalKind::child()).context("watch SIGCHLD")?;
    let mut terminate = signal(SignalKind::terminate()).context("watch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch SIGINT")?;
    let incarnation = std::fs::read_to_string("/proc/sys/kernel/random/uuid").context("make an incarnation")?;
    let keeper = Rc::new(Keeper {
        settings,
        store: Store::new(ground.paths.records()),
        paths: ground.paths,
        tree_json: ground.tree.to_json(),
        tree: ground.tree,
        logs,
        incarnation: incarnation.trim().to_owned(),
        table: RefCell::default(),
        pins: Pins::default(),
        tracees: Tracees::default(),
        agent: agent::Agent::default(),
        spawner: spawner::Spawner::default(),
        moulds: RefCell::default(),
        ended: Notify::new(),
        stopping: Cell::new(false),
        _lock: ground.lock,
    });
    let mut tasks = JoinSet::new();
    tasks.spawn_local(reaper::run(keeper.clone(), child_ended));
    tasks.spawn_local(retention::run(keeper.clone()));
    tasks.spawn_local(spawner::run(keeper.clone()));
    tasks.spawn_local(spawner::watch(keeper.clone()));
    tasks.spawn_local(agent::run(keeper.clone()));
    let result = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        // Half a keeper is worse than none: whoever watches this process starts a whole one.
        ended = tasks.join_next() => Err(anyhow!("a task of the keeper has ended: {ended:?}")),
    };
    stop::run(&keeper).await;
    result
}
