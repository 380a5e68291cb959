//! Which logs are being read, so that whoever reads one that is removed learns that there was more.

use crate::lock;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};

/// All that are read.
#[derive(Default)]
pub(super) struct OpenLogs(Mutex<HashMap<String, Opened>>);

#[derive(Default)]
struct Opened {
    readers: usize,
    /// Where it ended when it was removed.
    end: Option<u64>,
}

/// A reader of a log, until it is dropped.
pub(super) struct Open {
    all: Arc<OpenLogs>,
    id: String,
}

impl OpenLogs {
    /// One more reads the log of the instance `id`.
    pub(super) fn read(self: &Arc<Self>, id: &str) -> Open {
        lock(&self.0).entry(id.to_owned()).or_default().readers += 1;
        Open { all: self.clone(), id: id.to_owned() }
    }

    /// The log of the instance `id`, which has `end` bytes, is about to be removed.
    pub(super) fn removed(&self, id: &str, end: impl FnOnce() -> io::Result<u64>) {
        if !lock(&self.0).contains_key(id) {
            return;
        }
        // Where that cannot be told, there was more.
        let end = end().unwrap_or(u64::MAX);
        if let Some(opened) = lock(&self.0).get_mut(id) {
            opened.end.get_or_insert(end);
        }
    }
}

impl Open {
    /// Whether the log was removed, and had more than its first `place` bytes.
    pub(super) fn had_more(&self, place: u64) -> bool {
        lock(&self.all.0).get(&self.id).and_then(|opened| opened.end).is_some_and(|end| end > place)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut all = lock(&self.all.0);
        if let Some(opened) = all.get_mut(&self.id) {
            opened.readers -= 1;
            if opened.readers == 0 {
                all.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_reads_a_log_that_is_removed_knows_whether_there_was_more() {
        let all = Arc::new(OpenLogs::default());
        let (one, two, other) = (all.read("a"), all.read("a"), all.read("b"));
        assert!(!one.had_more(0));
        all.removed("a", || Ok(10));
        all.removed("a", || Ok(0));
        assert!(one.had_more(9) && two.had_more(0));
        assert!(!one.had_more(10) && !other.had_more(0));
        drop((one, two, other));
        all.removed("a", || panic!("nobody reads it"));
        assert!(lock(&all.0).is_empty());
    }
}
