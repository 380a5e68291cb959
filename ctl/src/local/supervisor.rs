//! `local serve`: brings the node up, restarts what dies, takes the node down when it is told to end.

use super::agents::Flags;
use super::dirs::Dirs;
use super::lock::Lock;
use super::place::Place;
use super::process::Process;
use super::record::{Addresses, Agent, Keeper, Node};
use super::tear_down::{Ending, tear_down};
use super::{capacity, controller, firewall, global, keeper, mounts, network, sweep};
use crate::client;
use crate::doctor;
use crate::error::{Context, Failure, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

/// The exit code of a supervisor that found another one: `local up` then waits for that one.
pub(crate) const TAKEN: u8 = 3;
const BACK_OFF_FIRST: Duration = Duration::from_millis(100);
const BACK_OFF_MOST: Duration = Duration::from_secs(10);
/// Whoever lived that long was well.
const WELL: Duration = Duration::from_secs(30);
/// How often a process is looked at that an earlier supervisor started: it is not our child.
const LOOK: Duration = Duration::from_secs(1);
/// Every sandbox costs a keeper some descriptors.
const DESCRIPTORS: u64 = 1 << 16;

pub(crate) fn run(flags: &Flags, dirs: &Dirs, detached: bool) -> Result<u8> {
    super::need_root()?;
    if detached {
        nix::unistd::setsid().context(|| "cannot leave the session".into())?;
    } else {
        // Otherwise `up` has asked, and says it where it is read.
        doctor::need_what_is_needed(dirs)?;
    }
    usual_umask();
    raise_descriptors();
    dirs.make()?;
    let mut lock = Lock::take(&dirs.lock(), Duration::ZERO)?.ok_or_else(|| {
        let taken = Failure::new("this node has a supervisor already");
        Failure { code: TAKEN, ..taken.hint(format!("fsb-ctl local status{}", dirs.flag())) }
    })?;
    let own = serde_json::to_string(&Process::current()).context(|| "cannot write down the supervisor".into())?;
    lock.write(&own)?;
    mounts::ensure_tmpfs(&dirs.run, &dirs.state)?;
    let node = match Node::read(dirs) {
        Some(node) if node.lives() => {
            log("goes on with the processes of the supervisor before");
            node.place.settle()?;
            node
        }
        left => {
            if left.is_some() {
                tear_down(dirs, left.as_ref(), Ending::AtOnce)?;
                mounts::ensure_tmpfs(&dirs.run, &dirs.state)?;
            }
            let place = Place::find()?;
            match place.settle().and_then(|()| make(flags, dirs, place.clone())) {
                Ok(node) => node,
                Err(failure) => {
                    // A half-made node is no node.
                    let _ = tear_down(dirs, None, Ending::AtOnce);
                    place.leave();
                    return Err(failure);
                }
            }
        }
    };
    let outcome = client::runtime()?.block_on(LocalSet::new().run_until(supervise(dirs, node)));
    let node = Node::read(dirs);
    let ended = tear_down(dirs, node.as_ref(), *outcome.as_ref().unwrap_or(&Ending::Orderly));
    log("the node is down");
    drop(lock);
    outcome.and(ended).map(|()| 0)
}

/// Chooses networks and ports, makes the networks, and writes the plan down.
fn make(flags: &Flags, dirs: &Dirs, place: Place) -> Result<Node> {
    let mut agents = flags.agents(dirs, capacity::available_kib())?;
    global::alone(|| {
        // A crash may have left links; their networks count as free.
        network::remove_links(dirs)?;
        let octets = flags.subnet.free(agents.len(), &network::used()?).ok_or_else(|| {
            Failure::new(format!("{} has no free /24 for {} agents", flags.subnet, agents.len()))
                .hint("choose another private network with --subnet, like 10.77.0.0/16")
        })?;
        for (agent, octet) in agents.iter_mut().zip(octets) {
            agent.octet = octet;
        }
        let tcp = flags.tcp.asked(dirs)?;
        let node = Node {
            agents,
            subnet: flags.subnet.to_string(),
            egress: !flags.no_egress,
            warm_images: flags.warm_image.clone(),
            controller_args: flags.controller_arg.clone(),
            addresses: Addresses::choose(dirs, tcp.as_ref())?,
            tcp,
            cgroups: place.directories(),
            place,
            controller: None,
            keepers: BTreeMap::new(),
        };
        // Written before anything is made: what is half made can be found.
        node.write(dirs)?;
        global::need_settings(dirs, node.place.controllers())?;
        // Before there is a link to go through.
        firewall::open(dirs, &node.agents, flags.subnet, node.egress)?;
        for agent in &node.agents {
            // Of a node that ended without `down`, by a power cut for example.
            sweep::agent(dirs, &node, agent)?;
            network::make(dirs, agent, flags.subnet, node.egress)?;
        }
        Ok(node)
    })
}

/// Keeps everything running until SIGTERM, SIGINT or SIGQUIT.
async fn supervise(dirs: &Dirs, node: Node) -> Result<Ending> {
    let listen = |kind| signal(kind).context(|| "cannot listen for signals".into());
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let mut quit = listen(SignalKind::quit())?;
    let agents = node.agents.clone();
    let shared = Rc::new(Shared { dirs: dirs.clone(), node: RefCell::new(node) });
    for agent in agents {
        tokio::task::spawn_local(keep_keeper(Rc::clone(&shared), agent));
    }
    tokio::task::spawn_local(keep_controller(Rc::clone(&shared)));
    Ok(tokio::select! {
        _ = terminate.recv() => {
            log("is told to end");
            Ending::Orderly
        }
        _ = interrupt.recv() => {
            log("is interrupted");
            Ending::Orderly
        }
        _ = quit.recv() => {
            log("is told to end at once");
            Ending::AtOnce
        }
    })
}

/// The node, as every task sees it.
struct Shared {
    dirs: Dirs,
    node: RefCell<Node>,
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut Node)) {
        let mut node = self.node.borrow_mut();
        change(&mut node);
        if let Err(failure) = node.write(&self.dirs) {
            log(&failure.to_string());
        }
    }
}

/// Runs the controller for ever.
async fn keep_controller(shared: Rc<Shared>) {
    let mut back_off = BackOff::default();
    let before = shared.node.borrow().controller;
    if let Some(process) = before.filter(Process::alive) {
        gone(process).await;
        log("the controller has ended");
    }
    loop {
        back_off.begin();
        choose_again(&shared);
        let started = controller::start(&shared.dirs, &shared.node.borrow());
        match started {
            Ok((child, process)) => {
                shared.change(|node| node.controller = Some(process));
                log(&format!("the controller has ended: {}", ended(child).await));
            }
            Err(failure) => log(&failure.to_string()),
        }
        tokio::time::sleep(back_off.next()).await;
    }
}

/// A node with a root chooses its controller's ports again if somebody else has taken one of them: without it there
/// would be no controller.
fn choose_again(shared: &Shared) {
    if shared.dirs.root.is_none() || shared.node.borrow().addresses.are_free() {
        return;
    }
    let tcp = shared.node.borrow().tcp.clone();
    match Addresses::choose(&shared.dirs, tcp.as_ref()) {
        Ok(addresses) => {
            log(&format!("a port of the controller is taken: from now on it listens on {addresses}"));
            shared.change(|node| node.addresses = addresses);
        }
        Err(failure) => log(&failure.to_string()),
    }
}

/// Runs the keeper of an agent for ever, each one on clean ground.
async fn keep_keeper(shared: Rc<Shared>, agent: Agent) {
    let mut back_off = BackOff::default();
    let before = shared.node.borrow().keepers.get(&agent.name).copied();
    if let Some(keeper) = before {
        if keeper.alive() {
            gone(keeper.keeper).await;
            log(&format!("the keeper of {} has ended", agent.name));
        }
        clean(&shared, &agent, Some(keeper)).await;
    }
    loop {
        back_off.begin();
        let started = keeper::start(&shared.dirs, &shared.node.borrow(), &agent);
        let mut last = None;
        match started {
            Ok((child, keeper)) => {
                last = Some(keeper);
                shared.change(|node| {
                    node.keepers.insert(agent.name.clone(), keeper);
                });
                let status = ended(child).await;
                log(&format!("the keeper of {} has ended: {status}; its sandboxes with it", agent.name));
            }
            Err(failure) => log(&failure.to_string()),
        }
        clean(&shared, &agent, last).await;
        tokio::time::sleep(back_off.next()).await;
    }
}

/// Removes what a dead keeper left. It may take seconds, so on another thread: the others are served meanwhile.
async fn clean(shared: &Rc<Shared>, agent: &Agent, keeper: Option<Keeper>) {
    let (dirs, node, agent) = (shared.dirs.clone(), shared.node.borrow().clone(), agent.clone());
    let cleaning = tokio::task::spawn_blocking(move || {
        keeper.as_ref().map_or(Ok(()), sweep::end)?;
        sweep::agent(&dirs, &node, &agent)
    });
    if let Ok(Err(failure)) = cleaning.await {
        log(&failure.to_string());
    }
}

/// Waits for a child.
async fn ended(mut child: Child) -> String {
    match child.wait().await {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    }
}

/// Waits for a process that is not our child.
async fn gone(process: Process) {
    while process.alive() {
        tokio::time::sleep(LOOK).await;
    }
}

/// Longer and longer pauses for what dies at once, none for what was well.
#[derive(Default)]
struct BackOff {
    begun: Option<Instant>,
    pause: Duration,
}

impl BackOff {
    fn begin(&mut self) {
        self.begun = Some(Instant::now());
    }

    /// The pause after an end.
    fn next(&mut self) -> Duration {
        let lived = self.begun.map(|begun| begun.elapsed()).unwrap_or_default();
        self.pause = following(self.pause, lived);
        self.pause
    }
}

fn following(pause: Duration, lived: Duration) -> Duration {
    if lived >= WELL { BACK_OFF_FIRST } else { (pause * 2).clamp(BACK_OFF_FIRST, BACK_OFF_MOST) }
}

/// Sandboxes inherit it: it must not depend on who started the node.
#[expect(clippy::disallowed_methods, reason = "before the first thread")]
fn usual_umask() {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
}

/// Sandboxes of a node are many; a shell's usual 1024 descriptors are for one user's programs.
fn raise_descriptors() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, soft.max(DESCRIPTORS.min(hard)), hard);
    }
}

/// A line as the node's other programs write theirs.
fn log(text: &str) {
    let now = humantime::format_rfc3339_millis(SystemTime::now());
    if fsb_log::is_json() {
        let fields = json!({ "message": text });
        let line = json!({ "timestamp": now.to_string(), "level": "INFO", "fields": fields, "target": "supervisor" });
        fsb_log::line(&line.to_string());
    } else {
        fsb_log::line(&format!("{now} supervisor: {text}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_dies_at_once_waits_longer_each_time_and_what_was_well_does_not() {
        let short = Duration::from_secs(1);
        let pauses = std::iter::successors(Some(following(Duration::ZERO, short)), |p| Some(following(*p, short)));
        let millis: Vec<_> = pauses.take(9).map(|pause| pause.as_millis()).collect();
        assert_eq!(millis, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(following(BACK_OFF_MOST, WELL), BACK_OFF_FIRST);
    }
}
