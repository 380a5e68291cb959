//! The directory that a run keeps everything in, and the promise that nothing of it stays behind.

use crate::sweep;
use anyhow::Context;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A private directory. When it is dropped, processes, mounts and cgroups that carry its name go, then its files.
#[derive(Debug)]
pub struct Workspace {
    path: PathBuf,
    name: String,
}

impl Workspace {
    /// Makes `root`, or a new directory below /tmp. The path is short: unix sockets below it must fit into 107 bytes
    /// (unix(7)).
    pub fn create(root: Option<&Path>) -> anyhow::Result<Self> {
        let name = format!("fsb-bench-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = root.map_or_else(|| Path::new("/tmp").join(&name), |root| root.join(&name));
        std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        let path = path.canonicalize()?;
        Ok(Self { path, name })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its name, which cgroups and nodes of this run carry too.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        for line in sweep::sweep(&self.name, &self.path) {
            eprintln!("fsb-bench: {line}");
        }
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("fsb-bench: {}: {error}", self.path.display());
        }
    }
}
