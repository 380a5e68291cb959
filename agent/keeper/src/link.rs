//! The keeper's end of a daemon's socket: sends now or queues, never blocks.

use crate::watch::watch;
use fsb_host::{socket, wire};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, setsockopt, sockopt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use tokio::sync::Notify;
use tracing::{error, warn};

/// Messages that wait in the keeper at most, beside those in the socket.
const QUEUE: usize = 1 << 16;
/// Bytes that wait in the socket; the kernel doubles it and cuts it at net.core.wmem_max.
const SOCKET_BYTES: usize = 1 << 20;
/// Messages sent from the queue in one turn.
const TURN: usize = 64;
/// Wait after the kernel refused for lack of memory or of descriptors in flight.
const REFUSED: Duration = Duration::from_millis(10);

/// Descriptors that go with a message.
pub(crate) type Attached = Vec<Rc<OwnedFd>>;

/// The queue is full: the daemon has not read for long.
#[derive(Debug)]
pub(crate) struct Full;

/// Why a receive loop has stopped.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Drained {
    /// There may be more.
    More,
    /// There is no message now.
    Empty,
    /// The other end is closed.
    Closed,
}

enum Item {
    Ready(Vec<u8>, Attached),
    /// Encoded when its turn comes; `None` = there is nothing to say any more.
    Later(Box<dyn FnOnce() -> Option<(Vec<u8>, Attached)>>),
}

/// One end.
pub(crate) struct Link {
    socket: AsyncFd<OwnedFd>,
    buffer: RefCell<Vec<u8>>,
    queue: RefCell<VecDeque<Item>>,
    flushing: Cell<bool>,
    closed: Cell<bool>,
    close: Notify,
}

impl Link {
    /// A link and the descriptor for the daemon.
    pub(crate) fn pair() -> io::Result<(Rc<Self>, OwnedFd)> {
        let (ours, theirs) = socket::pair()?;
        for end in [&ours, &theirs] {
            setsockopt(end, sockopt::SndBuf, &SOCKET_BYTES)?;
        }
        let link = Self {
            // Not for writing: every message that the daemon reads would wake us.
            socket: watch(ours, Interest::READABLE)?,
            buffer: RefCell::new(vec![0; wire::MAX_MESSAGE]),
            queue: RefCell::default(),
            flushing: Cell::new(false),
            closed: Cell::new(false),
            close: Notify::new(),
        };
        Ok((Rc::new(link), theirs))
    }

    /// Waits for a message.
    pub(crate) async fn readable(&self) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        self.socket.readable().await
    }

    /// Handles at most `limit` messages that are there. `handle` must not drain this link itself.
    pub(crate) fn drain<T: DeserializeOwned>(&self, limit: usize, mut handle: impl FnMut(T, Vec<OwnedFd>)) -> Drained {
        for _ in 0..limit {
            let mut buffer = self.buffer.borrow_mut();
            let (message, fds) = match socket::recv(&self.socket, &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok((0, _)) => return Drained::Closed,
                Ok((bytes, fds)) => (wire::decode(&buffer[..bytes]), fds),
                Err(Errno::EAGAIN) => return Drained::Empty,
                Err(Errno::EMSGSIZE) => {
                    error!("a message is too long or its descriptors did not fit; hint: raise the limit of open files");
                    continue;
                }
                Err(error) => {
                    warn!(%error, "a daemon's socket cannot be read");
                    return Drained::Closed;
                }
            };
            drop(buffer);
            match message {
                Ok(message) => handle(message, fds),
                Err(error) => error!(%error, "a message cannot be decoded; hint: all programs must be of one version"),
            }
        }
        Drained::More
    }

    /// Sends a message, or queues it behind others.
    pub(crate) fn send<T: Serialize>(self: &Rc<Self>, message: &T, fds: Attached) -> Result<(), Full> {
        let Some(bytes) = encode(message) else { return Ok(()) };
        if self.queue.borrow().is_empty() {
            match self.try_send(&bytes, &fds) {
                Ok(()) => return Ok(()),
                Err(error) if is_final(error) => return Ok(()),
                Err(_) => {}
            }
        }
        if self.queue.borrow().len() >= QUEUE {
            return Err(Full);
        }
        self.push(Item::Ready(bytes, fds));
        Ok(())
    }

    /// Queues a message that is made when its turn comes.
    pub(crate) fn send_later<T: Serialize>(self: &Rc<Self>, make: impl FnOnce() -> Option<(T, Attached)> + 'static) {
        self.push(Item::Later(Box::new(move || {
            let (message, fds) = make()?;
            Some((encode(&message)?, fds))
        })));
    }

    /// Gives up what is queued: the daemon is dead.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        self.queue.borrow_mut().clear();
        self.close.notify_waiters();
    }

    fn push(self: &Rc<Self>, item: Item) {
        if self.closed.get() {
            return;
        }
        self.queue.borrow_mut().push_back(item);
        if !self.flushing.replace(true) {
            tokio::task::spawn_local(self.clone().flush());
        }
    }

    fn try_send(&self, bytes: &[u8], fds: &Attached) -> Result<(), Errno> {
        let raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        let sent = socket::send(&self.socket, bytes, &raw, MsgFlags::MSG_DONTWAIT);
        if let Err(error) = sent
            && error == Errno::EMSGSIZE
        {
            error!(bytes = bytes.len(), "a message is longer than the socket takes and is dropped");
        }
        sent
    }

    async fn flush(self: Rc<Self>) {
        let mut writable = None;
        'turns: loop {
            for _ in 0..TURN {
                let Some(item) = self.queue.borrow_mut().pop_front() else { break 'turns };
                let made = match item {
                    Item::Ready(bytes, fds) => Some((bytes, fds)),
                    Item::Later(make) => make(),
                };
                let Some((bytes, fds)) = made else { continue };
                let Err(error) = self.try_send(&bytes, &fds) else { continue };
                if is_final(error) {
                    continue;
                }
                self.queue.borrow_mut().push_front(Item::Ready(bytes, fds));
                tokio::select! {
                    () = self.close.notified() => {}
                    () = self.room(error, &mut writable) => {}
                }
            }
            tokio::task::yield_now().await;
        }
        self.flushing.set(false);
    }

    /// Waits until a send may succeed that failed with `error`.
    async fn room(&self, error: Errno, writable: &mut Option<AsyncFd<OwnedFd>>) {
        if error == Errno::EAGAIN {
            if writable.is_none() {
                let duplicate = self.socket.get_ref().try_clone();
                *writable = duplicate.and_then(|fd| watch(fd, Interest::WRITABLE)).ok();
            }
            if let Some(Ok(mut ready)) = match &writable {
                Some(socket) => Some(socket.writable().await),
                None => None,
            } {
                ready.clear_ready();
                return;
            }
        }
        tokio::time::sleep(REFUSED).await;
    }
}

/// Whether sending again cannot help.
fn is_final(error: Errno) -> bool {
    !matches!(error, Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM | Errno::ETOOMANYREFS)
}

fn encode<T: Serialize>(message: &T) -> Option<Vec<u8>> {
    wire::encode(message).inspect_err(|error| error!(%error, "a message cannot be encoded")).ok()
}
