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
mod trial;
mod view;

use anyhow::{Context, Result};
use filler::Containers;
use fsb_files::Access;
use fsb_host::wire::FromSpawner;
use fsb_host::{cgroup::Tree, making::Making, memfd, paths::Paths, seccomp};
use std::os::fd::{AsFd, BorrowedFd};
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
    let paths = Paths::from_env();
    let begun = begin(keeper.as_fd(), paths.clone());
    let making = match &begun {
        Ok((_, making)) => making.clone(),
        Err(error) => Making::Nothing { why: format!("{error:#}") },
    };
    // Read while it is written it would be nobody's word.
    let next = paths.making().with_extension("next");
    fsb_files::write(&next, making.to_json(), Access::Owner).context("say what makes containers")?;
    std::fs::rename(&next, paths.making()).context("say what makes containers")?;
    let (mut containers, _) = begun?;
    serve::tell(keeper.as_fd(), &FromSpawner::Ready, &[])?;
    serve::serve(keeper.as_fd(), &mut containers)
}

/// Everything up to a first container.
fn begin(keeper: BorrowedFd<'_>, paths: Paths) -> Result<(Containers, Making)> {
    // Moulds and paused containers inherit it. The keeper takes it from a container that has started.
    if let Err(error) = fsb_host::sched::short_slice() {
        tracing::warn!(%error, "containers are made and started with the usual slice");
    }
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
    let state = paths.runtime_state();
    let mut containers = Containers::new(paths, tree, seen, etc, program, seccomp::default_filter());
    let mut announce = |pid, id: &str| {
        let _ = serve::tell(keeper, &FromSpawner::Mould { pid, id: id.to_owned() }, &[]);
    };
    let making = trial::make_one(&mut containers, &state, &mut announce)?;
    if let Making::Libcontainer { why } = &making {
        tracing::error!("no mould, libcontainer alone makes containers: {why}");
        containers.without_moulds();
    }
    Ok((containers, making))
}
