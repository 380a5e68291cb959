//! The spawner: the one process that calls libcontainer, which is only safe in a process with a single thread.
//!
//! It is started by the keeper with its socket as descriptor 3, stands in the network namespace of the sandboxes, and
//! makes paused containers on request.
#![cfg_attr(not(test), warn(clippy::print_stderr, clippy::print_stdout))]

mod filler;
mod layer;
mod moulds;
mod runtime;
mod serve;
mod spec;
mod view;

use anyhow::{Context, Result};
use fsb_files::Access;
use fsb_host::wire::FromSpawner;
use fsb_host::{cgroup::Tree, memfd, paths::Paths, seccomp};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

/// The parked program, built by build.rs.
static PARK: &[u8] = include_bytes!(env!("FSB_PARK"));

fn main() -> ExitCode {
    // libcontainer warns of what is by design here: an intermediate process that its parent reaps.
    fsb_log::init("libcontainer=error,libcgroups=error");
    fsb_log::exit("fsb-spawner", run())
}

fn run() -> Result<()> {
    let keeper = fsb_host::process::keeper_socket()?;
    // Moulds and paused containers inherit it. The keeper takes it from a container that has started.
    if let Err(error) = fsb_host::sched::short_slice() {
        tracing::warn!(%error, "containers are made and started with the usual slice");
    }
    let paths = Paths::from_env();
    let tree =
        std::env::var("FSB_CGROUP_TREE").context("FSB_CGROUP_TREE is not set: the keeper starts this program")?;
    let tree = Tree::from_json(&tree)?;
    if let Some(netns) = std::env::var_os("AGENT_NETNS").filter(|path| !path.is_empty()) {
        view::enter_netns(Path::new(&netns))?;
    }
    fsb_files::create_dir(&paths.runtime_state(), Access::Owner)?;
    let scratch = paths.runtime_state().join("view");
    let seen = view::enter(&tree, &scratch).context("a private view of the mounts")?;
    let program = memfd::sealed(c"fsb-park", &[PARK], true).context("the parked program")?;
    let etc = layer::Etc::read(&std::env::var("POD_IP").unwrap_or_default());
    let mut containers = filler::Containers::new(paths, tree, seen, etc, program, seccomp::default_filter());
    let mut announce = |pid, id: &str| {
        let _ = serve::tell(keeper.as_fd(), &FromSpawner::Mould { pid, id: id.to_owned() }, &[]);
    };
    if let Err(error) = containers.warm_up(&mut announce) {
        tracing::error!("the first mould cannot be made, libcontainer alone makes containers: {error:#}");
    }
    serve::tell(keeper.as_fd(), &FromSpawner::Ready, &[])?;
    serve::serve(keeper.as_fd(), &mut containers)
}
