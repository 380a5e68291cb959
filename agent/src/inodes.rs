//! The limit of files in writable layers that lie on a disk which knows no limits of its own: they are counted, and a
//! sandbox that has too many is killed.
//!
//! A count reads every directory of a layer, so it is made where it may matter. A layer is counted when there was time to
//! fill the room that it has, and then as often as the last count was cheap: a sandbox that writes little costs some
//! microseconds now and then. A large one is counted again soon only if the disk as a whole has got so many files since.

use crate::Agent;
use crate::disk;
use crate::instance::{Instance, Phase};
use crate::{lock, stop};
use fsb_host::count;
use fsb_host::layer::UPPER;
use nix::sys::statvfs::statvfs;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks, depending on how little room there is.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Files that a sandbox makes in a second, at most: empty ones, on a fast disk.
const FILES_PER_SECOND: u64 = 100_000;
/// So many times as long as a count took it is not made again: where the disk has got many files since, and where not.
const OFTEN: u32 = 20;
const RARELY: u32 = 200;
/// A count has a rest for as long as it worked, each time it has worked for so long.
const SLICE: Duration = Duration::from_millis(5);

/// The last count of one layer.
#[derive(Debug, Clone, Copy)]
struct Counted {
    files: u64,
    at: Instant,
    took: Duration,
    /// Files that had been made on the disk by then.
    made: u64,
}

impl Counted {
    /// Whether a layer that may have `limit` files is to be counted again, `made` files later.
    fn is_due(&self, limit: u64, now: Instant, made: u64) -> bool {
        let (room, since) = (limit.saturating_sub(self.files), now.saturating_duration_since(self.at));
        let most = u64::try_from(since.as_millis()).unwrap_or(u64::MAX).saturating_mul(FILES_PER_SECOND / 1000);
        let filled = made.saturating_sub(self.made) >= room;
        most >= room && (since >= self.took * RARELY || filled && since >= self.took * OFTEN)
    }
}

/// How many files have been made on a disk, as far as its numbers tell.
#[derive(Debug, Default)]
struct Disk {
    level: Option<u64>,
    made: u64,
}

impl Disk {
    /// `used` files are on it, and `removed` were taken away by us so far. What others took away while as many came is
    /// not seen. `None` = it does not tell: then it may be anything.
    fn look(&mut self, used: Option<u64>, removed: u64) -> u64 {
        let Some(level) = used.map(|used| used + removed) else { return u64::MAX };
        self.made += level.saturating_sub(self.level.unwrap_or(level));
        self.level = Some(level);
        self.made
    }
}

/// A sandbox whose files are to be counted.
struct Layer {
    instance: Arc<Instance>,
    id: Arc<str>,
    upper: PathBuf,
    limit: u64,
}

/// Counts until the agent stops.
pub(crate) async fn run(agent: Arc<Agent>) {
    let mut counted: HashMap<Arc<str>, Counted> = HashMap::new();
    let mut disk = Disk::default();
    let (mut made, mut looked) = (0, Instant::now());
    // What this agent finds running may have any number.
    let mut is_first = true;
    loop {
        let (before, since) = (made, looked);
        let layers = layers(&agent);
        (made, looked) = (disk.look(used(agent.config.paths.layers()).await, agent.trash.removed()), Instant::now());
        counted.retain(|id, _| layers.iter().any(|layer| layer.id == *id));
        for layer in &layers {
            let known = counted.get(&layer.id).copied().or_else(|| {
                // It has come since the last look, with nothing.
                (!is_first).then_some(Counted { files: 0, at: since, took: Duration::ZERO, made: before })
            });
            if known.is_some_and(|known| !known.is_due(layer.limit, looked, made)) {
                counted.extend(known.map(|known| (layer.id.clone(), known)));
                continue;
            }
            let (files, took) = count(&layer.upper, layer.limit).await;
            counted.insert(layer.id.clone(), Counted { files, at: Instant::now(), took, made });
            if files > layer.limit {
                end(&agent, layer, files);
            }
        }
        is_first = false;
        let room = layers.iter().map(|layer| layer.limit.saturating_sub(counted[&layer.id].files)).min();
        tokio::select! {
            () = tokio::time::sleep(pause(room)) => {}
            () = agent.shutdown.cancelled() => return,
        }
    }
}

/// The time in which nobody can have filled the least room there is.
fn pause(room: Option<u64>) -> Duration {
    room.map_or(LONGEST_PAUSE, |room| Duration::from_secs(room / FILES_PER_SECOND).clamp(SHORTEST_PAUSE, LONGEST_PAUSE))
}

fn layers(agent: &Agent) -> Vec<Layer> {
    let instances: Vec<Arc<Instance>> = lock(&agent.instances).values().cloned().collect();
    let layer = |instance: Arc<Instance>| {
        let (id, limit) = {
            let state = instance.state();
            let runs = matches!(state.phase, Phase::Running | Phase::Stopping) && state.end.is_none();
            (runs && state.binding.inodes > 0).then(|| (state.id.clone(), state.binding.inodes))?
        };
        Some(Layer { upper: agent.config.paths.layer(&id).join(UPPER), instance, id, limit })
    };
    instances.into_iter().filter_map(layer).collect()
}

/// Files on the disk that holds the layers. Some file systems do not tell.
async fn used(layers: PathBuf) -> Option<u64> {
    let looked = disk::io(move || Ok(statvfs(&layers)?)).await.ok()?;
    (looked.files() > 0).then(|| looked.files().saturating_sub(looked.files_free()))
}

async fn count(upper: &Path, limit: u64) -> (u64, Duration) {
    let upper = upper.to_owned();
    let counted = disk::io(move || {
        let (mut slice, mut took) = (std::time::Instant::now(), Duration::ZERO);
        let files = count::names(&upper, limit, || {
            let worked = slice.elapsed();
            if worked >= SLICE {
                took += worked;
                std::thread::sleep(worked);
                slice = std::time::Instant::now();
            }
        });
        if let Err(error) = files {
            tracing::warn!(layer = %upper.display(), %error, "files could not be counted");
        }
        Ok((files.unwrap_or(0), took + slice.elapsed()))
    });
    counted.await.unwrap_or_default()
}

fn end(agent: &Arc<Agent>, layer: &Layer, files: u64) {
    tracing::warn!(instance = %layer.id, files, limit = layer.limit, "more files than it may have: killing it");
    {
        let mut state = layer.instance.state();
        if state.end.is_some() {
            return;
        }
        state.binding.inodes_exceeded = files;
    }
    stop::begin(agent, &layer.instance, Some(Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 1_000_000;

    #[test]
    fn a_layer_is_counted_when_it_can_have_filled_its_room_and_as_often_as_a_count_is_cheap() {
        let now = Instant::now();
        let counted = |files, took| Counted { files, at: now, took: Duration::from_millis(took), made: 0 };
        let due = |counted: Counted, seconds, made| counted.is_due(LIMIT, now + Duration::from_secs(seconds), made);
        let small = counted(10, 0);
        assert!(!due(small, 9, LIMIT) && due(small, 10, 0), "nobody makes a million files in nine seconds");
        let large = counted(900_000, 500);
        assert!(!due(large, 9, LIMIT) && due(large, 10, 100_000), "the disk has got as many as it has room for");
        assert!(!due(large, 99, 99_999) && due(large, 100, 0), "half a percent of a processor at most");
    }

    #[test]
    fn what_we_remove_does_not_hide_what_is_made() {
        let mut disk = Disk::default();
        assert_eq!(disk.look(Some(1_000), 0), 0);
        assert_eq!(disk.look(Some(1_300), 0), 300);
        assert_eq!(disk.look(Some(900), 700), 600, "700 of ours went, 300 came");
        assert_eq!(disk.look(Some(500), 700), 600, "others' went");
        assert_eq!(disk.look(Some(550), 700), 650);
        assert_eq!(disk.look(None, 700), u64::MAX);
    }

    #[test]
    fn looks_are_as_far_apart_as_the_room_allows() {
        assert_eq!(pause(None), LONGEST_PAUSE);
        assert_eq!(pause(Some(LIMIT)), LONGEST_PAUSE);
        assert_eq!(pause(Some(200_000)), Duration::from_secs(2));
        assert_eq!(pause(Some(10)), SHORTEST_PAUSE);
    }
}
