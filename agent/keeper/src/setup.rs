//! What is done once, before there is a runtime or a child.

use crate::settings::Settings;
use crate::sweep;
use anyhow::Context;
use fsb_host::cgroup::Tree;
use fsb_host::paths::Paths;
use fsb_host::process;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use tracing::{debug, warn};

/// The prepared machine.
pub(crate) struct Ground {
    pub(crate) paths: Paths,
    pub(crate) tree: Tree,
    /// Held as long as this keeper lives: nobody else keeps the same agent.
    pub(crate) lock: File,
}

/// Makes directories and cgroups, moves this process into `daemons`, and clears away what an earlier keeper left.
pub(crate) fn prepare(settings: &Settings) -> anyhow::Result<Ground> {
    if let Err(error) = process::raise_open_files() {
        warn!(%error, "the limit of open files stays as it is");
    }
    if nix::unistd::getpid().as_raw() != 1 {
        nix::sys::prctl::set_child_subreaper(true).context("become a subreaper")?;
    }
    let paths = Paths::from_env();
    for dir in [paths.run(), paths.records(), paths.runtime_state(), paths.layers()] {
        create_dir(&dir, 0o700)?;
    }
    create_dir(paths.logs(), 0o750)?;
    if let Err(error) = fsb_host::spread::apart(&paths.layers()) {
        debug!(%error, "this file system puts layers where it likes");
    }
    let lock = lock(&paths.run().join("keeper.lock"))?;
    let tree = Tree::discover(&settings.cgroup).context("find the cgroup of this agent")?;
    tree.prepare().context("prepare the cgroups of this agent")?;
    sweep::before_start(&paths, &tree);
    Ok(Ground { paths, tree, lock })
}

/// Makes `dir` for us alone; what is missing above it is made for everybody to pass through, as mkdir does.
fn create_dir(dir: &Path, mode: u32) -> anyhow::Result<()> {
    let make = || {
        if let Some(parent) = dir.parent() {
            std::fs::create_dir_all(parent)?;
        }
        DirBuilder::new().recursive(true).mode(mode).create(dir)
    };
    make().with_context(|| format!("create {}", dir.display()))
}

fn lock(path: &Path) -> anyhow::Result<File> {
    let open = || OpenOptions::new().create(true).truncate(false).write(true).open(path);
    let file = open().with_context(|| format!("open {}", path.display()))?;
    file.try_lock().with_context(|| {
        format!("{} is locked: another keeper serves this agent; hint: give this one another POD_NAME", path.display())
    })?;
    Ok(file)
}
