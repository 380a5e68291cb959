//! Logs: both pipes of every sandbox → one file each, in the CRI format.
//!
//! Nothing is lost between a process's write and the file: a pipe is read, framed and written in turn, and read again
//! when the write is done, so a refusing disk fills the pipe and stops its writer, and nobody else's. What is read
//! first after a silence is written at once; a chatty pipe is read every few milliseconds. Nothing ticks when all
//! pipes are quiet.
//!
//! | module | is about |
//! |---|---|
//! | `drain`, `pipe` | reading all pipes, one task for all of them |
//! | `pace`, `timer` | when |
//! | `frame` | bytes to records (pure) |
//! | `sink`, `disk` | records to files, rotation, a disk that refuses or is slow |
//! | `hold` | whether a reader still needs the oldest file (pure) |
//! | `engine`, `uring`, `epoll` | what a disk may hold up: with io_uring, or plainly where a probe finds it forbidden |

mod disk;
mod drain;
mod engine;
mod epoll;
mod frame;
mod hold;
mod pace;
mod pipe;
mod sink;
mod timer;
mod uring;

pub(crate) use sink::Rotation;

use drain::Drain;
use engine::Engine;
use epoll::Epoll;
use frame::Stream;
use hold::Hold;
use sink::Sink;
use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tracing::{error, info, warn};
use uring::Uring;

/// Which engine to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// The ring if the kernel gives us one.
    Probe,
    /// The ring or nothing.
    Uring,
    /// epoll.
    Epoll,
}

/// Submission entries of the ring: operations started in one turn of the loop. More of them take two system calls.
const RING_ENTRIES: u32 = 256;
/// After how many tasks of ours the kernel is asked for events; tokio's default of 61 lets control messages wait.
const EVENT_INTERVAL: u32 = 16;
/// How long a cut pipe may take for what lay in it.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Runs the keeper on the runtime that the chosen engine needs: one thread either way.
pub(crate) fn run<M: AsyncFnOnce(Logs) -> T, T>(choice: Choice, rotation: Rotation, main: M) -> io::Result<T> {
    if choice != Choice::Epoll {
        match tokio_uring::Runtime::new(tokio_uring::builder().entries(RING_ENTRIES)) {
            Ok(runtime) => {
                info!(engine = "io_uring", "logs");
                return runtime.block_on(async { Ok(main(Logs::open::<Uring>(rotation)?).await) });
            }
            Err(error) if choice == Choice::Uring => return Err(error),
            Err(error) => warn!(%error, "no io_uring here, logs go through epoll"),
        }
    }
    info!(engine = "epoll", "logs");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().event_interval(EVENT_INTERVAL).build()?;
    let main = async { Ok(main(Logs::open::<Epoll>(rotation)?).await) };
    tokio::task::LocalSet::new().block_on(&runtime, main)
}

/// Takes pipes over.
pub(crate) struct Logs {
    attach: Box<dyn Fn(PathBuf, OwnedFd, OwnedFd) -> io::Result<Log>>,
}

impl Logs {
    fn open<E: Engine>(rotation: Rotation) -> io::Result<Self> {
        let drain = Rc::new(Drain::<E>::new(rotation)?);
        let task = drain.clone();
        tokio::task::spawn_local(async move {
            if let Err(error) = task.run().await {
                // Half a keeper is worse than none: whoever watches this process starts a whole one.
                error!(%error, "logs cannot be drained any more");
                std::process::exit(1);
            }
        });
        Ok(Self {
            attach: Box::new(move |path, out, err| Ok(Log(Box::new(Both::open(path, out, err, rotation, &drain)?)))),
        })
    }

    /// Drains the read ends `out` and `err` into the file at `path` from here on.
    pub(crate) fn attach(&self, path: PathBuf, out: OwnedFd, err: OwnedFd) -> io::Result<Log> {
        (self.attach)(path, out, err)
    }
}

/// The log of one instance. When it is dropped, what is not written yet is dropped too.
pub(crate) struct Log(Box<dyn Attached>);

impl Log {
    /// Makes the file if it is not there yet, in the background.
    pub(crate) fn touch(&self) {
        self.0.touch();
    }

    /// It has an owner, who is `attached` to it or not: see [`hold`].
    pub(crate) fn bound(&self, attached: bool) {
        self.0.handle().hold.bound(attached, Instant::now());
    }

    /// Whoever is attached to it has taken its first `taken` bytes; `None`: no such reader is there.
    pub(crate) fn read(&self, taken: Option<u64>) {
        self.0.handle().hold.read(taken, Instant::now());
    }

    /// Waits until both pipes are at their end and all of it is in the file, but not longer than `patience`: then only
    /// what lies in the pipes is read, whoever still holds their other ends. On a refusing disk the rest is written
    /// when it can be, after this has returned.
    pub(crate) async fn finish(&self, patience: Duration) {
        self.0.look();
        let handle = self.0.handle();
        if tokio::time::timeout(patience, handle.over()).await.is_err() {
            handle.hold.end();
            self.0.cut();
            let _ = tokio::time::timeout(LAST_WORDS, handle.over()).await;
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let handle = self.0.handle();
        handle.forgotten.set(true);
        handle.forget.notify_waiters();
        self.0.cut();
    }
}

/// [`Both`], whatever its engine.
trait Attached {
    fn handle(&self) -> &Handle;
    fn touch(&self);
    /// Reads the pipes now: their process has ended.
    fn look(&self);
    /// Reads what lies in the pipes, and closes them.
    fn cut(&self);
}

/// Both pipes of an instance.
struct Both<E: Engine> {
    drain: Rc<Drain<E>>,
    sink: Rc<Sink<E>>,
    handle: Rc<Handle>,
    tokens: [u64; 2],
}

impl<E: Engine> Both<E> {
    fn open(path: PathBuf, out: OwnedFd, err: OwnedFd, rotation: Rotation, drain: &Rc<Drain<E>>) -> io::Result<Self> {
        let handle = Rc::new(Handle::default());
        let sink = Rc::new(Sink::new(path, rotation, handle.clone()));
        let first = drain.add(out, Stream::Stdout, &sink, &handle)?;
        let second = drain.add(err, Stream::Stderr, &sink, &handle).inspect_err(|_| drain.cut(first))?;
        Ok(Self { drain: drain.clone(), sink, handle, tokens: [first, second] })
    }
}

impl<E: Engine> Attached for Both<E> {
    fn handle(&self) -> &Handle {
        &self.handle
    }

    fn touch(&self) {
        if self.drain.touch_now(&self.sink) {
            return;
        }
        let sink = self.sink.clone();
        tokio::task::spawn_local(async move { sink.touch().await });
    }

    fn look(&self) {
        for token in self.tokens {
            // Whether others hold its writing end is seen by reading.
            self.drain.serve(token, true);
        }
    }

    fn cut(&self) {
        for token in self.tokens {
            self.drain.cut(token);
        }
    }
}

/// What the owner of a log and its pipes share.
#[derive(Default)]
struct Handle {
    /// Pipes that are not at their end.
    open: Cell<usize>,
    forgotten: Cell<bool>,
    hold: Hold,
    over: Notify,
    forget: Notify,
}

impl Handle {
    /// Whether all is read and written.
    fn is_over(&self) -> bool {
        self.open.get() == 0
    }

    async fn over(&self) {
        while !self.is_over() {
            self.over.notified().await;
        }
    }

    fn is_forgotten(&self) -> bool {
        self.forgotten.get()
    }

    async fn forgotten(&self) {
        while !self.is_forgotten() {
            self.forget.notified().await;
        }
    }
}
