//! Changes of files and directories, told by the agent's one inotify instance (inotify(7)).
//!
//! Instances are few, 128 for all processes of a user of the host (`max_user_instances`), and root in a sandbox is the
//! same user as the agent. So the agent makes one at its start and keeps it, and whoever waits for a change does without
//! where there is none left, or no watch (`max_user_watches`): then it looks every so often.

use crate::async_fd::register;
use crate::lock;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// Everything that is watched.
pub(crate) struct Changes {
    inotify: Option<AsyncFd<Instance>>,
    watched: Mutex<HashMap<WatchDescriptor, Watched>>,
}

struct Instance(Inotify);

impl AsFd for Instance {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Instance {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

/// A file or directory. The kernel has one watch of it, however many wait for it here.
struct Watched {
    watches: usize,
    changed: watch::Sender<()>,
}

/// A file or directory that somebody waits for.
pub(crate) struct Watch {
    changes: Arc<Changes>,
    of: Option<(WatchDescriptor, watch::Receiver<()>)>,
}

impl Changes {
    /// Watches nothing yet. [`run`](Self::run) tells what happens.
    pub(crate) fn open() -> Arc<Self> {
        let instance = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(io::Error::from);
        let inotify = instance.and_then(|instance| register(Instance(instance), Interest::READABLE));
        if let Err(error) = &inotify {
            tracing::warn!(%error, "no inotify instance is left, so changes are looked for; hint: processes of this user \
                hold all of fs.inotify.max_user_instances");
        }
        Arc::new(Self { inotify: inotify.ok(), watched: Mutex::default() })
    }

    /// Watches what is at `path` now, whatever it is called later; all who watch the same must ask for the same kinds.
    /// Where it cannot be watched, who waits looks.
    pub(crate) fn watch(self: &Arc<Self>, path: &Path, kinds: AddWatchFlags) -> Watch {
        // Under the lock: the kernel gives the same watch for the same file, and takes it away from all.
        let mut watched = lock(&self.watched);
        let inotify = self.inotify.as_ref().ok_or(Errno::EMFILE);
        let added = inotify.and_then(|inotify| inotify.get_ref().0.add_watch(path, kinds));
        let of = match added {
            Ok(descriptor) => {
                let entry = watched
                    .entry(descriptor)
                    .or_insert_with(|| Watched { watches: 0, changed: watch::Sender::new(()) });
                entry.watches += 1;
                Some((descriptor, entry.changed.subscribe()))
            }
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "changes are looked for");
                None
            }
        };
        Watch { changes: self.clone(), of }
    }

    /// Tells what happens, for as long as it is polled.
    pub(crate) async fn run(self: Arc<Self>) {
        let Some(inotify) = &self.inotify else { return };
        let failed = loop {
            let read = match inotify.readable().await {
                Err(error) => break error,
                Ok(mut ready) => match inotify.get_ref().0.read_events() {
                    Err(Errno::EAGAIN) => {
                        ready.clear_ready();
                        continue;
                    }
                    read => read,
                },
            };
            match read {
                Ok(events) => self.tell(&events),
                Err(error) => break error.into(),
            }
        };
        tracing::error!(error = %failed, "changes are told no more, and looked for");
        // Who waits finds its sender gone.
        lock(&self.watched).clear();
    }

    fn tell(&self, events: &[InotifyEvent]) {
        let mut watched = lock(&self.watched);
        for event in events {
            if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                watched.values().for_each(|entry| entry.changed.send_replace(()));
            } else if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                // The file is gone, and the watch with it.
                watched.remove(&event.wd);
            } else if let Some(entry) = watched.get(&event.wd) {
                entry.changed.send_replace(());
            }
        }
    }
}

impl Watch {
    /// From here on [`changed`](Self::changed) waits for what has not happened yet.
    pub(crate) fn seen(&mut self) {
        if let Some((_, changed)) = &mut self.of {
            changed.mark_unchanged();
        }
    }

    /// Waits until something has happened since the last [`seen`](Self::seen), or may have: without a watch it is time
    /// to look after `look`.
    pub(crate) async fn changed(&mut self, look: Duration) {
        if let Some((_, changed)) = &mut self.of
            && changed.changed().await.is_ok()
        {
            return;
        }
        tokio::time::sleep(look).await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let Some((descriptor, _)) = &self.of else { return };
        let mut watched = lock(&self.changes.watched);
        // Not there: the file is gone.
        let Some(entry) = watched.get_mut(descriptor) else { return };
        entry.watches -= 1;
        if entry.watches == 0 {
            watched.remove(descriptor);
            if let Some(inotify) = &self.changes.inotify {
                let _ = inotify.get_ref().0.rm_watch(*descriptor);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Duration = Duration::from_millis(10);
    const KINDS: AddWatchFlags = AddWatchFlags::IN_MODIFY;

    async fn comes(watch: &mut Watch) -> bool {
        tokio::time::timeout(Duration::from_secs(5), watch.changed(Duration::from_secs(3600))).await.is_ok()
    }

    #[tokio::test]
    async fn all_who_wait_for_a_file_are_told_and_the_last_one_ends_the_watch() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "").unwrap();
        let changes = Changes::open();
        tokio::spawn(changes.clone().run());
        let (mut first, mut second) = (changes.watch(&path, KINDS), changes.watch(&path, KINDS));
        std::fs::write(&path, "1").unwrap();
        assert!(comes(&mut first).await && comes(&mut second).await);
        first.seen();
        drop(second);
        std::fs::write(&path, "2").unwrap();
        assert!(comes(&mut first).await, "it is still watched for the first");
        drop(first);
        assert!(lock(&changes.watched).is_empty());
        let mut again = changes.watch(&path, KINDS);
        std::fs::write(&path, "3").unwrap();
        assert!(comes(&mut again).await);
    }

    #[tokio::test]
    async fn without_an_instance_or_a_watch_who_waits_looks() {
        let none = Arc::new(Changes { inotify: None, watched: Mutex::default() });
        none.watch(Path::new("/"), KINDS).changed(LOOK).await;
        let dir = tempfile::tempdir().unwrap();
        let changes = Changes::open();
        tokio::spawn(changes.clone().run());
        changes.watch(&dir.path().join("nothing"), KINDS).changed(LOOK).await;
        // A file that goes takes its watch along.
        let path = dir.path().join("file");
        std::fs::write(&path, "").unwrap();
        let mut watch = changes.watch(&path, KINDS);
        std::fs::remove_file(&path).unwrap();
        tokio::time::timeout(Duration::from_secs(5), async {
            while !lock(&changes.watched).is_empty() {
                watch.changed(LOOK).await;
            }
            watch.changed(LOOK).await;
        })
        .await
        .unwrap();
    }
}
