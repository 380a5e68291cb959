//! What is done once, before there is a runtime or a child.

use crate::settings::Settings;
use crate::sweep;
use anyhow::Context;
use fsb_files::Access;
use fsb_host::cgroup::Tree;
use fsb_host::paths::Paths;
use fsb_host::process;
use std::fs::File;
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
    for dir in [&paths.run(), &paths.records(), &paths.runtime_state(), &paths.layers(), paths.logs()] {
        fsb_files::create_dir(dir, Access::Owner).with_context(|| format!("create {}", dir.display()))?;
    }
    if let Err(error) = fsb_host::spread::apart(&paths.layers()) {
        debug!(%error, "this file system puts layers where it likes");
    }
    let lock = lock(&paths.run().join("keeper.lock"))?;
    let tree = Tree::discover(&settings.cgroup).context("find the cgroup of this agent")?;
    tree.prepare().context("prepare the cgroups of this agent")?;
    sweep::before_start(&paths, &tree);
    Ok(Ground { paths, tree, lock })
}

fn lock(path: &Path) -> anyhow::Result<File> {
    let opened = fsb_files::open(path, File::options().create(true).truncate(false).write(true));
    let file = opened.with_context(|| format!("open {}", path.display()))?;
    file.try_lock().with_context(|| {
        format!("{} is locked: another keeper serves this agent; hint: give this one another POD_NAME", path.display())
    })?;
    Ok(file)
}
