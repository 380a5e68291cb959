//! Moulds: one per (user, profile, runtime), made by libcontainer, kept until others are used more recently.

use crate::runtime::{self, Parked};
use crate::spec;
use anyhow::{Context, Result};
use fsb_files::Access;
use fsb_host::cgroup::Tree;
use fsb_host::park::Mode;
use fsb_host::wire::{Profile, Recipe, Runtime, User};
use fsb_host::{mount, oom, profile};
use nix::mount::{MntFlags, umount2};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

/// The most moulds at a time.
const MOST: usize = 16;

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
    made: u64,
}

impl Moulds {
    pub fn new(program: Rc<OwnedFd>, seccomp: Rc<Vec<u8>>, state: PathBuf, seen: Tree) -> Self {
        Self { program, seccomp, state, seen, live: Vec::new(), made: 0 }
    }

    /// The mould of `key`, made now if there is none. `announce` is told the process id of a new one.
    pub fn get(&mut self, key: &Key, announce: &mut dyn FnMut(i32)) -> Result<&Parked> {
        if let Some(at) = self.live.iter().position(|(known, _)| known == key) {
            let entry = self.live.remove(at);
            self.live.push(entry);
        } else {
            let parked = self.make(key)?;
            announce(parked.pid);
            if self.live.len() == MOST {
                // Its control socket closes, and it ends. What it has cast goes on.
                self.live.remove(0);
            }
            self.live.push((key.clone(), parked));
        }
        Ok(&self.live[self.live.len() - 1].1)
    }

    /// Forgets a mould that has failed, so that the next use makes a new one.
    pub fn drop(&mut self, key: &Key) {
        self.live.retain(|(known, _)| known != key);
    }

    fn make(&mut self, key: &Key) -> Result<Parked> {
        self.made += 1;
        let id = format!("mould-{}-{}", std::process::id(), self.made);
        let root = self.state.join(&id).with_extension("root");
        fsb_files::create_dir(&root, Access::Owner)?;
        mount::attach(mount::tmpfs(1 << 20, 64)?.as_fd(), &root)?;
        let capabilities = profile::capabilities(key.profile, self.seen.polices_devices());
        let spec = spec::mould(&root, "/daemons", &capabilities);
        let plan = spec::plan(Mode::Mould, &key.user, &capabilities, &self.seccomp);
        let made = runtime::create(&id, &spec, &plan, None, &self.program, &self.state);
        umount2(&root, MntFlags::MNT_DETACH)?;
        std::fs::remove_dir(&root)?;
        tracing::info!(user = ?key.user, mould = id, ok = made.is_ok(), "mould");
        let parked = made?;
        // Once, for all that it casts.
        oom::raise(parked.pidfd.as_fd(), parked.pid, profile::OOM_SCORE_ADJ).context("raise oom_score_adj")?;
        // What it casts stands where it stands in every controller that is not joined one by one.
        self.seen.police_devices(parked.pid)?;
        Ok(parked)
    }
}
