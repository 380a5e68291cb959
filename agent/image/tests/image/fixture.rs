//! A store of its own for each test, with what is needed to look into it.

use fsb_image::{Error, Image, Import, Options, Result, Store};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

pub(crate) struct Fixture {
    pub(crate) directory: TempDir,
    pub(crate) store: Store,
}

pub(crate) fn options() -> Options {
    // Syncing says nothing here and waits for everything else on the disk.
    Options { durable: false, ..Default::default() }
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with(options())
    }

    pub(crate) fn with(options: Options) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests need root: they make devices and mount");
        let directory = TempDir::with_prefix("fsbi").unwrap();
        let store = Store::open_with(directory.path().join("store"), options).unwrap();
        Self { directory, store }
    }

    /// Another process's view of the same store.
    pub(crate) fn other(&self) -> Store {
        Store::open_with(self.path(), options()).unwrap()
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    pub(crate) fn write(&self, bytes: &[u8]) -> PathBuf {
        let path = self.directory.path().join("archive");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) fn import(&self, bytes: &[u8], reference: &str) -> Result<Image> {
        let import = Import { reference: reference.into(), ..Default::default() };
        self.store.import_blocking(&self.write(bytes), &import)
    }

    /// Imports the tar of a root file system as `x`, and says where it lies.
    pub(crate) fn layer(&self, bytes: &[u8]) -> Result<PathBuf> {
        self.import(bytes, "x").map(|image| image.lowers[0].clone())
    }

    /// Checks that the archive is refused with these words, and that nothing is left of it.
    pub(crate) fn refuses(&self, bytes: &[u8], words: &str) {
        match self.import(bytes, "x") {
            Ok(_) => panic!("it was taken instead of: {words}"),
            Err(error) => self.check_refusal(&error, words),
        }
    }

    pub(crate) fn check_refusal(&self, error: &Error, words: &str) {
        let text = error.to_string();
        assert!(text.contains(words), "{text:?} does not say {words:?}");
        self.check_empty();
    }

    /// Checks that there is no image, no layer and nothing unfinished.
    pub(crate) fn check_empty(&self) {
        assert!(self.store.list().unwrap().is_empty());
        for part in ["layers", "tmp", "trash", "pins"] {
            assert_eq!(names(&self.path().join(part)), BTreeSet::new(), "in {part}");
        }
    }

    /// Removes what pulls that broke off have left, as time does.
    pub(crate) async fn forget_parts(&self) {
        for name in names(&self.path().join("parts")) {
            std::fs::remove_file(self.path().join("parts").join(name)).unwrap();
        }
        self.store.sweep().await.unwrap();
    }

    pub(crate) fn layers(&self) -> BTreeSet<String> {
        names(&self.path().join("layers"))
    }
}

pub(crate) fn names(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
