//! How far a run is.

use std::io::{IsTerminal, Write};

/// One line on a terminal; nothing elsewhere.
#[derive(Debug)]
pub struct Progress {
    total: usize,
    done: usize,
    shown: bool,
}

impl Progress {
    /// Of so many steps.
    pub fn new(total: usize) -> Self {
        Self { total, done: 0, shown: std::io::stderr().is_terminal() }
    }

    /// One more, of what is called `name`.
    pub fn step(&mut self, name: &str) {
        self.done += 1;
        if self.shown && self.done.is_multiple_of(50) {
            let _ = write!(std::io::stderr(), "\r{:>3} %  {name:<20}", self.done * 100 / self.total.max(1));
        }
    }

    /// Takes the line away.
    pub fn end(&self) {
        if self.shown {
            let _ = write!(std::io::stderr(), "\r{:40}\r", "");
        }
    }
}
