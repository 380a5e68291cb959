//! Whether the disk of the writable layers has room for more containers.
//!
//! A sandbox may fill the disk. Then those that run, and starts from the stock, which need nothing of it any more, go on;
//! no new container is made before the disk has its reserve again.

use crate::disk;
use crate::error::{Error, Result};
use crate::{Agent, lock};
use fsb_host::layer::UPPER;
use nix::sys::statvfs::statvfs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Between two looks at the disk.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two searches for the largest writers, while there is no room.
const SEARCH_EVERY: Duration = Duration::from_secs(10);
/// How long one search may take.
const SEARCH_WITHIN: Duration = Duration::from_secs(1);
/// The reserve: one of so many bytes, and of so many files, of what the disk can have,
const SHARE: u64 = 20;
/// or this much, where that is less.
const MAX_RESERVE_BYTES: u64 = 1 << 30;
const MAX_RESERVE_FILES: u64 = 1 << 16;
/// What a file takes that has nothing in it.
const INODE_BYTES: u64 = 256;
/// Writers that are named.
const NAMED: usize = 3;

/// What there is of something, and what of it is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Level {
    all: u64,
    free: u64,
}

impl Level {
    /// The reserve, if less than that is left. What counts nothing has no end.
    fn missed(self, most: u64) -> Option<u64> {
        let reserve = (self.all / SHARE).min(most);
        (self.all > 0 && self.free < reserve).then_some(reserve)
    }
}

/// Whether new containers may be made.
#[derive(Default)]
pub(crate) struct Room {
    is_low: AtomicBool,
    why: Mutex<String>,
}

impl Room {
    /// Whether the disk has less than its reserve.
    pub(crate) fn is_low(&self) -> bool {
        self.is_low.load(Ordering::Relaxed)
    }

    /// # Errors
    /// [`Error::DiskFull`] if the disk has less than its reserve.
    pub(crate) fn check(&self) -> Result<()> {
        if self.is_low() { Err(Error::DiskFull(self.why())) } else { Ok(()) }
    }

    /// Why there is no room; empty if there is.
    pub(crate) fn why(&self) -> String {
        lock(&self.why).clone()
    }

    fn set(&self, why: Option<String>) {
        let is_low = why.is_some();
        *lock(&self.why) = why.unwrap_or_default();
        self.is_low.store(is_low, Ordering::Relaxed);
    }
}

/// Looks at the disk until the agent stops.
pub(crate) async fn run(agent: Arc<Agent>) {
    let mut writers: Option<(Instant, String)> = None;
    loop {
        let layers = agent.config.paths.layers();
        let looked = disk::io({
            let layers = layers.clone();
            move || Ok(statvfs(&layers)?)
        });
        if let Ok(disk) = looked.await {
            let bytes = disk.fragment_size();
            let short = short(
                Level { all: disk.blocks() * bytes, free: disk.blocks_available() * bytes },
                Level { all: disk.files(), free: disk.files_available() },
            );
            let was_low = agent.room.is_low();
            match short {
                None => {
                    writers = None;
                    agent.room.set(None);
                    if was_low {
                        tracing::info!("the disk of the writable layers has its reserve again");
                        agent.pool.look_at_stock();
                    }
                }
                Some(short) => {
                    if writers.as_ref().is_none_or(|(at, _)| at.elapsed() >= SEARCH_EVERY) {
                        writers = Some((Instant::now(), largest(&agent).await));
                    }
                    let named = writers.as_ref().map_or("", |(_, named)| named);
                    let why = format!("the disk of {} {short}{named}", layers.display());
                    if !was_low {
                        tracing::warn!("no new containers: {why}");
                    }
                    agent.room.set(Some(why));
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = agent.shutdown.cancelled() => return,
        }
    }
}

/// What there is too little of, in words.
fn short(bytes: Level, files: Level) -> Option<String> {
    let of_bytes = bytes
        .missed(MAX_RESERVE_BYTES)
        .map(|reserve| format!("has {} MiB left, its reserve is {} MiB", bytes.free >> 20, reserve.div_ceil(1 << 20)));
    of_bytes.or_else(|| {
        let reserve = files.missed(MAX_RESERVE_FILES)?;
        Some(format!("has room for {} files, its reserve is {reserve}", files.free))
    })
}

/// The sandboxes of this agent that have written most, in words.
async fn largest(agent: &Agent) -> String {
    let sandboxes: Vec<(String, PathBuf)> = {
        let instances = lock(&agent.instances);
        let named = instances.iter().map(|(id, instance)| {
            let claim = instance.state().claim();
            (format!("{}/{}", claim.namespace, claim.name), agent.config.paths.layer(id).join(UPPER))
        });
        named.collect()
    };
    let sizes = disk::io(move || {
        let until = Instant::now() + SEARCH_WITHIN;
        let mut sizes: Vec<(u64, String)> =
            sandboxes.into_iter().map(|(name, upper)| (written(&upper, until), name)).collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        sizes.truncate(NAMED);
        Ok(sizes)
    });
    let sizes = sizes.await.unwrap_or_default();
    let named = sizes.iter().filter(|(bytes, _)| *bytes > 0);
    let named: Vec<String> = named.map(|(bytes, name)| format!("{name} ({} MiB)", bytes.div_ceil(1 << 20))).collect();
    if named.is_empty() {
        return "; hint: free space on it".into();
    }
    format!("; the largest writers here: {}; hint: remove one of them", named.join(", "))
}

/// Bytes on the disk, those of inodes with them, below a directory that somebody else writes to; those that were found in time.
fn written(root: &Path, until: Instant) -> u64 {
    let (mut bytes, mut directories) = (0, vec![root.to_owned()]);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            // Of the entry itself: links are not followed.
            let Ok(metadata) = entry.metadata() else { continue };
            bytes += metadata.blocks() * 512 + INODE_BYTES;
            if metadata.is_dir() {
                directories.push(entry.path());
            }
            if Instant::now() >= until {
                return bytes;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_reserve_is_a_twentieth_and_at_most_a_gibibyte() {
        let level = |all, free| Level { all: all * MIB, free: free * MIB };
        assert_eq!(level(100, 5).missed(MAX_RESERVE_BYTES), None);
        assert_eq!(level(100, 4).missed(MAX_RESERVE_BYTES), Some(5 * MIB));
        assert_eq!(level(1 << 20, 1024).missed(MAX_RESERVE_BYTES), None);
        assert_eq!(level(1 << 20, 1023).missed(MAX_RESERVE_BYTES), Some(1 << 30));
        assert_eq!(level(0, 0).missed(MAX_RESERVE_BYTES), None, "a file system that does not count");
    }

    #[test]
    fn what_is_short_is_said() {
        let (plenty, none) = (Level { all: 1000 * MIB, free: 999 * MIB }, Level { all: 1000 * MIB, free: 0 });
        assert_eq!(short(plenty, plenty), None);
        assert_eq!(short(none, plenty).unwrap(), "has 0 MiB left, its reserve is 50 MiB");
        assert_eq!(short(plenty, none).unwrap(), "has room for 0 files, its reserve is 65536");
    }

    #[test]
    fn what_was_written_is_counted_and_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("deep")).unwrap();
        std::fs::write(dir.path().join("deep/file"), vec![1; MIB as usize]).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("all")).unwrap();
        let bytes = written(dir.path(), Instant::now() + Duration::from_secs(20));
        assert!((MIB..2 * MIB).contains(&bytes), "{bytes}");
    }
}
