//! The connection to the keeper: one socket, answers sorted by instance id.
//!
//! The protocol is `fsb_host::wire`. Requests are written by whoever makes them; one task reads. An answer that
//! somebody waits for goes to them, everything else is an [`Event`].

use crate::error::{Error, Result};
use crate::pool::Shelf;
use crate::spares::{Spare, Spares};
use crate::{async_fd, lock, new_id};
use fsb_host::wire::{
    Binding, End, FromKeeper, How, MAX_MESSAGE, Made, Make, MakeFailed, Overlay, Record, ToKeeper, decode, encode,
};
use fsb_host::{pidfd, socket};
use nix::errno::Errno;
use nix::sys::socket::MsgFlags;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Events that wait to be handled. A full queue holds the reader up, and with it the keeper's socket.
const EVENTS: usize = 1024;
/// How long the keeper may take to answer `Hello`.
const HELLO: Duration = Duration::from_secs(10);

/// A paused container, ours to start.
#[derive(Debug)]
pub(crate) struct Paused {
    pub(crate) made: Made,
    /// The control end: the hand-off goes in, end-of-file or an errno comes back.
    pub(crate) ctl: AsyncFd<OwnedFd>,
    pub(crate) pidfd: Arc<OwnedFd>,
    /// Its mount namespace: unmounting everything in there takes longer than all else of a process's end, and would
    /// otherwise be done by the process when it exits, while others start. `None` where it has ended already.
    pub(crate) mounts: Option<Arc<File>>,
}

impl Paused {
    fn new(made: Made, ctl: OwnedFd, pidfd: OwnedFd) -> std::io::Result<Self> {
        let mounts = pidfd::open_proc(pidfd.as_fd(), made.pid, "ns/mnt", File::options().read(true));
        let mounts = mounts.ok().map(Arc::new);
        Ok(Self { made, ctl: async_fd::register(ctl, Interest::READABLE)?, pidfd: Arc::new(pidfd), mounts })
    }
}

/// What the keeper says without being asked.
#[derive(Debug)]
pub(crate) enum Event {
    /// The program runs.
    Started {
        id: String,
        at_ms: i64,
    },
    /// It is over and its log is complete.
    Ended {
        id: String,
        end: End,
    },
    /// A container that nobody waits for: asked for by an agent before this one, or given up on.
    Unclaimed(Paused),
    /// A container that nobody can be given.
    Unusable {
        id: String,
        cgroups: Vec<PathBuf>,
    },
    /// It was dead before it could be bound.
    Lost {
        id: String,
    },
    SpawnerRestarted,
}

/// An instance that the keeper knew when this agent came up.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) record: Record,
    pub(crate) pidfd: OwnedFd,
    /// Where it has not started.
    pub(crate) paused: Option<Paused>,
}

/// The answer to `Hello`.
#[derive(Debug)]
pub(crate) struct Welcome {
    pub(crate) known: Vec<Known>,
    pub(crate) incarnation: String,
}

#[derive(Default)]
struct Waiting {
    makes: HashMap<String, oneshot::Sender<Result<Paused, MakeFailed>>>,
    binds: HashMap<String, oneshot::Sender<bool>>,
}

pub(crate) struct Keeper {
    socket: AsyncFd<OwnedFd>,
    /// For binds alone: the keeper does not wake up for it. Absent until it is ready.
    binds: OnceLock<OwnedFd>,
    waiting: Mutex<Waiting>,
    spawner_restarts: AtomicU64,
    gone: CancellationToken,
}

impl Keeper {
    /// Says hello on the socket and reads what is there, then goes on reading in the background.
    pub(crate) async fn connect(socket: OwnedFd) -> Result<(Arc<Self>, Welcome, mpsc::Receiver<Event>)> {
        let socket = async_fd::register(socket, Interest::READABLE | Interest::WRITABLE)
            .map_err(|error| Error::io("the keeper's socket", &error))?;
        let keeper = Arc::new(Self {
            socket,
            binds: OnceLock::new(),
            waiting: Mutex::default(),
            spawner_restarts: AtomicU64::new(0),
            gone: CancellationToken::new(),
        });
        let (events, receiver) = mpsc::channel(EVENTS);
        let (welcome, ready) = oneshot::channel();
        keeper.send(&ToKeeper::Hello).await?;
        tokio::spawn(keeper.clone().read(events, welcome));
        let welcome = tokio::time::timeout(HELLO, ready)
            .await
            .map_err(|_| Error::Unavailable("the keeper did not answer".into()))?
            .map_err(|_| Error::Unavailable("the keeper closed its socket".into()))?;
        Ok((keeper, welcome, receiver))
    }

    /// Done when the keeper is gone. All sandboxes of this agent are then gone, too.
    pub(crate) async fn gone(&self) {
        self.gone.cancelled().await;
    }

    /// Asks for a paused container for this shelf and waits for it. Given up on, the container arrives as `Unclaimed`.
    /// The keeper gets its own hold on the image, so that the layers stay below the container also while there is no
    /// agent.
    pub(crate) async fn make(&self, shelf: &Shelf, how: Option<How>, urgent: bool, spares: &Spares) -> Result<Paused> {
        // Twice more where it was the spawner that died, not the recipe that failed.
        for _ in 0..3 {
            let restarts = self.spawner_restarts.load(Ordering::Relaxed);
            let id = new_id();
            let (sender, receiver) = oneshot::channel();
            lock(&self.waiting).makes.insert(id.clone(), sender);
            let (recipe, lookups) = (shelf.recipe.clone(), shelf.lookups());
            let spare = if recipe.overlay == Overlay::Disk { spares.take() } else { None };
            let offered = spare.as_ref().map(|spare| spare.id.clone());
            let make = Make { id: id.clone(), recipe, how, urgent, lookups, spare: offered };
            if let Err(error) = self.send_with(&ToKeeper::Make(make), &[shelf.pin.as_fd().as_raw_fd()]).await {
                lock(&self.waiting).makes.remove(&id);
                return Err(error);
            }
            match receiver.await {
                Ok(Ok(paused)) => {
                    spare.into_iter().for_each(Spare::used);
                    return Ok(paused);
                }
                Ok(Err(failed)) => {
                    let spawner_died =
                        failed.stage == "spawner" || self.spawner_restarts.load(Ordering::Relaxed) != restarts;
                    if !spawner_died {
                        return Err(make_error(&failed));
                    }
                    tracing::debug!(instance = id, error = failed.error, "the spawner died with a container half made");
                }
                Err(_) => break,
            }
        }
        Err(Error::Unavailable("containers cannot be made now: the spawner is not there".into()))
    }

    /// Tells the keeper whose instance this is. The receiver says whether it was alive to hear it.
    pub(crate) async fn bind(&self, id: &str, binding: Binding) -> Result<oneshot::Receiver<bool>> {
        let (sender, receiver) = oneshot::channel();
        lock(&self.waiting).binds.insert(id.to_owned(), sender);
        let message = ToKeeper::Bind { id: id.to_owned(), binding };
        if !self.send_quietly(&message)
            && let Err(error) = self.send(&message).await
        {
            lock(&self.waiting).binds.remove(id);
            return Err(error);
        }
        Ok(receiver)
    }

    /// Says which programs run and since when (Unix milliseconds), after those who asked for them know. What an agent that
    /// dies has not said, the keeper finds out.
    pub(crate) async fn launched(&self, programs: Vec<(String, i64)>) -> Result<()> {
        self.send(&ToKeeper::Launched { programs }).await
    }

    /// Replaces the binding of an instance.
    pub(crate) async fn rebind(&self, id: &str, binding: Binding) -> Result<()> {
        self.send(&ToKeeper::Rebind { id: id.to_owned(), binding }).await
    }

    /// How far the reader has come that the instance waits for; `None`: it is away.
    pub(crate) async fn read_log(&self, id: &str, taken: Option<u64>) -> Result<()> {
        self.send(&ToKeeper::Read { id: id.to_owned(), taken }).await
    }

    /// The instance is cleaned up.
    pub(crate) async fn forget(&self, id: &str) -> Result<()> {
        lock(&self.waiting).binds.remove(id);
        self.send(&ToKeeper::Forget { id: id.to_owned() }).await
    }

    /// Ids of containers that were asked for and did not come yet.
    pub(crate) fn in_flight(&self) -> Vec<String> {
        lock(&self.waiting).makes.keys().cloned().collect()
    }

    /// Puts a bind where the keeper finds it as soon as the program has started, without waking it up before. False if
    /// there is no room, or it is too long: then it goes the common way, which says what is wrong.
    fn send_quietly(&self, message: &ToKeeper) -> bool {
        let (Some(binds), Ok(bytes)) = (self.binds.get(), encode(message)) else { return false };
        bytes.len() <= MAX_MESSAGE && socket::send(binds, &bytes, &[], MsgFlags::MSG_DONTWAIT).is_ok()
    }

    async fn send(&self, message: &ToKeeper) -> Result<()> {
        self.send_with(message, &[]).await
    }

    async fn send_with(&self, message: &ToKeeper, fds: &[RawFd]) -> Result<()> {
        let bytes = encode(message).map_err(|error| Error::Internal(format!("a message to the keeper: {error}")))?;
        if bytes.len() > MAX_MESSAGE {
            let rule = format!("must leave the record below {MAX_MESSAGE} bytes, it takes {}", bytes.len());
            return Err(fsb_proto::Invalid::new("claim_document", rule).into());
        }
        loop {
            match socket::send(self.socket.get_ref(), &bytes, fds, MsgFlags::MSG_DONTWAIT) {
                Ok(()) => return Ok(()),
                Err(Errno::EAGAIN) => {
                    let ready = self.socket.writable().await.map_err(|error| Error::io("the keeper's socket", &error));
                    let mut ready = ready?;
                    // Tried again before it is believed to be full: it may have drained in between.
                    match socket::send(self.socket.get_ref(), &bytes, fds, MsgFlags::MSG_DONTWAIT) {
                        Ok(()) => return Ok(()),
                        Err(Errno::EAGAIN) => ready.clear_ready(),
                        Err(errno) => return Err(keeper_gone(errno)),
                    }
                }
                Err(errno) => return Err(keeper_gone(errno)),
            }
        }
    }

    async fn read(self: Arc<Self>, events: mpsc::Sender<Event>, welcome: oneshot::Sender<Welcome>) {
        let mut buffer = vec![0; MAX_MESSAGE + 4096];
        let mut hello = Some((welcome, Vec::new()));
        loop {
            let Ok(mut ready) = self.socket.readable().await else { break };
            match socket::recv(self.socket.get_ref(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Ok((0, _)) => break,
                Err(error) => {
                    tracing::error!(%error, "reading from the keeper");
                    break;
                }
                Ok((n, fds)) => match decode::<FromKeeper>(&buffer[..n]) {
                    Err(error) => tracing::error!(%error, "a message from the keeper that is none"),
                    Ok(message) => {
                        if let Some(event) = self.dispatch(message, fds, &mut hello)
                            && events.send(event).await.is_err()
                        {
                            break;
                        }
                    }
                },
            }
        }
        self.gone.cancel();
        *lock(&self.waiting) = Waiting::default();
    }

    fn dispatch(
        &self,
        message: FromKeeper,
        fds: Vec<OwnedFd>,
        hello: &mut Option<(oneshot::Sender<Welcome>, Vec<Known>)>,
    ) -> Option<Event> {
        let mut fds = fds.into_iter();
        match message {
            FromKeeper::Known(record) => {
                let (pidfd, ctl) = (fds.next(), fds.next());
                let Some(pidfd) = pidfd else {
                    tracing::error!(instance = record.made.id, "the keeper knows it but has no pidfd of it");
                    return None;
                };
                let paused = ctl.and_then(|ctl| {
                    Paused::new(record.made.clone(), ctl, pidfd.try_clone().ok()?)
                        .inspect_err(|error| tracing::error!(instance = record.made.id, %error, "its control end"))
                        .ok()
                });
                if let Some((_, known)) = hello {
                    known.push(Known { record, pidfd, paused });
                }
            }
            FromKeeper::Ready { incarnation } => {
                if let Some(binds) = fds.next() {
                    let _ = self.binds.set(binds);
                }
                if let Some((welcome, known)) = hello.take() {
                    let _ = welcome.send(Welcome { known, incarnation });
                }
            }
            FromKeeper::Made(made) => {
                let id = made.id.clone();
                let cgroups = made.cgroups.clone();
                let paused = match (fds.next(), fds.next()) {
                    (Some(ctl), Some(pidfd)) => Paused::new(made, ctl, pidfd).map_err(|error| error.to_string()),
                    _ => Err("it came without its descriptors".to_owned()),
                };
                let waiter = lock(&self.waiting).makes.remove(&id);
                return match (paused, waiter) {
                    (Ok(paused), Some(waiter)) => {
                        waiter.send(Ok(paused)).err().and_then(Result::ok).map(Event::Unclaimed)
                    }
                    (Ok(paused), None) => Some(Event::Unclaimed(paused)),
                    (Err(error), waiter) => {
                        tracing::error!(instance = id, error, "a container cannot be used");
                        if let Some(waiter) = waiter {
                            let failed = MakeFailed { id: id.clone(), stage: "agent".into(), error };
                            let _ = waiter.send(Err(failed));
                        }
                        Some(Event::Unusable { id, cgroups })
                    }
                };
            }
            FromKeeper::MakeFailed(failed) => {
                if let Some(waiter) = lock(&self.waiting).makes.remove(&failed.id) {
                    let _ = waiter.send(Err(failed));
                }
            }
            FromKeeper::Bound { id } => self.bound(&id, true),
            FromKeeper::NoSuch { id } => {
                self.bound(&id, false);
                return Some(Event::Lost { id });
            }
            FromKeeper::Started { id, at_ms } => return Some(Event::Started { id, at_ms }),
            FromKeeper::Ended { id, end } => return Some(Event::Ended { id, end }),
            FromKeeper::SpawnerRestarted => {
                self.spawner_restarts.fetch_add(1, Ordering::Relaxed);
                return Some(Event::SpawnerRestarted);
            }
        }
        None
    }

    fn bound(&self, id: &str, alive: bool) {
        if let Some(waiter) = lock(&self.waiting).binds.remove(id) {
            let _ = waiter.send(alive);
        }
    }
}

fn keeper_gone(errno: Errno) -> Error {
    Error::Unavailable(format!("the keeper is not reachable: {}", errno.desc()))
}

fn make_error(failed: &MakeFailed) -> Error {
    Error::Unavailable(format!("the container could not be made: {}: {}", failed.stage, failed.error))
}
