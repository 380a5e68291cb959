//! One pipe of one sandbox.

use super::Handle;
use super::engine::Engine;
use super::frame::{Framer, Stream};
use super::sink::Sink;
use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Instant;

/// The read end, and what becomes of what it holds.
pub(super) struct Pipe<E: Engine> {
    pub(super) fd: OwnedFd,
    pub(super) framer: RefCell<Framer>,
    pub(super) sink: Rc<Sink<E>>,
    pub(super) handle: Rc<Handle>,
    /// What was read waits for the disk: nothing more is read meanwhile, so that the writer waits too.
    pub(super) busy: Cell<bool>,
    /// It was made larger, or cannot be.
    pub(super) is_large: Cell<bool>,
    /// There is no writer any more.
    pub(super) closed: Cell<bool>,
    /// Its end was reached, and what was read is being written.
    pub(super) over: Cell<bool>,
    /// So much may still be read, whoever holds its other end; `None` = until its end.
    pub(super) left: Cell<Option<usize>>,
    /// When it last had bytes.
    pub(super) read_at: Cell<Option<Instant>>,
    /// Somebody will look whether its open line stays open.
    pub(super) is_listed: Cell<bool>,
}

impl<E: Engine> Pipe<E> {
    pub(super) fn new(fd: OwnedFd, stream: Stream, sink: Rc<Sink<E>>, handle: Rc<Handle>) -> Self {
        Self {
            fd,
            framer: RefCell::new(Framer::new(stream)),
            sink,
            handle,
            busy: Cell::new(false),
            is_large: Cell::new(false),
            closed: Cell::new(false),
            over: Cell::new(false),
            left: Cell::new(None),
            read_at: Cell::new(None),
            is_listed: Cell::new(false),
        }
    }
}
