//! A daemon: a child with a socket to us, that dies with us.

use crate::link::{Drained, Link};
use crate::watch::watch;
use fsb_host::{pidfd, process};
use nix::sys::signal::Signal;
use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;
use tracing::warn;

/// Messages handled before other tasks have their turn.
const TURN: usize = 64;
/// More than any socket holds: whoever drains so many has seen all that was there when it began.
pub(crate) const ALL: usize = 1 << 14;
/// A daemon that has closed its socket is expected to end within this.
const LAST_STEPS: Duration = Duration::from_secs(1);

/// A running daemon, or one whose death has not been handled yet.
pub(crate) struct Daemon {
    pub(crate) link: Rc<Link>,
    pub(crate) pid: i32,
    pidfd: AsyncFd<OwnedFd>,
    since: Instant,
    /// Has said that it serves.
    pub(crate) served: Cell<bool>,
}

impl Daemon {
    /// Starts `program` (with its arguments) with `environment` on top of our own.
    pub(crate) fn start(program: &[String], environment: &[(&str, &str)]) -> io::Result<Self> {
        let (link, theirs) = Link::pair()?;
        let mut command = Command::new(program.first().map_or("", String::as_str));
        command.args(program.get(1..).unwrap_or_default()).stdin(Stdio::null()).envs(environment.iter().copied());
        // The first backtrace costs 150 ms.
        command.env("RUST_LIB_BACKTRACE", "0");
        let (pid, pidfd) = process::spawn(&mut command, theirs.as_fd())?;
        let pidfd = watch(pidfd, Interest::READABLE)?;
        Ok(Self { link, pid, pidfd, since: Instant::now(), served: Cell::new(false) })
    }

    /// How long it has lived.
    pub(crate) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Waits for its death, by its pidfd: copies of its socket may live on in half-made containers.
    pub(crate) async fn died(&self) {
        if let Err(error) = self.pidfd.readable().await {
            warn!(%error, pid = self.pid, "a daemon's pidfd cannot be watched");
        }
    }

    /// Whether it has ended.
    pub(crate) fn is_dead(&self) -> bool {
        pidfd::ended(self.pidfd.as_fd())
    }

    /// Sends a signal; a dead one does not mind.
    pub(crate) fn kill(&self, signal: Signal) {
        let _ = pidfd::kill(self.pidfd.as_fd(), signal);
    }

    /// Calls `drain` with a number of messages whenever there are some, until the daemon is dead. The caller drains
    /// once more then.
    pub(crate) async fn serve(&self, drain: impl Fn(usize) -> Drained) {
        loop {
            tokio::select! {
                biased;
                () = self.died() => return,
                ready = self.link.readable() => {
                    let drained = drain(TURN);
                    match (ready, drained) {
                        (Ok(mut ready), Drained::Empty) => ready.clear_ready(),
                        (Ok(_), Drained::More) => {}
                        (Err(_), _) | (_, Drained::Closed) => break,
                    }
                }
            }
            tokio::task::yield_now().await;
        }
        if tokio::time::timeout(LAST_STEPS, self.died()).await.is_err() {
            warn!(pid = self.pid, "a daemon has closed its socket and lives on: it is killed");
            self.kill(Signal::SIGKILL);
            self.died().await;
        }
    }
}
