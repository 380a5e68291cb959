//! One way to start a program.

use crate::burst::{self, Burst};
use crate::helper::Helper;
use crate::payload::Payload;
use crate::refill::Meter;
use anyhow::bail;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// How an agent got the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// From the stock of paused containers.
    Stock,
    /// Cast for this start.
    Cast,
    /// Made by libcontainer for this start.
    Libcontainer,
}

impl Source {
    /// Its name in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Source::Stock => "stock",
            Source::Cast => "cast",
            Source::Libcontainer => "libcontainer",
        }
    }

    /// From the agent's wire; unknown ones are `None`.
    pub fn from_wire(value: i32) -> Option<Self> {
        use fsb_proto::agent::Source as Wire;
        match Wire::try_from(value).ok()? {
            Wire::Stock => Some(Source::Stock),
            Wire::Cast => Some(Source::Cast),
            Wire::Libcontainer => Some(Source::Libcontainer),
            Wire::Unknown => None,
        }
    }
}

/// One sample: a program that was started and has taken its stamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// When the call was made, in nanoseconds of the monotonic clock.
    pub called_ns: u64,
    /// What the program read from the same clock as its first act.
    pub stamp_ns: u64,
    /// Where the container came from, if it is one of ours.
    pub source: Option<Source>,
}

impl Started {
    /// From the moment when it was due, or else from the call, to the stamp, in nanoseconds; `None` for a stamp that is
    /// older than the call.
    pub fn took_ns(&self, due_ns: Option<u64>) -> Option<u64> {
        let since_call = self.stamp_ns.checked_sub(self.called_ns)?;
        Some(since_call + due_ns.map_or(0, |due| self.called_ns.saturating_sub(due)))
    }
}

/// A way to start a program. Everything that is not part of a start (waiting for the end, cleaning up, waiting
/// until the stock is full again) is done by `start` outside of the two times that it returns.
pub trait Cell {
    /// The cell's name in tables and files.
    fn name(&self) -> &'static str;

    /// What it does not do that a sandbox of ours does; empty = nothing is left out.
    fn leaves_out(&self) -> &'static str {
        ""
    }

    /// Starts `ask.count` programs in one instant, waits for all stamps, ends them and cleans up.
    fn burst(&mut self, _: burst::Ask) -> anyhow::Result<Burst> {
        bail!("{} starts one at a time", self.name())
    }

    /// Processor time of making one paused container, in microseconds, if it has a stock of them.
    fn refill_us(&mut self) -> Option<f64> {
        None
    }

    /// Mean microseconds of each step of its starts, if it knows them.
    fn stages(&mut self) -> BTreeMap<String, f64> {
        BTreeMap::new()
    }

    /// Starts the program, waits for its stamp, ends it and cleans up. `due_ns` is the moment of the monotonic clock at
    /// which the call is to be made: it is made then, or at once if that has passed.
    fn start(&mut self, payload: Payload, due_ns: Option<u64>) -> anyhow::Result<Started>;
}

/// A cell in a helper process.
pub struct Remote {
    name: &'static str,
    leaves_out: &'static str,
    helper: Rc<RefCell<Helper>>,
    refill: Option<Meter>,
}

impl Remote {
    /// The cell `name` of `helper`.
    pub fn new(name: &'static str, leaves_out: &'static str, helper: &Rc<RefCell<Helper>>) -> Self {
        Self { name, leaves_out, helper: helper.clone(), refill: None }
    }

    /// With a meter of its refills.
    pub fn metered(self, refill: Option<Meter>) -> Self {
        Self { refill, ..self }
    }
}

impl Cell for Remote {
    fn name(&self) -> &'static str {
        self.name
    }

    fn leaves_out(&self) -> &'static str {
        self.leaves_out
    }

    fn stages(&mut self) -> BTreeMap<String, f64> {
        self.helper.borrow_mut().stages()
    }

    fn start(&mut self, payload: Payload, due_ns: Option<u64>) -> anyhow::Result<Started> {
        self.refill.iter_mut().for_each(|meter| meter.started(1));
        self.helper.borrow_mut().start(self.name, payload, due_ns)
    }

    fn burst(&mut self, ask: burst::Ask) -> anyhow::Result<Burst> {
        self.refill.iter_mut().for_each(|meter| meter.started(ask.count));
        self.helper.borrow_mut().burst(self.name, ask)
    }

    fn refill_us(&mut self) -> Option<f64> {
        self.refill.as_ref()?.cpu_us()
    }
}
