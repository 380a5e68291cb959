//! The directory that a run keeps everything in, and the promise that nothing of it stays behind.

use crate::sweep;
use anyhow::Context;
use nix::mount::{MsFlags, mount};
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
        let workspace = Self { path, name };
        mount_run(&workspace.run())?;
        Ok(workspace)
    }

    /// For what belongs below /run: a tmpfs, as `fsb-ctl local up` has it too.
    pub fn run(&self) -> PathBuf {
        self.path.join("run")
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

/// Makes `dir` with a tmpfs on it.
fn mount_run(dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), dir, Some("tmpfs"), flags, Some("mode=755"))
        .with_context(|| format!("mount {}", dir.display()))
}

/// Removes what a run that was killed has left in `root`, or in /tmp.
pub fn sweep_stale(root: Option<&Path>) {
    for entry in std::fs::read_dir(root.unwrap_or(Path::new("/tmp"))).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if owner(&name).is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            eprintln!("fsb-bench: removing {}, which a run left that was killed", entry.path().display());
            crate::node::remove(&entry.path());
            drop(Workspace { path: entry.path(), name });
        }
    }
}

/// The process that made a workspace of this name.
fn owner(name: &str) -> Option<u32> {
    let (pid, count) = name.strip_prefix("fsb-bench-")?.split_once('-')?;
    count.parse::<u32>().ok()?;
    pid.parse().ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_benchs_own_directories_have_an_owner() {
        assert_eq!(owner("fsb-bench-123-0"), Some(123));
        for other in ["fsb-bench", "fsb-bench-123", "fsb-bench-x-1", "fsb-bench-1-x", "fsb-bench-sweep-1", "other-1-1"]
        {
            assert_eq!(owner(other), None, "{other}");
        }
    }

    #[test]
    fn what_a_killed_run_left_is_removed_and_what_a_living_one_has_is_not() {
        let mut dead = std::process::Command::new("true").spawn().unwrap();
        let pid = dead.id();
        dead.wait().unwrap();
        let root = tempfile::tempdir().unwrap();
        let stale = root.path().join(format!("fsb-bench-{pid}-0"));
        std::fs::create_dir_all(stale.join("image")).unwrap();
        let own = Workspace::create(Some(root.path())).unwrap();
        sweep_stale(Some(root.path()));
        assert!(!stale.exists() && own.path().exists());
    }
}
