//! The built-in image store: one directory on the node, shared by all of its agents.
//!
//! ```text
//! index.json              images and names; replaced as a whole
//! layers/<diff id>/fs     an unpacked layer, ready to be a lower directory; `size` beside it
//! tmp/                    what is being unpacked or downloaded
//! trash/                  what is being removed
//! locks/                  index, collector, one per layer that is unpacked and per reference that is pulled
//! pins/<digest>           locked (shared) by every process whose sandboxes use the image
//! ```
//!
//! Whoever adds to the store holds the collector's lock shared; the collector takes it alone. So what lies in `tmp`
//! while the collector runs belongs to nobody, and a new layer cannot vanish before its image is in the index.

use crate::error::{At, Error, Result};
use crate::image::{Image, Import};
use crate::index::{Index, Record, Snapshot, Stamp};
use crate::lock::{Lock, Mode, lock};
use crate::pin::Pins;
use crate::pull::{Progress, Pulls};
use crate::unpack::Quota;
use crate::user::Users;
use fsb_files::Access;
use fsb_host::wire::User;
use fsb_proto::domain::PullPolicy;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

/// What a store takes and how careful it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// The most that one image may have unpacked, in bytes.
    pub max_bytes: u64,
    /// The most entries that one image's archives may have.
    pub max_entries: u64,
    /// Whether an import is on the disk when it is done, so that a power cut cannot take it back.
    pub durable: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { max_bytes: 32 << 30, max_entries: 4_000_000, durable: true }
    }
}

/// The store. Cloning it is cheap and shares everything.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    layers: PathBuf,
    index: PathBuf,
    options: Options,
    snapshot: RwLock<Option<Arc<Snapshot>>>,
    pins: Pins,
    users: Users,
    pulls: Pulls,
}

impl Store {
    /// Opens the store in `directory`, which is made if need be, for root's eyes only: layers hold set-user-id programs.
    pub fn open(directory: PathBuf) -> Result<Self> {
        Self::open_with(directory, Options::default())
    }

    /// Opens it with other limits.
    pub fn open_with(directory: PathBuf, options: Options) -> Result<Self> {
        for part in ["", "layers", "tmp", "trash", "locks", "pins", "parts"] {
            let part = directory.join(part);
            fsb_files::create_dir(&part, Access::Owner).at("make", &part)?;
        }
        let directory = fs::canonicalize(&directory).at("look at", &directory)?;
        let inner = Inner {
            layers: directory.join("layers"),
            index: directory.join("index.json"),
            directory,
            options,
            snapshot: RwLock::default(),
            pins: Pins::default(),
            users: Users::default(),
            pulls: Pulls::default(),
        };
        let store = Self { inner: Arc::new(inner) };
        store.snapshot()?;
        Ok(store)
    }

    /// The image that `reference` means: a name in any spelling, a digest, or a short digest that begins only one.
    /// One stat(2) and a look-up, unless somebody changed the store since.
    pub fn resolve(&self, reference: &str) -> Result<Option<Image>> {
        Ok(self.snapshot()?.resolve(reference)?.cloned())
    }

    /// Whether `reference` is known to mean the image with this digest still. One stat(2) and a look-up: where somebody
    /// changed the store since it was last read, the answer is `false`, and [`Store::resolve`], which reads, knows better.
    pub fn still_means(&self, reference: &str, digest: &str) -> Result<bool> {
        let Some(snapshot) = self.known(Stamp::read(&self.inner.index)?) else { return Ok(false) };
        Ok(snapshot.resolve(reference)?.is_some_and(|image| image.digest == digest))
    }

    /// All images that have a name.
    pub fn list(&self) -> Result<Vec<Image>> {
        Ok(self.snapshot()?.list())
    }

    /// The lower directories of the image with this digest, the topmost first.
    pub fn rootfs(&self, digest: &str) -> Result<Vec<PathBuf>> {
        match self.resolve(digest)? {
            Some(image) => Ok(image.lowers),
            None => Err(Error::NotFound { reference: digest.to_owned() }),
        }
    }

    /// Imports the OCI layout (folder or tar), `docker save` archive or root file-system tar at `path`. What is wrong
    /// with it is an error that leaves nothing behind; so does a crash, once [`Store::sweep`] ran.
    pub async fn import(&self, path: impl Into<PathBuf>, import: Import) -> Result<Image> {
        let (store, path) = (self.clone(), path.into());
        blocking(move || store.import_blocking(&path, &import)).await
    }

    /// [`Store::import`] for callers that have a thread to spare.
    pub fn import_blocking(&self, path: &Path, import: &Import) -> Result<Image> {
        let imported = crate::import::import(self, path, import);
        self.sweep_quietly();
        imported
    }

    /// The image `reference`, pulled from its registry as `policy` wants it. One pull per image runs at a time, however
    /// many callers and agents ask; all callers see its progress and get its result. It goes on when they go away.
    pub async fn pull(&self, reference: &str, policy: PullPolicy, progress: impl Fn(Progress)) -> Result<Image> {
        crate::pull::pull(self, reference, policy, progress).await
    }

    /// Takes a name away, or all names of the image of that digest or short digest. `false` = there was none. An image
    /// without names is removed with the layers that no other image has, as soon as nobody has it pinned.
    pub async fn remove(&self, reference: &str) -> Result<bool> {
        let (store, reference) = (self.clone(), reference.to_owned());
        blocking(move || {
            let removed = store.change_index(|index| index.untag(&reference))?;
            store.sweep_blocking()?;
            Ok(removed > 0)
        })
        .await
    }

    /// The ids of `spec` (`""`, `name`, `uid`, `name:group`, `uid:gid`) in `image`, by Docker's rules. Remembered, so
    /// the second time is a look-up.
    pub fn lookup_user(&self, image: &Image, spec: &str) -> Result<User> {
        Ok(self.inner.users.lookup(image, spec)?.user)
    }

    /// The home directory of the same user, for HOME where the image's environment has none; `/` if passwd knows none.
    pub fn lookup_home(&self, image: &Image, spec: &str) -> Result<String> {
        Ok(self.inner.users.lookup(image, spec)?.home)
    }

    pub(crate) fn options(&self) -> &Options {
        &self.inner.options
    }

    pub(crate) fn quota(&self) -> Quota {
        Quota::new(self.inner.options.max_bytes, self.inner.options.max_entries)
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.inner.directory
    }

    pub(crate) fn layers(&self) -> &Path {
        &self.inner.layers
    }

    pub(crate) fn locks(&self) -> PathBuf {
        self.inner.directory.join("locks")
    }

    /// What pulls that broke off have left for the next ones.
    pub(crate) fn parts(&self) -> PathBuf {
        self.inner.directory.join("parts")
    }

    pub(crate) fn pins(&self) -> &Pins {
        &self.inner.pins
    }

    pub(crate) fn pulls(&self) -> &Pulls {
        &self.inner.pulls
    }

    /// A directory for something unfinished. Removed when dropped, or by the collector after a crash.
    pub(crate) fn staging(&self) -> Result<TempDir> {
        let tmp = self.directory().join("tmp");
        tempfile::Builder::new().prefix("").tempdir_in(&tmp).at("make a directory in", tmp)
    }

    /// Holds the collector off for as long as the lock lives.
    pub(crate) fn hold_collector(&self) -> Result<Lock> {
        lock(&self.collector_lock(), Mode::Shared)
    }

    pub(crate) fn collector_lock(&self) -> PathBuf {
        self.locks().join("collector")
    }

    pub(crate) fn index_lock(&self) -> PathBuf {
        self.locks().join("index")
    }

    /// Reads, changes and replaces the index, alone among all processes. Nothing is written when `change` fails or
    /// changes nothing.
    pub(crate) fn change_index<T>(&self, change: impl FnOnce(&mut Index) -> Result<T>) -> Result<T> {
        let _alone = lock(&self.index_lock(), Mode::Exclusive)?;
        let (before, _) = Index::load(&self.inner.index)?;
        let mut index = before.clone();
        let changed = change(&mut index)?;
        if index != before {
            index.save(&self.inner.index, self.inner.options.durable)?;
        }
        Ok(changed)
    }

    /// Makes an image known under `names`, whose layers are all in the store.
    pub(crate) fn commit(&self, digest: &str, record: Record, names: &[String]) -> Result<Image> {
        self.change_index(|index| {
            index.images.entry(digest.to_owned()).or_insert(record);
            for name in names {
                index.references.insert(name.clone(), digest.to_owned());
            }
            Ok(())
        })?;
        self.resolve(digest)?.ok_or_else(|| Error::NotFound { reference: digest.to_owned() })
    }

    /// The index as it is now.
    pub(crate) fn snapshot(&self) -> Result<Arc<Snapshot>> {
        if let Some(snapshot) = self.known(Stamp::read(&self.inner.index)?) {
            return Ok(snapshot);
        }
        let (index, stamp) = Index::load(&self.inner.index)?;
        let snapshot = Arc::new(Snapshot::new(&index, stamp, self.layers()));
        *self.inner.snapshot.write().unwrap_or_else(|e| e.into_inner()) = Some(snapshot.clone());
        Ok(snapshot)
    }

    /// What was read of the version with this stamp.
    fn known(&self, stamp: Stamp) -> Option<Arc<Snapshot>> {
        let snapshot = self.inner.snapshot.read().unwrap_or_else(|e| e.into_inner());
        snapshot.as_ref().filter(|snapshot| snapshot.stamp == stamp).cloned()
    }
}

/// Runs what blocks on a thread of its own. It runs to its end when the caller goes away.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Error::ShuttingDown),
        },
    }
}

pub(crate) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}
