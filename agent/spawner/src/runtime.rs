//! The one call to libcontainer: a container, or a mould, whose first process has become the parked program.

use anyhow::{Context, Result};
use fsb_files::Access;
use fsb_host::park::{Plan, become_parked, ready};
use fsb_host::{pidfd, socket};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use serde_json::Value;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

/// How long a first process may take from its start to being parked.
const PATIENCE_MS: u16 = 5000;

/// What libcontainer runs as its last step in the new container. It follows a raw clone: nothing here allocates.
#[derive(Clone)]
struct Park {
    program: Rc<OwnedFd>,
    plan: Rc<OwnedFd>,
    ctl: Rc<OwnedFd>,
    started: Option<Rc<OwnedFd>>,
}

impl Executor for Park {
    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        let started = self.started.as_deref().map(AsFd::as_fd);
        become_parked(self.program.as_fd(), self.ctl.as_fd(), self.plan.as_fd(), started);
        Err(ExecutorError::InvalidArg)
    }

    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }
}

/// A first process that is parked: waiting for a hand-off, or for requests to cast.
pub struct Parked {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub ctl: OwnedFd,
}

/// Standard output, standard error and `started` of a container.
pub struct Pipes {
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    pub started: OwnedFd,
}

/// Makes a container from `spec`, whose root file system is in place. `pipes` is absent for a mould.
pub fn create(
    id: &str,
    spec: &Value,
    plan: &Plan,
    pipes: Option<Pipes>,
    program: &Rc<OwnedFd>,
    state: &Path,
) -> Result<Parked> {
    let bundle = state.join(format!("bundle-{id}"));
    let made = build(id, spec, plan, pipes, program, state, &bundle);
    // Nothing asks libcontainer for this container again.
    let _ = std::fs::remove_dir_all(&bundle);
    let _ = std::fs::remove_dir_all(state.join(id));
    made
}

fn build(
    id: &str,
    spec: &Value,
    plan: &Plan,
    pipes: Option<Pipes>,
    program: &Rc<OwnedFd>,
    state: &Path,
    bundle: &Path,
) -> Result<Parked> {
    fsb_files::create_dir(bundle, Access::Owner).with_context(|| bundle.display().to_string())?;
    fsb_files::write(&bundle.join("config.json"), spec.to_string(), Access::Owner)?;
    let (ctl, inner) = socket::pair()?;
    let null = || std::fs::File::options().read(true).write(true).open("/dev/null");
    let (stdout, stderr, started) = match pipes {
        Some(Pipes { stdout, stderr, started }) => (stdout, stderr, Some(Rc::new(started))),
        None => (null()?.into(), null()?.into(), None),
    };
    let executor = Park { program: program.clone(), plan: Rc::new(plan.to_memfd()?), ctl: Rc::new(inner), started };
    let mut container = ContainerBuilder::new(id.to_owned(), SyscallType::default())
        .with_root_path(state)?
        .with_executor(executor)
        .with_stdin(std::fs::File::open("/dev/null")?)
        .with_stdout(stdout)
        .with_stderr(stderr)
        .as_init(bundle)
        .with_systemd(false)
        // The keeper's child, as everything that it has to reap.
        .as_sibling(true)
        .build()
        .context("create")?;
    let pid = container.pid().context("libcontainer names no process")?.as_raw();
    let pidfd = pidfd::open(pid).context("pidfd of the new process")?;
    let parked = container.start().context("start").and_then(|()| Ok(ready(ctl.as_fd(), PATIENCE_MS)?));
    if let Err(error) = parked {
        let _ = pidfd::kill(&pidfd, nix::sys::signal::Signal::SIGKILL);
        return Err(error.context("the new process did not park"));
    }
    Ok(Parked { pid, pidfd, ctl })
}
