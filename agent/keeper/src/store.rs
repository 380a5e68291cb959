//! Record files: one per bound instance, for whoever must know it when no daemon of this agent lives.

use fsb_files::Access;
use fsb_host::wire::Record;
use std::io;
use std::path::{Path, PathBuf};
use tracing::error;

/// The directory of record files, on a tmpfs.
pub(crate) struct Store {
    dir: PathBuf,
}

impl Store {
    /// In `dir`, which exists.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Writes a record whole or not at all. Not flushed to a disk: it need not outlive this kernel. A failure is
    /// logged, and mended with the record's next change; the keeper's own copy is the one that counts.
    pub(crate) fn write(&self, record: &Record) {
        let write = || {
            let path = self.path(&record.made.id);
            let new = path.with_extension("tmp");
            fsb_files::write(&new, serde_json::to_vec(record)?, Access::Owner)?;
            std::fs::rename(&new, &path)
        };
        if let Err(error) = write() {
            error!(instance = record.made.id, dir = %self.dir.display(), %error,
                "a record cannot be written; hint: free space on the run directory's file system");
        }
    }

    /// Removes a record's file, if there is one.
    pub(crate) fn remove(&self, id: &str) {
        if let Err(error) = std::fs::remove_file(self.path(id))
            && error.kind() != io::ErrorKind::NotFound
        {
            error!(instance = id, %error, "a record cannot be removed");
        }
    }

    fn path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }
}

/// Removes every file of a directory of records.
pub(crate) fn clear(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let _ = std::fs::remove_file(entry.path());
    }
}
