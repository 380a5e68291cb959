//! All pipes of all sandboxes → their files. One task, whatever the number of pipes.
//!
//! A pipe is read, framed and written in turn, without a pause in between, and all that lies in it at once: 64 KiB by
//! one read(2) into one buffer for all, and one write. Where the write is not one plain system call (see [`super::sink`])
//! it goes its own way, and the pipe is not read until it is done.

use super::Handle;
use super::disk::Disk;
use super::engine::Engine;
use super::frame::{Clock, Stream};
use super::pace::{LITTLE, Next, Pace};
use super::pipe::Pipe;
use super::sink::{Rotation, Sink};
use super::timer::Timer;
use crate::watch::watch_shared;
use fsb_host::epoll::{Epoll, Ready};
use fsb_host::process::pipe_bytes;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::sync::Notify;
use tracing::warn;

/// The most that is read at a time: what a pipe holds (pipe(7)).
const READ: usize = 64 << 10;
/// What a pipe may hold whose writer has filled it once, so that it has more to write before it must wait. Its pages count
/// as the sandbox's memory.
const LARGE: i32 = 256 << 10;
/// Records are written when there are so many bytes of them.
const ENOUGH: usize = 128 << 10;
/// So many bytes, or a hundredth as many pipes, and everybody else has a turn: about half a millisecond.
const TURN: usize = 256 << 10;
const EACH: usize = TURN / 100;
/// After so many turns the runtime parks.
const SLEEP: u32 = 8;
/// The most that is read of one pipe at once whose writers have ended.
const LAST_WORDS: usize = 1 << 20;
/// A line that stays open for so long is written as a part, so that a prompt is seen.
const OPEN_LINE: Duration = Duration::from_millis(100);

/// The pipes.
pub(super) struct Drain<E: Engine> {
    epoll: Rc<Epoll>,
    pipes: RefCell<HashMap<u64, Rc<Pipe<E>>>>,
    next: Cell<u64>,
    /// Those that held more than was read. The kernel does not tell of them again.
    more: RefCell<Vec<Ready>>,
    /// Some were added while nobody looked.
    added: Notify,
    /// Pipes with an open line, each with the time at which it should be looked at.
    open_lines: RefCell<VecDeque<(Instant, u64)>>,
    listed: Notify,
    input: RefCell<Box<[u8]>>,
    records: RefCell<Vec<u8>>,
    clock: RefCell<Clock>,
    disk: Disk,
    enough: usize,
    turns: Cell<u32>,
}

impl<E: Engine> Drain<E> {
    /// Without pipes.
    pub(super) fn new(rotation: Rotation) -> io::Result<Self> {
        // A file has room for two batches, so that it is about as long as it should be.
        let half = usize::try_from(rotation.max_bytes / 2).unwrap_or(usize::MAX);
        Ok(Self {
            epoll: Rc::new(Epoll::new()?),
            pipes: RefCell::default(),
            next: Cell::new(0),
            more: RefCell::default(),
            added: Notify::new(),
            open_lines: RefCell::default(),
            listed: Notify::new(),
            input: RefCell::new(vec![0; READ].into()),
            records: RefCell::default(),
            clock: RefCell::new(Clock::new()),
            disk: Disk::default(),
            enough: ENOUGH.min(half),
            turns: Cell::new(0),
        })
    }

    /// Takes a read end over. Returns its token.
    pub(super) fn add(&self, fd: OwnedFd, stream: Stream, sink: &Rc<Sink<E>>, handle: &Rc<Handle>) -> io::Result<u64> {
        // The write end has flags of its own: the sandbox does not see this.
        fcntl(fd.as_raw_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let token = self.next.get();
        self.next.set(token + 1);
        self.epoll.add(&fd, token)?;
        self.pipes.borrow_mut().insert(token, Rc::new(Pipe::new(fd, stream, sink.clone(), handle.clone())));
        handle.open.set(handle.open.get() + 1);
        Ok(token)
    }

    /// Makes a log's file, if that is not expected to wait for the disk. Returns whether it is there.
    pub(super) fn touch_now(&self, sink: &Sink<E>) -> bool {
        let begin = Instant::now();
        if E::PATIENT && !self.disk.is_quick(begin) {
            return false;
        }
        let there = sink.touch_now();
        let now = Instant::now();
        self.disk.wrote(now - begin, now);
        there
    }

    /// Looks after all of them, for ever.
    pub(super) async fn run(self: Rc<Self>) -> io::Result<()> {
        let timer = Timer::new()?;
        let mut pace = Pace::default();
        let mut next = Next::Sleep;
        let mut asleep = None;
        loop {
            match next {
                Next::Sleep => {
                    let readable = match asleep.take() {
                        Some(readable) => readable,
                        None => watch_shared(self.epoll.clone(), Interest::READABLE)?,
                    };
                    tokio::select! {
                        ready = readable.readable() => ready?.clear_ready(),
                        () = self.open_line() => {}
                        () = self.added.notified() => {}
                    }
                    asleep = Some(readable);
                }
                Next::Again => {
                    asleep = None;
                    self.give_way(&timer).await?;
                }
                Next::Rest(time) => {
                    // Out of the runtime's sight: nobody is woken by bytes that gather.
                    asleep = None;
                    timer.sleep(time).await?;
                }
            }
            let most = self.look(&timer).await?;
            let now = Instant::now();
            self.close_lines(now);
            next = pace.after(most, now);
            if !self.more.borrow().is_empty() {
                next = Next::Again;
            }
        }
    }

    /// Reads every pipe that has something. Returns how much the fullest one gave, about.
    async fn look(self: &Rc<Self>, timer: &Timer) -> io::Result<usize> {
        let mut news = std::mem::take(&mut *self.more.borrow_mut());
        let (mut most, mut turn) = (0, 0);
        loop {
            let more = self.epoll.poll(&mut news)?;
            let mut fullest = 0;
            for Ready { token, closed } in news.drain(..) {
                let bytes = self.read(token, closed);
                fullest = bytes.max(fullest);
                turn += bytes + EACH;
                if turn >= TURN {
                    turn = 0;
                    self.give_way(timer).await?;
                }
            }
            most += fullest;
            // A fast writer has gone on meanwhile: looking again at once is cheaper than coming back.
            let goes_on = fullest >= LITTLE && most < TURN;
            if !more && !goes_on {
                return Ok(most);
            }
        }
    }

    /// Everybody else has a turn. A sleep, however short, may cost this thread the processor for long where writers want
    /// it, so it is rare; it is needed for the runtime to hand in what waits for the ring.
    async fn give_way(&self, timer: &Timer) -> io::Result<()> {
        let turns = self.turns.get() + 1;
        self.turns.set(turns % SLEEP);
        if turns == SLEEP {
            timer.sleep(Duration::ZERO).await?;
        } else {
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Reads what a pipe has, out of turn; what is left of it has its turn soon.
    pub(super) fn serve(self: &Rc<Self>, token: u64, closed: bool) {
        self.read(token, closed);
        if !self.more.borrow().is_empty() {
            self.added.notify_one();
        }
    }

    /// Reads what a pipe has: one buffer, or all of it if there is no writer any more (`closed`) or it was cut. Returns
    /// how much it was.
    fn read(self: &Rc<Self>, token: u64, closed: bool) -> usize {
        let Some(pipe) = self.pipes.borrow().get(&token).cloned() else { return 0 };
        pipe.closed.set(pipe.closed.get() || closed);
        let mut total = 0;
        while !pipe.busy.get() {
            let room = pipe.left.get().map_or(READ, |left| left.min(READ));
            let mut input = self.input.borrow_mut();
            match nix::unistd::read(pipe.fd.as_raw_fd(), &mut input[..room]) {
                Ok(0) => {
                    self.end(token, &pipe);
                    break;
                }
                Ok(bytes) => {
                    total += bytes;
                    pipe.left.set(pipe.left.get().map(|left| left - bytes));
                    self.write(token, &pipe, &input[..bytes]);
                    if bytes == READ && !pipe.is_large.replace(true) {
                        // Refused where the host's limits say so (pipe(7)): then it stays as it is.
                        let _ = fcntl(pipe.fd.as_raw_fd(), FcntlArg::F_SETPIPE_SZ(LARGE));
                    }
                    let until_end = pipe.closed.get() || pipe.left.get().is_some();
                    if bytes < room && !until_end {
                        break;
                    }
                    if !until_end || total >= LAST_WORDS {
                        self.more.borrow_mut().push(Ready { token, closed: false });
                        break;
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if pipe.left.get().is_none() => break,
                Err(error) => {
                    if error != Errno::EAGAIN {
                        warn!(%error, "a pipe cannot be read");
                    }
                    self.end(token, &pipe);
                    break;
                }
            }
        }
        total
    }

    /// Reads what lies in a pipe now, and no more, whoever holds its other end.
    pub(super) fn cut(self: &Rc<Self>, token: u64) {
        let Some(pipe) = self.pipes.borrow().get(&token).cloned() else { return };
        if pipe.left.get().is_none() {
            pipe.left.set(Some(pipe_bytes(pipe.fd.as_raw_fd()).unwrap_or(0)));
            self.serve(token, false);
        }
    }

    fn write(self: &Rc<Self>, token: u64, pipe: &Rc<Pipe<E>>, mut input: &[u8]) {
        let begin = Instant::now();
        let stamp = self.clock.borrow_mut().now();
        let mut records = self.records.borrow_mut();
        let mut framer = pipe.framer.borrow_mut();
        let mut late = Vec::new();
        while !input.is_empty() {
            records.clear();
            let used = framer.frame(input, &stamp, self.enough, &mut records);
            input = &input[used..];
            let may_write = late.is_empty() && (!E::PATIENT || self.disk.is_quick(begin));
            let done = records.is_empty() || may_write && pipe.sink.write_now(&records);
            if !done {
                late.push(records.clone());
            }
        }
        pipe.read_at.set(Some(begin));
        if framer.holds_text() && !pipe.is_listed.replace(true) {
            self.open_lines.borrow_mut().push_back((begin + OPEN_LINE, token));
            self.listed.notify_one();
        }
        if late.is_empty() {
            let now = Instant::now();
            self.disk.wrote(now - begin, now);
        } else {
            self.write_later(token, pipe, late);
        }
    }

    /// Writes what could not be written at once, in its own time. The pipe is served again when it is done.
    fn write_later(self: &Rc<Self>, token: u64, pipe: &Rc<Pipe<E>>, batches: Vec<Vec<u8>>) {
        pipe.busy.set(true);
        let (drain, pipe) = (self.clone(), pipe.clone());
        tokio::task::spawn_local(async move {
            for batch in batches {
                pipe.sink.write(batch).await;
            }
            pipe.busy.set(false);
            if pipe.over.get() {
                drain.remove(token, &pipe);
            } else {
                drain.serve(token, false);
            }
        });
    }

    /// The end of a pipe: what is left of its last line is written, then it goes.
    fn end(self: &Rc<Self>, token: u64, pipe: &Rc<Pipe<E>>) {
        pipe.over.set(true);
        self.close_line(token, pipe);
        if !pipe.busy.get() {
            self.remove(token, pipe);
        }
    }

    fn remove(&self, token: u64, pipe: &Rc<Pipe<E>>) {
        if self.pipes.borrow_mut().remove(&token).is_none() {
            return;
        }
        if let Err(error) = self.epoll.remove(&pipe.fd) {
            warn!(%error, "a pipe cannot be forgotten");
        }
        let handle = &pipe.handle;
        handle.open.set(handle.open.get() - 1);
        if handle.is_over() {
            pipe.sink.close();
            handle.over.notify_waiters();
        }
    }

    /// Writes a pipe's open line as a part.
    fn close_line(self: &Rc<Self>, token: u64, pipe: &Rc<Pipe<E>>) {
        let mut part = Vec::new();
        pipe.framer.borrow_mut().flush(&self.clock.borrow_mut().now(), &mut part);
        if !part.is_empty() && !pipe.sink.write_now(&part) {
            self.write_later(token, pipe, vec![part]);
        }
    }

    /// Waits until a line has been open for long.
    async fn open_line(&self) {
        loop {
            let first = self.open_lines.borrow().front().map(|(at, _)| *at);
            match first {
                Some(at) => return tokio::time::sleep_until(at.into()).await,
                None => self.listed.notified().await,
            }
        }
    }

    /// Writes lines that have been open for long by `now`.
    fn close_lines(self: &Rc<Self>, now: Instant) {
        loop {
            let mut lines = self.open_lines.borrow_mut();
            let Some((_, token)) = lines.pop_front_if(|(at, _)| *at <= now) else { return };
            let Some(pipe) = self.pipes.borrow().get(&token).cloned() else { continue };
            pipe.is_listed.set(false);
            if !pipe.framer.borrow().holds_text() {
                continue;
            }
            if pipe.busy.get() || pipe.read_at.get().is_some_and(|at| at + OPEN_LINE > now) {
                pipe.is_listed.set(true);
                lines.push_back((now + OPEN_LINE, token));
                continue;
            }
            drop(lines);
            self.close_line(token, &pipe);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::epoll::Epoll as Plain;
    use super::*;
    use std::fs::File;
    use std::path::Path;

    /// Waits a moment for the disk.
    struct Patient;

    impl Engine for Patient {
        type File = File;

        const PATIENT: bool = true;

        fn adopt(file: File) -> File {
            file
        }

        async fn open(path: &Path) -> io::Result<File> {
            Plain::open(path).await
        }

        async fn write(file: &File, buffer: Vec<u8>, offset: u64) -> (io::Result<()>, Vec<u8>) {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Plain::write(file, buffer, offset).await
        }

        async fn rename(from: &Path, to: &Path) -> io::Result<()> {
            Plain::rename(from, to).await
        }

        async fn remove(path: &Path) -> io::Result<()> {
            Plain::remove(path).await
        }
    }

    #[test]
    fn what_lies_in_a_pipe_is_read_to_its_end_after_a_write_that_waited_for_the_disk() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("log");
            let rotation = Rotation { max_bytes: 1 << 30, files: 2 };
            let drain = Rc::new(Drain::<Patient>::new(rotation).unwrap());
            let task = tokio::task::spawn_local(drain.clone().run());
            let (out, mut program) = io::pipe().unwrap();
            fcntl(program.as_raw_fd(), FcntlArg::F_SETPIPE_SZ(LARGE)).unwrap();
            io::Write::write_all(&mut program, &b"y\n".repeat(LARGE as usize / 2)).unwrap();

            // The file is not open yet: the first write waits for it, the others do not wait.
            let handle = Rc::new(Handle::default());
            let sink = Rc::new(Sink::new(path.clone(), rotation, handle.clone()));
            drain.add(out.into(), Stream::Stdout, &sink, &handle).unwrap();
            let end = Instant::now() + Duration::from_secs(10);
            let lines = || std::fs::read(&path).map_or(0, |log| log.iter().filter(|byte| **byte == b'\n').count());
            while lines() < LARGE as usize / 2 {
                assert!(Instant::now() < end && !task.is_finished(), "{} lines are written", lines());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            // Its writing end is open still: nothing but what was written tells of it.
            drop(program);
            task.abort();
        });
    }
}
