//! Layers of dead containers on their way off the disk, on a thread of their own.
//!
//! Whoever ends a container renames its layer away and gives it here: that is all that anybody waits for. Unmounting it
//! and removing what was written may take seconds where a sandbox has made a million files, so it is done in slices: a
//! layer's first slice is for nearly all of them enough, and what is left then gets one in turn with others like it. So
//! small ones are never behind large ones, and the largest is the last to go.
//!
//! What is left when the agent ends has a name that says so, and the next agent goes on with it.

use crate::spares::Spares;
use fsb_host::layer;
use fsb_host::paths::{Paths, REMOVED};
use fsb_host::sched;
use fsb_host::tree::Removal;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

/// How long one layer is worked on at a time.
const SLICE: Duration = Duration::from_millis(10);
/// Between two tries of a layer that cannot be removed: doubles from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A layer that somebody has let go of.
struct Item {
    id: String,
    dir: PathBuf,
    /// The mount namespace of its container, where the agent holds the last reference: closing it unmounts.
    mounts: Option<Arc<File>>,
}

/// The way to the thread.
pub(crate) struct Trash {
    paths: Paths,
    /// `None` ends the thread.
    items: Sender<Option<Item>>,
    removed: Arc<AtomicU64>,
}

impl Trash {
    /// Starts the thread. It begins with what an agent before this one has left.
    ///
    /// # Errors
    /// If there is no room for a thread.
    pub(crate) fn start(paths: &Paths, spares: Arc<Spares>) -> io::Result<Self> {
        let (items, orders) = mpsc::channel();
        let removed = Arc::new(AtomicU64::new(0));
        let mut worker = Worker { spares, removed: removed.clone(), large: left_over(paths) };
        std::thread::Builder::new().name("trash".into()).spawn(move || worker.run(&orders))?;
        Ok(Self { paths: paths.clone(), items, removed })
    }

    /// Takes the layer of a dead container, which nobody finds under its id from here on.
    pub(crate) fn take(&self, id: &str, mounts: Option<Arc<File>>) {
        let (layer, removed) = (self.paths.layer(id), self.paths.removed(id));
        let dir = match std::fs::rename(&layer, &removed) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(instance = id, %error, "a layer is removed under its own name");
                layer
            }
            _ => removed,
        };
        // Without the thread, at the very end, the next agent does it.
        let _ = self.items.send(Some(Item { id: id.to_owned(), dir, mounts }));
    }

    /// Files that were removed so far in more than one slice.
    pub(crate) fn removed(&self) -> u64 {
        self.removed.load(Ordering::Relaxed)
    }

    /// Ends the thread after the slice that it is at.
    pub(crate) fn close(&self) {
        let _ = self.items.send(None);
    }
}

fn left_over(paths: &Paths) -> VecDeque<Large> {
    let entries = std::fs::read_dir(paths.layers()).into_iter().flatten().flatten();
    let named = entries.filter(|entry| entry.file_name().as_encoded_bytes().ends_with(REMOVED.as_bytes()));
    named.map(|entry| Large::new(entry.path())).collect()
}

/// A layer that one slice was not enough for, or that could not be removed.
struct Large {
    removal: Removal,
    dir: PathBuf,
    due: Instant,
    pause: Duration,
}

impl Large {
    fn new(dir: PathBuf) -> Self {
        Self { removal: Removal::new(&dir), dir, due: Instant::now(), pause: FIRST_PAUSE }
    }

    fn put_off(&mut self, error: &io::Error) {
        tracing::warn!(layer = %self.dir.display(), %error, "a layer could not be removed, trying again");
        self.due = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}

struct Worker {
    spares: Arc<Spares>,
    removed: Arc<AtomicU64>,
    large: VecDeque<Large>,
}

impl Worker {
    /// New layers come first. The others have at most half of the time, so that whoever uses the disk meanwhile has it
    /// too.
    fn run(&mut self, orders: &Receiver<Option<Item>>) {
        // Those whom starts wait for have shorter ones, and this thread was made by one of them.
        let _ = sched::usual_slice();
        let mut rested = Instant::now();
        loop {
            let next = self.large.iter().map(|large| large.due).min().map(|due| due.max(rested));
            let now = Instant::now();
            let order = match next {
                None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(next) if next <= now => {
                    self.go_on(now);
                    rested = Instant::now() + now.elapsed();
                    continue;
                }
                Some(next) => orders.recv_timeout(next - now),
            };
            match order {
                Ok(Some(item)) => self.begin(item),
                Err(RecvTimeoutError::Timeout) => {}
                Ok(None) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// A layer's first slice.
    fn begin(&mut self, Item { id, dir, mounts }: Item) {
        // The last hold on it: this unmounts.
        let unmounted = mounts.is_some();
        drop(mounts);
        let stripped = layer::strip(&dir, Instant::now() + SLICE).and_then(|stripped| {
            if stripped && !(unmounted && self.spares.keep(&id, &dir)) {
                layer::remove(&dir)?;
            }
            Ok(stripped)
        });
        match stripped {
            Ok(true) => {}
            Ok(false) => self.large.push_back(Large::new(dir)),
            Err(error) => {
                let mut large = Large::new(dir);
                large.put_off(&error);
                self.large.push_back(large);
            }
        }
    }

    /// A slice of the layer whose turn it is.
    fn go_on(&mut self, now: Instant) {
        let Some(at) = self.large.iter().position(|large| large.due <= now) else { return };
        let Some(mut large) = self.large.remove(at) else { return };
        let before = large.removal.removed();
        let done = large.removal.go_on(now + SLICE);
        self.removed.fetch_add(large.removal.removed() - before, Ordering::Relaxed);
        match done {
            Ok(true) => return,
            Ok(false) => large.pause = FIRST_PAUSE,
            Err(error) => large.put_off(&error),
        }
        self.large.push_back(large);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, AsRawFd};
    use std::path::Path;

    /// A mount, held by its root: it is found wherever it was renamed to.
    struct Mounted(PathBuf, File);

    impl Mounted {
        fn on(dir: &Path) -> Self {
            let mount = fsb_host::mount::tmpfs(1 << 20, 16).expect("these tests need root");
            fsb_host::mount::attach(mount.as_fd(), dir).unwrap();
            Self(dir.to_owned(), File::open(dir).unwrap())
        }
    }

    impl Drop for Mounted {
        fn drop(&mut self) {
            let now = std::fs::read_link(format!("/proc/self/fd/{}", self.1.as_raw_fd())).unwrap_or(self.0.clone());
            nix::mount::umount2(&now, nix::mount::MntFlags::MNT_DETACH).unwrap();
        }
    }

    fn trash(dir: &Path) -> (Paths, Trash) {
        let paths = Paths::new(dir, dir, dir, "agent");
        std::fs::create_dir_all(paths.layers()).unwrap();
        let spares = Arc::new(Spares::find(&paths));
        (paths.clone(), Trash::start(&paths, spares).unwrap())
    }

    fn fill(dir: &Path, files: usize) {
        std::fs::create_dir_all(dir.join("upper")).unwrap();
        (0..files).for_each(|n| std::fs::write(dir.join("upper").join(n.to_string()), "").unwrap());
    }

    fn left(paths: &Paths) -> usize {
        std::fs::read_dir(paths.layers()).unwrap().count()
    }

    fn eventually(what: &str, holds: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !holds() {
            assert!(Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn small_layers_are_never_behind_large_ones() {
        let dir = tempfile::tempdir().unwrap();
        let (paths, trash) = trash(dir.path());
        // Both before one of them begins to go.
        let large = ["large", "larger"];
        large.iter().for_each(|id| fill(&paths.layer(id), 50_000));
        large.iter().for_each(|id| trash.take(id, None));
        for n in 0..5 {
            let id = format!("small{n}");
            fill(&paths.layer(&id), 1);
            trash.take(&id, None);
            assert!(!paths.layer(&id).exists(), "it is renamed away when the call returns");
            eventually("it goes", || !paths.removed(&id).exists());
        }
        assert!(paths.removed("large").exists() && paths.removed("larger").exists(), "they are not gone before");
        eventually("they go as well", || left(&paths) == 0);
        assert!(trash.removed() > 0);
    }

    #[test]
    fn what_an_agent_before_has_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (paths, first) = trash(dir.path());
        first.close();
        fill(&paths.layer("left"), 3);
        eventually("the thread has ended", || first.items.send(None).is_err());
        first.take("left", None);
        assert!(paths.removed("left").exists());
        let _next = Trash::start(&paths, Arc::new(Spares::find(&paths))).unwrap();
        eventually("it goes", || left(&paths) == 0);
    }

    #[test]
    fn what_cannot_be_removed_is_tried_again_and_holds_up_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (paths, trash) = trash(dir.path());
        fill(&paths.layer("stuck"), 1);
        // rmdir(2): EBUSY.
        let busy = Mounted::on(&paths.layer("stuck").join("upper"));
        trash.take("stuck", None);
        fill(&paths.layer("other"), 1);
        trash.take("other", None);
        eventually("the other one goes", || !paths.removed("other").exists());
        assert!(paths.removed("stuck").join("upper").exists());
        drop(busy);
        eventually("it goes when it can", || left(&paths) == 0);
    }
}
