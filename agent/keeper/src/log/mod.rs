//! Logs: both pipes of every sandbox → one file each, in the CRI format.
//!
//! Nothing is lost between a process's write and the file: a pipe is read, framed and written in turn, and read again
//! when the write is done, so a refusing disk fills the pipe and stops its writer, and nobody else's. What is read
//! first after a silence is written at once; a chatty pipe is read every few milliseconds. Nothing ticks when all
//! pipes are quiet.
//!
//! The engine is io_uring, or epoll where a probe at the start finds it forbidden. Only this module knows which.

mod engine;
mod epoll;
mod frame;
mod pace;
mod pump;
mod sink;
mod uring;

pub(crate) use sink::Rotation;

use engine::Engine;
use epoll::Epoll;
use frame::Stream;
use nix::fcntl::OFlag;
use pace::Pace;
use sink::Sink;
use std::cell::{Cell, RefCell};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{info, warn};
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

/// Written into a pipe to wake its pump.
const WAKE: &[u8] = b"\n";
/// Submission entries of the ring: operations started in one turn of the loop. More of them take two system calls.
const RING_ENTRIES: u32 = 256;
/// After how many tasks of ours the kernel is asked for events; tokio's default of 61 lets control messages wait.
const EVENT_INTERVAL: u32 = 16;
/// How long a cut pump may take for what lay in its pipe.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Runs the keeper on the runtime that the chosen engine needs: one thread either way.
pub(crate) fn run<M: AsyncFnOnce(Logs) -> T, T>(choice: Choice, rotation: Rotation, main: M) -> io::Result<T> {
    if choice != Choice::Epoll {
        match tokio_uring::Runtime::new(tokio_uring::builder().entries(RING_ENTRIES)) {
            Ok(runtime) => {
                info!(engine = "io_uring", "logs");
                return Ok(runtime.block_on(main(Logs::new::<Uring>(rotation))));
            }
            Err(error) if choice == Choice::Uring => return Err(error),
            Err(error) => warn!(%error, "no io_uring here, logs go through epoll"),
        }
    }
    info!(engine = "epoll", "logs");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().event_interval(EVENT_INTERVAL).build()?;
    Ok(tokio::task::LocalSet::new().block_on(&runtime, main(Logs::new::<Epoll>(rotation))))
}

/// Takes pipes over.
pub(crate) struct Logs {
    attach: Box<dyn Fn(PathBuf, OwnedFd, OwnedFd) -> io::Result<Log>>,
}

impl Logs {
    fn new<E: Engine>(rotation: Rotation) -> Self {
        let shared = Rc::new(Shared::new(rotation));
        Self { attach: Box::new(move |path, out, err| attach::<E>(path, out, err, rotation, &shared)) }
    }

    /// Drains the read ends `out` and `err` into the file at `path` from here on.
    pub(crate) fn attach(&self, path: PathBuf, out: OwnedFd, err: OwnedFd) -> io::Result<Log> {
        (self.attach)(path, out, err)
    }
}

fn attach<E: Engine>(
    path: PathBuf,
    out: OwnedFd,
    err: OwnedFd,
    rotation: Rotation,
    shared: &Rc<Shared>,
) -> io::Result<Log> {
    let handle = Rc::new(Handle::default());
    let sink = Rc::new(Sink::<E>::new(path, rotation, handle.clone()));
    let pipes = [E::pipe(out)?, E::pipe(err)?];
    handle.open.set(pipes.len());
    for (index, (pipe, stream)) in pipes.into_iter().zip([Stream::Stdout, Stream::Stderr]).enumerate() {
        handle.pipes[index].set(Some(pipe.as_raw_fd()));
        let (sink, handle, shared) = (sink.clone(), handle.clone(), shared.clone());
        tokio::task::spawn_local(async move {
            pump::run::<E>(pipe, stream, sink.clone(), handle.clone(), shared).await;
            handle.pipes[index].set(None);
            handle.open.set(handle.open.get() - 1);
            if handle.is_over() {
                sink.close().await;
                handle.over.notify_waiters();
            }
        });
    }
    let touch = Box::new(move || {
        let sink = sink.clone();
        tokio::task::spawn_local(async move { sink.touch().await });
    });
    Ok(Log { handle, touch })
}

/// The log of one instance. When it is dropped, what is not written yet is dropped too.
pub(crate) struct Log {
    handle: Rc<Handle>,
    touch: Box<dyn Fn()>,
}

impl Log {
    /// Makes the file if it is not there yet, in the background.
    pub(crate) fn touch(&self) {
        (self.touch)();
    }

    /// Waits until both pipes are at their end and all of it is in the file, but not longer than `patience`: then only
    /// what lies in the pipes is read, whoever still holds their other ends. On a refusing disk the rest is written
    /// when it can be, after this has returned.
    pub(crate) async fn finish(&self, patience: Duration) {
        self.handle.finish();
        if tokio::time::timeout(patience, self.handle.over()).await.is_err() {
            self.handle.cut();
            let _ = tokio::time::timeout(LAST_WORDS, self.handle.over()).await;
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.handle.forget();
    }
}

/// What the owner of a log and its pumps share.
#[derive(Default)]
pub(crate) struct Handle {
    /// Pumps that are not at their end.
    open: Cell<usize>,
    /// Descriptors of the pipes that are still read.
    pipes: [Cell<Option<RawFd>>; 2],
    finishing: Cell<bool>,
    cut: Cell<bool>,
    forgotten: Cell<bool>,
    over: Notify,
    finish: Notify,
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

    /// Whether end-of-file is not waited for any more.
    fn is_cut(&self) -> bool {
        self.cut.get()
    }

    /// Stops waiting for end-of-file. A pump that waits for bytes is woken by one of ours, because a read on a ring
    /// cannot be taken back.
    fn cut(&self) {
        if self.cut.replace(true) {
            return;
        }
        self.finish();
        for pipe in self.pipes.iter().filter_map(Cell::get) {
            let wake = || {
                let mut options = std::fs::OpenOptions::new();
                options.write(true).custom_flags(OFlag::O_NONBLOCK.bits());
                options.open(format!("/proc/self/fd/{pipe}"))?.write_all(WAKE)
            };
            // A full pipe needs no waking.
            if let Err(error) = wake()
                && error.kind() != io::ErrorKind::WouldBlock
            {
                warn!(%error, "a pipe cannot be woken: it is closed when its last writer has ended");
            }
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

    fn forget(&self) {
        self.forgotten.set(true);
        self.forget.notify_waiters();
        if !self.is_over() {
            self.cut();
        }
    }

    /// Whether the process has ended, so that there is nothing to wait for but the pipes' ends.
    fn is_finishing(&self) -> bool {
        self.finishing.get()
    }

    /// Waits for the next tick, or for the process's end.
    async fn tick(&self, pace: &Pace) {
        tokio::select! {
            () = tokio::time::sleep_until(pace.next_tick(Instant::now())) => {}
            () = self.finish.notified() => {}
        }
    }

    fn finish(&self) {
        self.finishing.set(true);
        self.finish.notify_waiters();
    }
}

/// What all pumps share: their pace, and buffers, so that quiet pipes have none.
pub(crate) struct Shared {
    pace: Pace,
    file_bytes: usize,
    free: RefCell<Vec<Vec<u8>>>,
}

impl Shared {
    /// Buffers kept for the next one that needs one.
    const KEPT: usize = 8;

    fn new(rotation: Rotation) -> Self {
        let file_bytes = usize::try_from(rotation.max_bytes).unwrap_or(usize::MAX);
        Self { pace: Pace::new(), file_bytes, free: RefCell::default() }
    }

    /// The size of a log file, which a batch should not exceed.
    fn file_bytes(&self) -> usize {
        self.file_bytes
    }

    /// An empty buffer with at least this capacity.
    fn take(&self, capacity: usize) -> Vec<u8> {
        let mut buffer = self.free.borrow_mut().pop().unwrap_or_default();
        buffer.reserve(capacity);
        buffer
    }

    fn give(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let mut free = self.free.borrow_mut();
        // A batch of many short lines is several times as long as its text.
        if free.len() < Self::KEPT && buffer.capacity() > 0 && buffer.capacity() <= 4 * pump::LARGE {
            free.push(buffer);
        }
    }
}
