//! Many starts at once: the instant in which all were asked for, and what became of each.

use crate::cell::Source;
use crate::payload::Payload;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    pub payload: Payload,
    pub count: usize,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Burst {
    /// When all were asked for, in nanoseconds of the monotonic clock.
    pub called_ns: u64,
    /// The stamps of those that started.
    pub stamps_ns: Vec<u64>,
    /// Where their containers came from, if they are ours.
    pub sources: BTreeMap<Source, u64>,
    /// Starts that gave no stamp.
    pub failed: u64,
    /// Why, of one of them.
    pub error: Option<String>,
}

impl Burst {
    /// Nothing yet, asked for at `called_ns`.
    pub fn at(called_ns: u64) -> Self {
        Self { called_ns, ..Self::default() }
    }

    /// What became of one start.
    pub fn put(&mut self, stamp: anyhow::Result<u64>) {
        match stamp {
            Ok(stamp) if stamp >= self.called_ns => self.stamps_ns.push(stamp),
            Ok(_) => self.fail("a stamp from before the call".into()),
            Err(error) => self.fail(format!("{error:#}")),
        }
    }

    /// Where `n` containers came from.
    pub fn put_source(&mut self, source: Source, n: u64) {
        *self.sources.entry(source).or_default() += n;
    }

    fn fail(&mut self, error: String) {
        self.failed += 1;
        self.error = Some(error);
    }

    /// From the call to each stamp, in nanoseconds.
    pub fn took_ns(&self) -> impl Iterator<Item = u64> + '_ {
        self.stamps_ns.iter().map(|stamp| stamp - self.called_ns)
    }

    /// From the call to the last stamp; `None` if nothing started.
    pub fn last_ns(&self) -> Option<u64> {
        self.took_ns().max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_stamp_counts_and_what_failed_is_counted_apart() {
        let mut burst = Burst::at(1000);
        burst.put(Ok(3000));
        burst.put(Ok(2000));
        burst.put(Ok(500));
        burst.put(Err(anyhow::anyhow!("full")));
        burst.put_source(Source::Stock, 1);
        assert_eq!((burst.last_ns(), burst.failed, burst.error.as_deref()), (Some(2000), 2, Some("full")));
        assert_eq!(burst.took_ns().collect::<Vec<_>>(), [2000, 1000]);
        assert_eq!(Burst::at(1).last_ns(), None);
    }
}
