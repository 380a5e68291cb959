//! The life of one instance: adopted from the spawner, started, ended.

use crate::keeper::Keeper;
use crate::log::Log;
use crate::pins::Pin;
use crate::started::{Progress, StartedPipe};
use crate::table::Entry;
use crate::{agent, sweep};
use fsb_host::process::{self, Exit};
use fsb_host::wire::{End, FromKeeper, Made, MakeFailed, Stage};
use fsb_host::{cgroup, pidfd};
use nix::sys::signal::Signal;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tracing::{debug, error, warn};

/// How long an end waits for end-of-file on the log's pipes: their other ends may have been passed to somebody else.
const LOG_PATIENCE: Duration = Duration::from_millis(900);

/// The descriptors of an instance.
pub(crate) struct Handles {
    pub(crate) pidfd: Rc<OwnedFd>,
    /// Our copy of the control end, until it has started.
    pub(crate) ctl: Option<Rc<OwnedFd>>,
    started: Rc<StartedPipe>,
    log: Rc<Log>,
    /// Keeps its image's layers on the disk, until it has ended.
    pin: Option<Pin>,
}

/// Takes a paused container over from the spawner and tells the agent.
pub(crate) fn adopt(keeper: &Rc<Keeper>, made: Made, fds: Vec<OwnedFd>, pin: Option<Pin>) {
    let id = made.id.clone();
    let refuse = |error: String| {
        warn!(instance = id, error, "a container that was made cannot be taken over");
        let failed = MakeFailed { id: id.clone(), stage: "adopt".into(), error };
        let keeper = keeper.clone();
        tokio::task::spawn_local(async move {
            sweep::leftovers(&keeper, &failed.id).await;
            agent::tell(&keeper, FromKeeper::MakeFailed(failed), Vec::new());
        });
    };
    let Ok([ctl, pidfd, out, err, started]) = <[OwnedFd; 5]>::try_from(fds) else {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(made.pid), Signal::SIGKILL);
        return refuse("it came without its five descriptors".into());
    };
    if !process::is_child(&pidfd) {
        return refuse("its first process has ended".into());
    }
    let attach = || -> io::Result<Handles> {
        let started = Rc::new(StartedPipe::new(started)?);
        let log = Rc::new(keeper.logs.attach(keeper.paths.log(&made.id), out, err)?);
        Ok(Handles { pidfd: Rc::new(pidfd), ctl: Some(Rc::new(ctl)), started, log, pin })
    };
    let handles = match attach() {
        Ok(handles) => handles,
        Err(error) => {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(made.pid), Signal::SIGKILL);
            return refuse(error.to_string());
        }
    };
    let attached = handles.ctl.iter().chain([&handles.pidfd]).cloned().collect();
    debug!(instance = made.id, pid = made.pid, how = ?made.how, "paused");
    keeper.table.borrow_mut().insert(made.clone(), handles);
    agent::tell(keeper, FromKeeper::Made(made), attached);
}

/// The agent says that its program runs, since when: that is what its caller was told.
pub(crate) fn launched(keeper: &Rc<Keeper>, id: &str, at_ms: i64) {
    keeper.table.borrow_mut().launched(id, at_ms);
    follow(keeper, id, Some(at_ms));
}

/// The agent says that its program runs, or is gone: brings the record up to date now, or as soon as the `started` pipe
/// tells. The agent's socket was drained.
pub(crate) fn follow(keeper: &Rc<Keeper>, id: &str, at_ms: Option<i64>) {
    let pipe = match keeper.table.borrow().get(id) {
        Some(entry) if entry.record.stage == Stage::Bound => entry.handles.started.clone(),
        _ => return,
    };
    if read_started(keeper, id, &pipe, at_ms) != Progress::Waits || !pipe.follow() {
        return;
    }
    let (keeper, id) = (keeper.clone(), id.to_owned());
    tokio::task::spawn_local(async move {
        let look = || {
            // A bind that was sent before the hand-off lies in the agent's socket at the latest.
            agent::drain(&keeper);
            read_started(&keeper, &id, &pipe, at_ms) != Progress::Waits
        };
        if let Err(error) = pipe.each(look).await {
            error!(instance = id, %error, "its `started` pipe cannot be watched");
        }
    });
}

/// [`follow`] for every instance of an agent that is gone.
pub(crate) fn follow_all(keeper: &Rc<Keeper>) {
    let bound = |entry: &&Entry<Handles>| entry.record.stage == Stage::Bound;
    let ids: Vec<String> =
        keeper.table.borrow().entries().filter(bound).map(|entry| entry.record.made.id.clone()).collect();
    ids.iter().for_each(|id| follow(keeper, id, None));
}

/// Brings the record up to date with its `started` pipe; `at_ms` = now, where nobody knows better. The agent's socket was
/// drained.
fn read_started(keeper: &Rc<Keeper>, id: &str, pipe: &StartedPipe, at_ms: Option<i64>) -> Progress {
    let progress = pipe.read();
    let mut table = keeper.table.borrow_mut();
    match progress {
        Progress::Waits | Progress::Died => {}
        Progress::Failed => {
            if let Some(entry) = table.get_mut(id) {
                entry.exec_failed = true;
            }
        }
        Progress::Started => {
            let at_ms = at_ms.unwrap_or_else(now_ms);
            if table.started(id, at_ms)
                && let Some(entry) = table.get_mut(id)
            {
                entry.handles.ctl = None;
                debug!(instance = id, "started");
                // The agent first: its client waits for this.
                agent::tell(keeper, FromKeeper::Started { id: id.to_owned(), at_ms }, Vec::new());
                // One that has died meanwhile is written with its end.
                if entry.alive {
                    keeper.store.write(&entry.record);
                }
            }
        }
    }
    progress
}

/// An agent has bound it: its log should be there for readers.
pub(crate) fn bound(entry: &Entry<Handles>) {
    entry.handles.log.bound(entry.record.binding.as_ref().is_some_and(|binding| binding.attached));
    entry.handles.log.touch();
}

/// Whoever is attached to its output has taken so much of it, or is away.
pub(crate) fn read(keeper: &Keeper, id: &str, taken: Option<u64>) {
    if let Some(entry) = keeper.table.borrow().get(id) {
        entry.handles.log.read(taken);
    }
}

/// The agent that served all readers is gone.
pub(crate) fn readers_gone(keeper: &Keeper) {
    keeper.table.borrow().entries().for_each(|entry| entry.handles.log.read(None));
}

/// The first process of an instance was reaped. The agent's socket was drained.
pub(crate) fn died(keeper: &Rc<Keeper>, pid: i32, exit: Exit) {
    let Some((id, pipe)) = ({
        let mut table = keeper.table.borrow_mut();
        table.died(pid).map(|entry| (entry.record.made.id.clone(), entry.handles.started.clone()))
    }) else {
        return;
    };
    read_started(keeper, &id, &pipe, None);
    let table = keeper.table.borrow();
    let Some(entry) = table.get(&id) else { return };
    let end = End {
        code: exit.code,
        signal: exit.signal,
        oom_killed: exit.code != Some(0)
            && entry.record.binding.is_some()
            && cgroup::oom_kills(&entry.record.made.cgroups) > 0,
        // The number went to the agent, over the control socket; 0 says that there was one.
        start_errno: entry.exec_failed.then_some(0),
        // Known when its log is complete.
        started_at_ms: 0,
        finished_at_ms: now_ms(),
        stops_too_often: entry.stops_too_often,
    };
    let log = entry.handles.log.clone();
    drop(table);
    let keeper = keeper.clone();
    tokio::task::spawn_local(async move {
        log.finish(LOG_PATIENCE).await;
        drop(log);
        ended(&keeper, id, end);
    });
}

fn ended(keeper: &Rc<Keeper>, id: String, end: End) {
    let mut table = keeper.table.borrow_mut();
    let Some(end) = table.ended(&id, end, Instant::now()) else { return };
    if let Some(entry) = table.get_mut(&id) {
        entry.handles.ctl = None;
        entry.handles.pin = None;
        if entry.record.binding.is_some() {
            keeper.store.write(&entry.record);
        }
    }
    drop(table);
    debug!(instance = id, code = end.code, signal = end.signal, oom_killed = end.oom_killed, "ended");
    keeper.ended.notify_waiters();
    agent::tell(keeper, FromKeeper::Ended { id, end }, Vec::new());
}

/// Drops an instance with its record file and its descriptors, and kills it if it lives.
pub(crate) fn forget(keeper: &Rc<Keeper>, id: &str) {
    let Some(entry) = keeper.table.borrow_mut().forget(id) else { return };
    if entry.alive {
        if entry.record.stage != Stage::Paused {
            error!(instance = id, "a running sandbox is to be forgotten: it is killed");
        }
        let _ = pidfd::kill(&*entry.handles.pidfd, Signal::SIGKILL);
    }
    if entry.record.binding.is_some() {
        keeper.store.remove(id);
    }
    keeper.ended.notify_waiters();
}

/// The present as Unix milliseconds.
fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64
}
