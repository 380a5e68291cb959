//! Layers of dead containers, kept for the next ones.
//!
//! Each container has a dozen files and directories on the disk. Where containers come and go quickly, making and
//! removing them is what the disk's file system spends most time on, so half of them stay and are used again (see
//! [`fsb_host::layer`] for which).

use crate::{Agent, lock};
use fsb_host::layer;
use fsb_host::paths::{Paths, SPARE};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// The most that are kept.
const MOST: usize = 64;
/// How long nobody may have wanted one.
const KEPT_FOR: Duration = Duration::from_secs(5);

pub(crate) struct Spares {
    paths: Paths,
    /// Instances that have left one and when, the oldest first.
    kept: Mutex<VecDeque<(String, Instant)>>,
    came: Notify,
}

impl Spares {
    /// Those that an agent before this one kept.
    pub(crate) fn find(paths: &Paths) -> Self {
        let entries = std::fs::read_dir(paths.layers()).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let now = Instant::now();
        let kept = names.filter_map(|name| Some((name.strip_suffix(SPARE)?.to_owned(), now))).collect();
        Self { paths: paths.clone(), kept: Mutex::new(kept), came: Notify::new() }
    }

    /// One for the next container.
    pub(crate) fn take(&self) -> Option<Spare<'_>> {
        lock(&self.kept).pop_back().map(|(id, _)| Spare { spares: self, id })
    }

    fn put(&self, id: String) {
        lock(&self.kept).push_back((id, Instant::now()));
        self.came.notify_one();
    }

    /// Keeps the layer of a dead container in `dir`, unmounted and stripped. Not if there are enough.
    pub(crate) fn keep(&self, id: &str, dir: &Path) -> bool {
        let kept = lock(&self.kept).len() < MOST && std::fs::rename(dir, self.paths.spare(id)).is_ok();
        if kept {
            self.put(id.to_owned());
        }
        kept
    }

    /// When the oldest one is to go.
    fn due(&self) -> Option<Instant> {
        lock(&self.kept).front().map(|(_, since)| *since + KEPT_FOR)
    }

    fn expired(&self, now: Instant) -> Vec<PathBuf> {
        let mut kept = lock(&self.kept);
        let expired = std::iter::from_fn(|| kept.pop_front_if(|(_, since)| *since + KEPT_FOR <= now));
        expired.map(|(id, _)| self.paths.spare(&id)).collect()
    }
}

/// A layer that was offered to a container. Goes back unless it was used; one that was used nevertheless is not there, and
/// whoever is offered it makes do without.
pub(crate) struct Spare<'a> {
    spares: &'a Spares,
    /// The instance that has left it.
    pub(crate) id: String,
}

impl Spare<'_> {
    pub(crate) fn used(mut self) {
        self.id.clear();
    }
}

impl Drop for Spare<'_> {
    fn drop(&mut self) {
        if !self.id.is_empty() {
            self.spares.put(std::mem::take(&mut self.id));
        }
    }
}

/// Removes those that nobody has wanted for a while.
pub(crate) async fn run(agent: Arc<Agent>) {
    loop {
        let due = agent.spares.due();
        tokio::select! {
            () = agent.spares.came.notified(), if due.is_none() => {}
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                let expired = agent.spares.expired(Instant::now());
                let remove = move || {
                    for dir in expired {
                        if let Err(error) = layer::remove(&dir) {
                            tracing::warn!(%error, "a spare layer stays until the next start");
                        }
                    }
                };
                let _ = tokio::task::spawn_blocking(remove).await;
            }
            () = agent.shutdown.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spares(dir: &Path) -> Spares {
        let paths = Paths::new(dir, dir, dir, "agent");
        std::fs::create_dir_all(paths.layers()).unwrap();
        Spares::find(&paths)
    }

    #[test]
    fn a_layer_is_kept_for_a_while_and_found_by_the_next_agent() {
        let dir = tempfile::tempdir().unwrap();
        let spares = spares(dir.path());
        for id in ["a", "b"] {
            std::fs::create_dir_all(spares.paths.removed(id)).unwrap();
            assert!(spares.keep(id, &spares.paths.removed(id)));
            assert!(!spares.paths.removed(id).exists());
        }
        assert!(!spares.keep("gone", &spares.paths.removed("gone")));
        let spare = spares.take().unwrap();
        assert_eq!(spare.id, "b");
        drop(spare);
        let spare = spares.take().unwrap();
        assert_eq!(spare.id, "b", "it was not used");
        spare.used();
        assert!(spares.paths.spare("b").exists());
        std::fs::remove_dir(spares.paths.spare("b")).unwrap();

        let next = Spares::find(&spares.paths);
        assert!(next.expired(Instant::now()).is_empty());
        assert_eq!(next.expired(Instant::now() + KEPT_FOR), [spares.paths.spare("a")]);
        assert!(next.take().is_none() && next.due().is_none());
    }

    #[test]
    fn no_more_than_enough_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let spares = spares(dir.path());
        for id in 0..MOST + 3 {
            let id = id.to_string();
            std::fs::create_dir(spares.paths.removed(&id)).unwrap();
            assert_eq!(spares.keep(&id, &spares.paths.removed(&id)), spares.paths.spare(&id).exists());
        }
        assert_eq!(lock(&spares.kept).len(), MOST);
    }
}
