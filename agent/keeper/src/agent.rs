//! The agent: what it asks for and what it is told. It may die at any instruction.

use crate::backoff::Backoff;
use crate::daemon::{ALL, Daemon};
use crate::instance;
use crate::keeper::Keeper;
use crate::link::{Attached, Drained, Full};
use crate::spawner;
use crate::table::Bind;
use fsb_host::socket;
use fsb_host::wire::{Binding, FromKeeper, MAX_MESSAGE, Stage, ToKeeper, decode};
use nix::sys::signal::Signal;
use nix::sys::socket::MsgFlags;
use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;
use tracing::{error, info, warn};

/// The agent that lives now, if any.
#[derive(Default)]
pub(crate) struct Agent {
    pub(crate) daemon: RefCell<Option<Rc<Daemon>>>,
    /// Its binds. Nobody waits for this socket: a wake-up of the keeper would take the processor from the start that the
    /// bind belongs to. It is drained before everything that a bind could matter to.
    binds: RefCell<Option<Binds>>,
}

impl Agent {
    /// The agent's process id.
    pub(crate) fn pid(&self) -> Option<i32> {
        self.daemon.borrow().as_ref().map(|daemon| daemon.pid)
    }

    /// Whether an agent has said hello.
    pub(crate) fn is_connected(&self) -> bool {
        self.daemon.borrow().as_ref().is_some_and(|daemon| daemon.served.get())
    }
}

/// Starts the agent, serves it, and starts it again, until the keeper stops.
pub(crate) async fn run(keeper: Rc<Keeper>) {
    let mut backoff = Backoff::default();
    while !keeper.stopping.get() {
        let mut life = (Duration::ZERO, false);
        match Daemon::start(&keeper.settings.agent, &keeper.environment()) {
            Err(error) => error!(program = keeper.settings.agent.join(" "), %error, "the agent cannot be started"),
            Ok(daemon) => {
                info!(pid = daemon.pid, "agent started");
                let daemon = Rc::new(daemon);
                *keeper.agent.daemon.borrow_mut() = Some(daemon.clone());
                daemon.serve(|limit| drain_some(&keeper, &daemon, limit)).await;
                // What it sent before it died still counts: a bind may be among it.
                drain_some(&keeper, &daemon, ALL);
                instance::follow_all(&keeper);
                instance::readers_gone(&keeper);
                keeper.agent.daemon.borrow_mut().take();
                keeper.agent.binds.borrow_mut().take();
                daemon.link.close();
                life = (daemon.age(), daemon.served.get());
            }
        }
        if keeper.stopping.get() {
            return;
        }
        let wait = backoff.after(life.0, life.1);
        warn!(lived_ms = life.0.as_millis() as u64, wait_ms = wait.as_millis() as u64, "the agent is gone");
        tokio::time::sleep(wait).await;
    }
}

/// Handles what lies in the agent's socket, before something is decided that depends on it.
pub(crate) fn drain(keeper: &Rc<Keeper>) {
    let daemon = keeper.agent.daemon.borrow().clone();
    if let Some(daemon) = daemon {
        drain_some(keeper, &daemon, ALL);
    }
}

fn drain_some(keeper: &Rc<Keeper>, daemon: &Rc<Daemon>, limit: usize) -> Drained {
    drain_binds(keeper, daemon);
    daemon.link.drain(limit, |message, fds| handle(keeper, daemon, message, fds))
}

fn drain_binds(keeper: &Rc<Keeper>, daemon: &Rc<Daemon>) {
    loop {
        let message = keeper.agent.binds.borrow_mut().as_mut().and_then(Binds::receive);
        let Some(message) = message else { return };
        act(keeper, daemon, message, Vec::new());
    }
}

/// The keeper's end of the socket for binds, and a buffer that outlives a message: this is asked before every one.
struct Binds {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Binds {
    /// The next bind that lies there; `None` = there is none, or the agent has closed its end.
    fn receive(&mut self) -> Option<ToKeeper> {
        while let Ok((n @ 1.., _)) = socket::recv(&self.socket, &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
            match decode(&self.buffer[..n]) {
                Ok(message) => return Some(message),
                Err(error) => error!(%error, "a bind cannot be decoded"),
            }
        }
        None
    }
}

/// Sends a message to the agent, if one has said hello: a new one is told everything then.
pub(crate) fn tell(keeper: &Keeper, message: FromKeeper, fds: Attached) {
    let daemon = keeper.agent.daemon.borrow().clone();
    let Some(daemon) = daemon.filter(|daemon| daemon.served.get()) else { return };
    if let Err(Full) = daemon.link.send(&message, fds) {
        error!("the agent does not read what it is told: it is killed, a new one is told everything");
        daemon.kill(Signal::SIGKILL);
        daemon.link.close();
    }
}

fn handle(keeper: &Rc<Keeper>, daemon: &Rc<Daemon>, message: ToKeeper, fds: Vec<OwnedFd>) {
    // A bind that was sent before this message is handled before it.
    drain_binds(keeper, daemon);
    // A bind that comes this way is not followed by `Launched`.
    let bound = if let ToKeeper::Bind { id, .. } = &message { Some(id.clone()) } else { None };
    act(keeper, daemon, message, fds);
    if let Some(id) = bound {
        instance::follow(keeper, &id, None);
    }
}

fn act(keeper: &Rc<Keeper>, daemon: &Rc<Daemon>, message: ToKeeper, fds: Vec<OwnedFd>) {
    match message {
        ToKeeper::Hello => hello(keeper, daemon),
        ToKeeper::Make(make) => {
            let pin = fds.into_iter().next().map(|fd| keeper.pins.hold(&make.recipe.image, fd));
            spawner::request(keeper, make, pin);
        }
        ToKeeper::Bind { id, binding } => {
            let answer = bind(keeper, &id, binding);
            tell(keeper, answer, Vec::new());
        }
        ToKeeper::Launched { programs } => {
            programs.iter().for_each(|(id, at_ms)| instance::launched(keeper, id, *at_ms));
        }
        ToKeeper::Rebind { id, binding } => {
            let mut table = keeper.table.borrow_mut();
            if table.rebind(&id, binding)
                && let Some(entry) = table.get(&id)
            {
                keeper.store.write(&entry.record);
            }
        }
        ToKeeper::Read { id, taken } => instance::read(keeper, &id, taken),
        ToKeeper::Forget { id } => instance::forget(keeper, &id),
    }
}

fn bind(keeper: &Rc<Keeper>, id: &str, binding: Binding) -> FromKeeper {
    let mut table = keeper.table.borrow_mut();
    if table.bind(id, binding) == Bind::NoSuch {
        return FromKeeper::NoSuch { id: id.to_owned() };
    }
    if let Some(entry) = table.get(id) {
        keeper.store.write(&entry.record);
        instance::bound(entry);
    }
    FromKeeper::Bound { id: id.to_owned() }
}

/// Tells a new agent about every instance. Each message is made when there is room for it, from what is true then.
fn hello(keeper: &Rc<Keeper>, daemon: &Rc<Daemon>) {
    let ids: Vec<String> = keeper.table.borrow().entries().map(|entry| entry.record.made.id.clone()).collect();
    info!(pid = daemon.pid, records = ids.len(), "agent connected");
    for id in ids {
        let keeper = keeper.clone();
        daemon.link.send_later(move || {
            let table = keeper.table.borrow();
            let entry = table.get(&id)?;
            let waits = matches!(entry.record.stage, Stage::Paused | Stage::Bound);
            let ctl = entry.handles.ctl.iter().filter(|_| waits);
            let fds = std::iter::once(&entry.handles.pidfd).chain(ctl).cloned().collect();
            Some((FromKeeper::Known(entry.record.clone()), fds))
        });
    }
    let incarnation = keeper.incarnation.clone();
    let mut fds = Vec::new();
    match socket::pair() {
        Ok((ours, theirs)) => {
            *keeper.agent.binds.borrow_mut() = Some(Binds { socket: ours, buffer: vec![0; MAX_MESSAGE] });
            fds.push(Rc::new(theirs));
        }
        // Binds then come over the socket of all other messages.
        Err(error) => warn!(%error, "no socket for binds"),
    }
    daemon.link.send_later(move || Some((FromKeeper::Ready { incarnation }, fds)));
    daemon.served.set(true);
    keeper.ended.notify_waiters();
}
