//! From a recipe to a paused container.

use crate::layer::{self, Etc};
use crate::moulds::{Key, Moulds};
use crate::runtime::{self, Pipes};
use crate::spec;
use anyhow::{Context, Result, bail};
use fsb_files::Access;
use fsb_host::cgroup::{self, Limits, Tree, Version};
use fsb_host::openat::openat2;
use fsb_host::park::{self, Mode, Plan};
use fsb_host::paths::Paths;
use fsb_host::wire::{How, Made, Make, Overlay, Recipe};
use fsb_host::{mount, oom, profile, socket};
use nix::fcntl::{OFlag, ResolveFlag};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::Mode as FileMode;
use nix::unistd::{Gid, Uid, fchown, pipe2};
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

/// Limits of a paused container: the defaults, so that a start without its own writes none.
pub const DEFAULT_LIMITS: Limits = Limits { memory_bytes: 512 << 20, pids: 512, cpu_millis: None };
/// More plugins than this do not fit into one cast.
const CAST_PLUGINS: usize = 16;

/// Makes paused containers, of one kind of runtime.
pub trait Filler {
    /// Makes one. A cast is on its way until it says that it is parked ([`park::ready`]); what libcontainer makes is
    /// parked. On an error what there is of it is left to [`undo`](Self::undo).
    fn fill(&mut self, make: &Make, announce: &mut dyn FnMut(i32, &str)) -> Result<(Made, Ends), Failure>;

    /// Removes what there is of a container that failed on its way, without waiting. An error says what is left, which
    /// may go a moment later: a process that was killed half-made lets go of its cgroup some milliseconds after that.
    fn undo(&self, id: &str) -> Result<()>;
}

/// The keeper's ends of a paused container.
pub struct Ends {
    pub ctl: OwnedFd,
    pub pidfd: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    pub started: OwnedFd,
}

/// Making failed in this stage.
pub struct Failure {
    pub stage: &'static str,
    pub error: anyhow::Error,
}

/// Containers of this kernel: cast from moulds, or made by libcontainer.
pub struct Containers {
    paths: Paths,
    /// The agent's cgroups on the host, as everybody else names them.
    tree: Tree,
    /// The same ones in the spawner's own view.
    seen: Tree,
    etc: Etc,
    program: Rc<OwnedFd>,
    seccomp: Rc<Vec<u8>>,
    moulds: Moulds,
    /// Whether moulds make what is asked for in no particular way.
    casts: bool,
}

impl Containers {
    pub fn new(paths: Paths, tree: Tree, seen: Tree, etc: Etc, program: OwnedFd, seccomp: Vec<u8>) -> Self {
        let (program, seccomp) = (Rc::new(program), Rc::new(seccomp));
        let moulds = Moulds::new(program.clone(), seccomp.clone(), paths.runtime_state(), seen.clone());
        Self { paths, tree, seen, etc, program, seccomp, moulds, casts: true }
    }

    /// From now on libcontainer makes what is asked for in no particular way.
    pub fn without_moulds(&mut self) {
        self.casts = false;
    }

    /// What makes this one: a mould, unless there is none or it cannot.
    fn how(&mut self, make: &Make, announce: &mut dyn FnMut(i32, &str)) -> How {
        match make.how {
            Some(how) => how,
            None if !self.casts || !castable(&make.recipe) => How::Libcontainer,
            None => {
                let key = Key::of(&make.recipe);
                let is_there = !self.moulds.failed_lately(&key) && self.moulds.get(&key, announce).is_ok();
                if is_there { How::Cast } else { How::Libcontainer }
            }
        }
    }

    fn cast(
        &mut self,
        make: &Make,
        container: &mut Container,
        announce: &mut dyn FnMut(i32, &str),
    ) -> Result<(i32, OwnedFd)> {
        let key = Key::of(&make.recipe);
        let plugins = make
            .recipe
            .plugins
            .iter()
            .map(|plugin| Ok((mount::plugin(&plugin.source)?, plugin.target.display().to_string())))
            .collect::<Result<Vec<_>>>()?;
        let v2 = self.tree.version() == Version::V2;
        let cgroups = if v2 {
            vec![std::fs::File::open(&container.cgroups[0])?.into()]
        } else {
            cgroup::procs(&container.cgroups)?
        };
        let (ctl, inner) = socket::pair()?;
        let request = park::Cast {
            host: host(&make.id),
            root: container.root.as_fd(),
            ctl: inner.as_fd(),
            stdout: container.pipes.stdout.as_fd(),
            stderr: container.pipes.stderr.as_fd(),
            started: container.pipes.started.as_fd(),
            plugins: &plugins,
            cgroups: &cgroups,
            v2,
        };
        let mould = self.moulds.get(&key, announce).context("make a mould")?;
        let cast = match park::cast(mould.ctl.as_fd(), &request) {
            // Reset: it died with the request unread.
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                tracing::warn!(pid = mould.pid, "a mould has died, another one is made");
                self.moulds.drop(&key);
                park::cast(self.moulds.get(&key, announce)?.ctl.as_fd(), &request)
            }
            other => other,
        };
        let (pid, pidfd) = cast.context("cast")?;
        container.ctl = Some(ctl);
        Ok((pid, pidfd))
    }

    fn by_libcontainer(&mut self, make: &Make, container: &mut Container) -> Result<(i32, OwnedFd)> {
        let merged = self.paths.runtime_state().join(format!("{}.root", make.id));
        fsb_files::create_dir(&merged, Access::Owner)?;
        mount::attach(container.root.as_fd(), &merged)?;
        let capabilities = profile::capabilities(make.recipe.profile, self.tree.polices_devices());
        let spec = spec::container(&spec::Container {
            root: &merged,
            cgroup: &format!("/sandboxes/{}", make.id),
            host: host(&make.id),
            user: &make.recipe.user,
            capabilities: &capabilities,
            plugins: &make.recipe.plugins,
        });
        let plan = Plan {
            masked: Vec::new(),
            readonly: Vec::new(),
            ..spec::plan(Mode::Park, &make.recipe.user, &capabilities, &self.seccomp)
        };
        let state = self.paths.runtime_state();
        let pipes = container.pipes.try_clone()?;
        let made = runtime::create(&make.id, &spec, &plan, Some(pipes), &self.program, &state);
        umount2(&merged, MntFlags::MNT_DETACH)?;
        std::fs::remove_dir(&merged)?;
        let parked = made?;
        oom::raise(parked.pidfd.as_fd(), parked.pid, profile::OOM_SCORE_ADJ).context("raise oom_score_adj")?;
        // libcontainer has made a cgroup of its own for device rules; those of all sandboxes are the same.
        self.seen.police_devices(parked.pid)?;
        if let Some(devices) = self.seen.devices() {
            cgroup::remove(&[devices.join("sandboxes").join(&make.id)], Duration::from_millis(500))?;
        }
        container.ctl = Some(parked.ctl);
        Ok((parked.pid, parked.pidfd))
    }

    /// Layer, cgroup and pipes, whoever makes the process.
    fn prepare(&self, make: &Make) -> Result<(Container, Reads), Failure> {
        let stage = |stage| move |error: anyhow::Error| Failure { stage, error };
        // Where device nodes are not policed, those of an image must not open anything either.
        let attributes = if self.tree.polices_devices() { 0 } else { mount::ATTR_NODEV };
        let Recipe { lowers, overlay, plugins, user, .. } = &make.recipe;
        let layer = self.paths.layer(&make.id);
        if let Some(spare) = &make.spare {
            // Where it is gone a new one is made.
            let _ = std::fs::rename(self.paths.spare(spare), &layer);
        }
        let root = layer::create(&layer, lowers, *overlay, plugins, host(&make.id), &self.etc, attributes)
            .map_err(anyhow::Error::from)
            .map_err(stage("layer"))?;
        make.lookups.iter().for_each(|path| look_up(root.as_fd(), path));
        let cgroups = self.seen.create(&make.id).map_err(anyhow::Error::from).map_err(stage("cgroup"))?;
        cgroup::set_limits(&cgroups, &DEFAULT_LIMITS, Some(&Limits::NONE))
            .map_err(anyhow::Error::from)
            .map_err(stage("limits"))?;
        let (pipes, reads) = Pipes::open(user.uid, user.gid).map_err(stage("pipes"))?;
        Ok((Container { root, cgroups, pipes, ctl: None }, reads))
    }
}

/// A container on its way.
struct Container {
    root: OwnedFd,
    cgroups: Vec<PathBuf>,
    pipes: Pipes,
    ctl: Option<OwnedFd>,
}

/// The other ends of [`Pipes`].
struct Reads {
    stdout: OwnedFd,
    stderr: OwnedFd,
    started: OwnedFd,
}

impl Pipes {
    fn open(uid: u32, gid: u32) -> Result<(Self, Reads)> {
        let pipe = || pipe2(OFlag::O_CLOEXEC);
        let ((out_read, stdout), (err_read, stderr), (started_read, started)) = (pipe()?, pipe()?, pipe()?);
        if uid != 0 || gid != 0 {
            // So that the user can open /dev/stdout again.
            for fd in [&stdout, &stderr] {
                fchown(fd.as_raw_fd(), Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
            }
        }
        Ok((Self { stdout, stderr, started }, Reads { stdout: out_read, stderr: err_read, started: started_read }))
    }

    fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Self {
            stdout: self.stdout.try_clone()?,
            stderr: self.stderr.try_clone()?,
            started: self.started.try_clone()?,
        })
    }
}

impl Filler for Containers {
    fn fill(&mut self, make: &Make, announce: &mut dyn FnMut(i32, &str)) -> Result<(Made, Ends), Failure> {
        let (mut container, reads) = self.prepare(make)?;
        let how = self.how(make, announce);
        let made = match how {
            How::Cast if !castable(&make.recipe) => Err(anyhow::anyhow!("a cast cannot make this recipe")),
            How::Cast => self.cast(make, &mut container, announce),
            How::Libcontainer => self.by_libcontainer(make, &mut container),
        };
        let stage = if how == How::Cast { "cast" } else { "libcontainer" };
        let (pid, pidfd) = made.map_err(|error| Failure { stage, error })?;
        let Some(ctl) = container.ctl.take() else {
            return Err(Failure { stage, error: anyhow::anyhow!("no control socket") });
        };
        let made =
            Made { id: make.id.clone(), pid, how, recipe: make.recipe.clone(), cgroups: self.tree.sandbox(&make.id) };
        let Reads { stdout, stderr, started } = reads;
        Ok((made, Ends { ctl, pidfd, stdout, stderr, started }))
    }

    fn undo(&self, id: &str) -> Result<()> {
        fsb_host::layer::remove(&self.paths.layer(id)).context("its layer")?;
        cgroup::remove(&self.seen.sandbox(id), Duration::ZERO).context("its cgroup")
    }
}

/// Has the kernel look a path of the container up, there or not. Nothing is opened (`O_PATH`).
fn look_up(root: BorrowedFd<'_>, path: &Path) {
    let inside = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let _ = openat2(root, path, OFlag::O_PATH, FileMode::empty(), inside);
}

/// Whether a cast knows all that is in this recipe.
fn castable(recipe: &Recipe) -> bool {
    recipe.user.groups.len() <= 256 && recipe.plugins.len() <= CAST_PLUGINS
}

/// Docker's host name: the first twelve characters of the id.
fn host(id: &str) -> &str {
    &id[..id.len().min(12)]
}

/// Checks what the agent asks for before anything is made of it.
pub fn validate(make: &Make) -> Result<()> {
    if make.id.len() != 32 || !make.id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        bail!("an instance id is 32 hexadecimal characters");
    }
    if make.recipe.lowers.is_empty() {
        bail!("an image has at least one layer");
    }
    if let Overlay::Tmpfs { bytes: 0, .. } | Overlay::Tmpfs { inodes: 0, .. } = make.recipe.overlay {
        bail!("a writable layer has at least one byte and one file");
    }
    if make.spare.as_ref().is_some_and(|spare| spare.contains('/')) {
        bail!("a spare layer is named by an instance id");
    }
    for plugin in &make.recipe.plugins {
        let inside =
            plugin.target.starts_with("/.fs") && plugin.target.components().all(|part| part.as_os_str() != "..");
        if !inside {
            bail!("a plugin goes below /.fs, not to {}", plugin.target.display());
        }
    }
    Ok(())
}
