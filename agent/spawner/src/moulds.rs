//! Moulds: one per (user, profile, runtime), made by libcontainer, kept until others are used more recently.

use crate::runtime::{self, Parked};
use crate::spec;
use anyhow::{Context, Result};
use fsb_files::Access;
use fsb_host::cgroup::{self, Tree};
use fsb_host::park::Mode;
use fsb_host::wire::{Profile, Recipe, Runtime, User};
use fsb_host::{mount, oom, profile};
use nix::mount::{MntFlags, umount2};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The most moulds at a time.
const MOST: usize = 16;
/// After a failure a mould is not tried again for so long: each try takes as long as a container.
const TRY_AGAIN: Duration = Duration::from_secs(60);
/// How long the cgroup of a mould that could not be made may take to be empty.
const PATIENCE: Duration = Duration::from_millis(500);

/// The part of a recipe that is fixed in a mould.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    pub user: User,
    pub profile: Profile,
    pub runtime: Runtime,
}

impl Key {
    pub fn of(recipe: &Recipe) -> Self {
        Self { user: recipe.user.clone(), profile: recipe.profile, runtime: recipe.runtime }
    }
}

/// The moulds of one spawner.
pub struct Moulds {
    program: Rc<OwnedFd>,
    seccomp: Rc<Vec<u8>>,
    state: PathBuf,
    seen: Tree,
    /// The most recently used last.
    live: Vec<(Key, Parked)>,
    /// Those that could not be made lately.
    failed: Vec<(Key, Instant)>,
    made: u64,
}

impl Moulds {
    pub fn new(program: Rc<OwnedFd>, seccomp: Rc<Vec<u8>>, state: PathBuf, seen: Tree) -> Self {
        Self { program, seccomp, state, seen, live: Vec::new(), failed: Vec::new(), made: 0 }
    }

    /// The mould of `key`, made now if there is none. `announce` is told process id and name of a new one.
    pub fn get(&mut self, key: &Key, announce: &mut dyn FnMut(i32, &str)) -> Result<&Parked> {
        if let Some(at) = self.live.iter().position(|(known, _)| known == key) {
            let entry = self.live.remove(at);
            self.live.push(entry);
        } else {
            self.made += 1;
            let id = format!("mould-{}-{}", std::process::id(), self.made);
            let parked = match self.make(&id, key) {
                Ok(parked) => parked,
                Err(error) => {
                    tracing::warn!(user = ?key.user, mould = id, "not made: {error:#}");
                    // libcontainer has ended what it had made, unless it came to nothing before.
                    if let Err(error) = cgroup::remove(&self.seen.mould(&id), PATIENCE) {
                        tracing::warn!(mould = id, %error, "its cgroup stays until the node stops");
                    }
                    self.failed.retain(|(_, at)| at.elapsed() < TRY_AGAIN);
                    self.failed.push((key.clone(), Instant::now()));
                    return Err(error);
                }
            };
            tracing::info!(user = ?key.user, mould = id, "mould");
            announce(parked.pid, &id);
            if self.live.len() == MOST {
                // Its control socket closes, and it ends. What it has cast goes on.
                self.live.remove(0);
            }
            self.live.push((key.clone(), parked));
        }
        Ok(&self.live[self.live.len() - 1].1)
    }

    /// Whether this one could not be made, and is not to be tried again yet by who has another way.
    pub fn failed_lately(&self, key: &Key) -> bool {
        self.failed.iter().any(|(failed, at)| failed == key && at.elapsed() < TRY_AGAIN)
    }

    /// Forgets a mould that has failed, so that the next use makes a new one.
    pub fn drop(&mut self, key: &Key) {
        self.live.retain(|(known, _)| known != key);
    }

    fn make(&self, id: &str, key: &Key) -> Result<Parked> {
        let root = self.state.join(id).with_extension("root");
        fsb_files::create_dir(&root, Access::Owner)?;
        mount::attach(mount::tmpfs(1 << 20, 64)?.as_fd(), &root)?;
        let capabilities = profile::capabilities(key.profile, self.seen.polices_devices());
        let spec = spec::mould(&root, &format!("/moulds/{id}"), &capabilities);
        let plan = spec::plan(Mode::Mould, &key.user, &capabilities, &self.seccomp);
        let made = runtime::create(id, &spec, &plan, None, &self.program, &self.state);
        umount2(&root, MntFlags::MNT_DETACH)?;
        std::fs::remove_dir(&root)?;
        let parked = made?;
        // Once, for all that it casts.
        oom::raise(parked.pidfd.as_fd(), parked.pid, profile::OOM_SCORE_ADJ).context("raise oom_score_adj")?;
        // What it casts stands where it stands in every controller that is not joined one by one.
        self.seen.police_devices(parked.pid)?;
        Ok(parked)
    }
}
