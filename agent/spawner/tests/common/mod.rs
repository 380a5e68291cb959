//! A real spawner with this test as its keeper.
#![allow(dead_code, reason = "each test binary uses its part")]

use fsb_host::cgroup::{self, Tree};
use fsb_host::handoff;
use fsb_host::paths::Paths;
use fsb_host::wire::{FromSpawner, How, MAX_MESSAGE, Made, Make, Overlay, Recipe, ToSpawner, User, decode, encode};
use fsb_host::{process, socket};
use nix::sys::socket::MsgFlags;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

static NEXT: AtomicU64 = AtomicU64::new(1);
/// Held while this process passes through a test's cgroups: another test's spawner must not be born in them.
static PASSING: Mutex<()> = Mutex::new(());

/// A spawner, its cgroups and its directories; all of it goes when this is dropped.
pub struct Spawner {
    pub dir: tempfile::TempDir,
    pub paths: Paths,
    pub tree: Tree,
    pub image: PathBuf,
    socket: OwnedFd,
    pid: i32,
    pub pidfd: OwnedFd,
    pub moulds: Vec<i32>,
}

/// A paused container as the keeper holds it.
pub struct Paused {
    pub made: Made,
    pub ctl: OwnedFd,
    pub pidfd: OwnedFd,
    pub stdout: std::fs::File,
    pub stderr: std::fs::File,
    pub started: std::fs::File,
}

impl Spawner {
    pub fn start() -> Self {
        // What libcontainer makes as a sibling of the spawner is our child; so are orphans of a killed spawner.
        let dir = tempfile::Builder::new().prefix("fsb-spawner").tempdir().unwrap();
        let paths = Paths::new(dir.path().join("run"), dir.path().join("lib"), dir.path().join("log"), "a");
        for path in [paths.runtime_state(), paths.layers(), paths.records()] {
            std::fs::create_dir_all(path).unwrap();
        }
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        let tree = Tree::discover(&format!("fsb-test-{}-{number}", std::process::id())).unwrap();
        let passing = PASSING.lock().unwrap_or_else(PoisonError::into_inner);
        prepare(&tree);
        drop(passing);
        let image = image(dir.path());
        let (socket, inner) = socket::pair().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_fsb-spawner"));
        command
            .env("FSB_RUN_DIR", dir.path().join("run"))
            .env("FSB_STATE_DIR", dir.path().join("lib"))
            .env("FSB_LOG_DIR", dir.path().join("log"))
            .env("POD_NAME", "a")
            .env("FSB_CGROUP_TREE", tree.to_json())
            .env("RUST_LIB_BACKTRACE", "0")
            .env_remove("AGENT_NETNS");
        let passing = PASSING.lock().unwrap_or_else(PoisonError::into_inner);
        let (pid, pidfd) = process::spawn(&mut command, inner.as_fd()).unwrap();
        drop(passing);
        // Where its keeper would have started it.
        for (_, dir) in tree.dirs() {
            std::fs::write(dir.join("daemons/cgroup.procs"), pid.to_string()).unwrap();
        }
        let mut spawner = Self { dir, paths, tree, image, socket, pid, pidfd, moulds: Vec::new() };
        loop {
            match spawner.receive().0 {
                FromSpawner::Mould { pid, .. } => spawner.moulds.push(pid),
                FromSpawner::Ready => break,
                other => panic!("{other:?}"),
            }
        }
        spawner
    }

    pub fn recipe(&self) -> Recipe {
        Recipe {
            image: "sha256:test".into(),
            lowers: vec![self.image.clone()],
            user: User::default(),
            profile: Default::default(),
            runtime: Default::default(),
            plugins: Vec::new(),
            overlay: Overlay::Disk,
        }
    }

    pub fn id() -> String {
        format!("{:08x}{:024x}", std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst))
    }

    fn receive(&mut self) -> (FromSpawner, Vec<OwnedFd>) {
        let mut buffer = vec![0; MAX_MESSAGE];
        let (n, fds) = socket::recv(&self.socket, &mut buffer, MsgFlags::empty()).unwrap();
        assert!(n > 0, "the spawner is gone");
        (decode(&buffer[..n]).unwrap(), fds)
    }

    pub fn request(&mut self, recipe: Recipe, how: Option<How>) -> Result<Paused, String> {
        let make = Make { id: Self::id(), recipe, how, urgent: true, lookups: Vec::new(), spare: None };
        self.request_as(make)
    }

    pub fn request_as(&mut self, make: Make) -> Result<Paused, String> {
        socket::send(&self.socket, &encode(&ToSpawner::Make(make)).unwrap(), &[], MsgFlags::empty()).unwrap();
        loop {
            match self.receive() {
                (FromSpawner::Mould { pid, .. }, _) => self.moulds.push(pid),
                (FromSpawner::MakeFailed(failed), _) => return Err(format!("{}: {}", failed.stage, failed.error)),
                (FromSpawner::Made(made), fds) => {
                    let [ctl, pidfd, stdout, stderr, started]: [OwnedFd; 5] = fds.try_into().unwrap();
                    let (stdout, stderr, started) = (stdout.into(), stderr.into(), started.into());
                    return Ok(Paused { made, ctl, pidfd, stdout, stderr, started });
                }
                other => panic!("{other:?}"),
            }
        }
    }

    pub fn make(&mut self, recipe: Recipe, how: How) -> Paused {
        self.request(recipe, Some(how)).unwrap()
    }

    /// Ends a container and removes what its keeper and agent would remove. Returns how it ended.
    pub fn finish(&self, paused: Paused, kill: bool) -> process::Exit {
        if kill {
            let _ = fsb_host::pidfd::kill(&paused.pidfd, nix::sys::signal::Signal::SIGKILL);
        }
        let exit = self.end(&paused);
        std::fs::remove_dir_all(self.paths.layer(&paused.made.id)).unwrap();
        exit
    }

    /// Waits for a container's end and keeps its layer for the next one, as the agent does.
    pub fn spare(&self, paused: Paused) -> String {
        self.end(&paused);
        let id = paused.made.id;
        let until = std::time::Instant::now() + Duration::from_secs(60);
        assert!(fsb_host::layer::strip(&self.paths.layer(&id), until).unwrap());
        std::fs::rename(self.paths.layer(&id), self.paths.spare(&id)).unwrap();
        id
    }

    fn end(&self, paused: &Paused) -> process::Exit {
        let exit = wait(paused);
        cgroup::remove(&paused.made.cgroups, Duration::from_secs(2)).unwrap();
        exit
    }
}

impl Paused {
    /// Hands `argv` over and returns what it wrote to both streams until it ended.
    pub fn run(&mut self, argv: &[&str]) -> String {
        self.start(argv, &["PATH=/bin"], "/").unwrap();
        let mut output = String::new();
        self.stdout.read_to_string(&mut output).unwrap();
        self.stderr.read_to_string(&mut output).unwrap();
        output
    }

    pub fn sh(&mut self, script: &str) -> String {
        self.run(&["/bin/sh", "-c", script])
    }

    pub fn start(&mut self, argv: &[&str], env: &[&str], cwd: &str) -> Result<(), handoff::Outcome> {
        handoff::send(self.ctl.as_fd(), argv, env, cwd.as_bytes()).unwrap();
        loop {
            match handoff::outcome(self.ctl.as_fd()).unwrap() {
                Some(handoff::Outcome::Started) => return Ok(()),
                Some(failed) => return Err(failed),
                None => std::thread::sleep(Duration::from_micros(200)),
            }
        }
    }
}

fn wait(paused: &Paused) -> process::Exit {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(paused.pidfd.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::from(10_000u16)).unwrap(), 1, "it does not end");
    process::reap(paused.made.pid).unwrap()
}

impl Drop for Spawner {
    fn drop(&mut self) {
        let _ = fsb_host::pidfd::kill(&self.pidfd, nix::sys::signal::Signal::SIGKILL);
        let _ = process::reap(self.pid);
        for pid in &self.moulds {
            // They end when the spawner's socket closes.
            let _ = process::reap(*pid);
        }
        for id in self.tree.list() {
            for pid in cgroup::processes(&self.tree.sandbox(&id)) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
                let _ = process::reap(pid);
            }
            let _ = cgroup::remove(&self.tree.sandbox(&id), Duration::from_secs(2));
        }
        for id in self.tree.moulds() {
            let _ = cgroup::remove(&self.tree.mould(&id), Duration::from_secs(2));
        }
        remove(&self.tree);
    }
}

/// As the keeper's `Tree::prepare`, but this process stays where it is.
fn prepare(tree: &Tree) {
    let here: Vec<(PathBuf, String)> =
        tree.dirs().map(|(_, dir)| (dir.parent().unwrap().join("cgroup.procs"), "0".to_owned())).collect();
    tree.prepare().unwrap();
    for (procs, zero) in here {
        std::fs::write(procs, zero).unwrap();
    }
}

fn remove(tree: &Tree) {
    for (_, dir) in tree.dirs() {
        let dirs = ["sandboxes", "moulds", "daemons", ""].map(|name| dir.join(name));
        let _ = cgroup::remove(&dirs, Duration::from_secs(2));
    }
    if let Some(dir) = tree.devices() {
        let dirs = ["sandboxes", "moulds", "daemons", "policed", ""].map(|name| dir.join(name));
        let _ = cgroup::remove(&dirs, Duration::from_secs(2));
    }
}

/// A root file system with Debian's static busybox.
fn image(dir: &Path) -> PathBuf {
    let root = dir.join("image");
    for path in ["bin", "etc", "tmp", "home/user"] {
        std::fs::create_dir_all(root.join(path)).unwrap();
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed (make setup)");
    for applet in [
        "sh", "cat", "ls", "grep", "sort", "id", "hostname", "env", "sleep", "mount", "mknod", "readlink", "stat",
        "cut", "sed", "tr", "wc", "echo", "true", "touch", "rm", "dd", "umount", "ps", "kill", "mkdir", "chmod",
        "head", "awk",
    ] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n").unwrap();
    std::fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\n").unwrap();
    std::os::unix::fs::chown(root.join("home/user"), Some(1000), Some(1000)).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(root.join("tmp"), std::fs::Permissions::from_mode(0o1777)).unwrap();
    root
}
