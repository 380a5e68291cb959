//! The cgroups of one agent, on v1, v2 and hybrid hosts.
//!
//! ```text
//! <own cgroup>[/FSB_CGROUP]/daemons/             keeper, spawner, agent
//!                          /moulds/<id>/         one per mould
//!                          /sandboxes/<id>/      one per sandbox, with its limits
//! ```
//!
//! A mould has cgroups of its own because libcontainer ends every process in those of a container that it fails to make.
//!
//! On v1 a sandbox has a directory in each of memory, cpu and pids: those that limit it. Each further controller costs
//! 70 µs and 40 KB per sandbox. `devices` has one directory, `policed`, for all of them, since the rules are the same. On
//! v2 there is one directory. Where controllers are split between the two, those of v1 count.
//!
//! Sources: cgroups(7); Documentation/admin-guide/cgroup-v1/{memory,devices}.rst and cgroup-v2.rst of the kernel.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// v1 controllers that each sandbox has a directory of its own in.
const OWN: [&str; 3] = ["memory", "cpu", "pids"];
/// v1 controller whose rules all sandboxes share.
const SHARED: &str = "devices";
/// v2 controllers that are enabled for sandboxes.
const V2: [&str; 3] = ["memory", "cpu", "pids"];
/// The kernel's default CFS period.
const PERIOD_US: u64 = 100_000;
/// Docker's default devices: any node may be made, only these may be used.
const DEVICES: [&str; 10] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

/// Which interface a directory speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Version {
    V1,
    V2,
}

/// The cgroup of an agent: its directory in each hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    version: Version,
    /// Controller → directory; on v2 the single key is "".
    dirs: BTreeMap<String, PathBuf>,
    devices: Option<PathBuf>,
}

/// Limits of one sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub memory_bytes: u64,
    pub pids: u64,
    /// Thousandths of a core; `None` = no limit.
    pub cpu_millis: Option<u64>,
}

impl Limits {
    /// Those of a new cgroup.
    pub const NONE: Self = Self { memory_bytes: u64::MAX, pids: u64::MAX, cpu_millis: None };
}

impl Tree {
    /// The cgroup that this process stands in, or the one called `below` underneath. On v2 `below` counts from the
    /// mount's root: a cgroup with processes of its own cannot have children with controllers there.
    pub fn discover(below: &str) -> io::Result<Self> {
        Self::parse(&read(Path::new("/proc/self/mountinfo"))?, &read(Path::new("/proc/self/cgroup"))?, below)
    }

    fn parse(mountinfo: &str, own: &str, below: &str) -> io::Result<Self> {
        let below = below.trim_matches('/');
        let mut v1 = BTreeMap::new();
        let mut v2 = None;
        for line in mountinfo.lines() {
            // 36 35 98:0 /root /mount/point rw,noatime master:1 - type source super,options   (proc(5))
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let left: Vec<&str> = left.split(' ').collect();
            let right: Vec<&str> = right.split(' ').collect();
            let (Some(root), Some(point), Some(kind)) = (left.get(3), left.get(4), right.first()) else { continue };
            match *kind {
                "cgroup" => {
                    for controller in right.get(2).unwrap_or(&"").split(',') {
                        v1.insert(controller.to_owned(), (PathBuf::from(point), root.to_string()));
                    }
                }
                "cgroup2" => v2 = Some((PathBuf::from(point), root.to_string())),
                _ => {}
            }
        }
        let standing = |controller: &str| {
            own.lines()
                .filter_map(|line| line.split_once(':')?.1.split_once(':'))
                .find(|(list, _)| list.split(',').any(|name| name == controller))
                .map(|(_, path)| path.to_owned())
        };
        let dir = |controller: &str| {
            let (point, root) = v1.get(controller)?;
            Some(inside(point, root, &standing(controller)?).join(below))
        };
        let dirs: BTreeMap<String, PathBuf> = OWN.iter().filter_map(|c| Some((c.to_string(), dir(c)?))).collect();
        if dirs.contains_key("memory") {
            return Ok(Self { version: Version::V1, dirs, devices: dir(SHARED) });
        }
        let (point, root) =
            v2.ok_or_else(|| io::Error::other("no cgroup file system with a memory controller is mounted"))?;
        let base =
            if below.is_empty() { inside(&point, &root, &standing("").unwrap_or_default()) } else { point.join(below) };
        Ok(Self { version: Version::V2, dirs: BTreeMap::from([(String::new(), base)]), devices: None })
    }

    /// Which interface its directories speak.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The agent's directory for a v1 controller, or the one of v2.
    pub fn dir(&self, controller: &str) -> Option<&Path> {
        self.dirs.get(controller).or_else(|| self.dirs.get("")).map(PathBuf::as_path)
    }

    /// The agent's directory for each v1 controller, or the one of v2 under the name "".
    pub fn dirs(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.dirs.iter().map(|(controller, dir)| (controller.as_str(), dir.as_path()))
    }

    /// Whether device nodes are policed. Where they are not, a sandbox must not make any.
    pub fn polices_devices(&self) -> bool {
        self.devices.is_some()
    }

    /// The agent's directory of the v1 controller whose rules all sandboxes share.
    pub fn devices(&self) -> Option<&Path> {
        self.devices.as_deref()
    }

    /// Makes the agent's cgroups, moves this process into `daemons` and enables controllers for `sandboxes`.
    /// Called once, by the keeper, before it has children.
    pub fn prepare(&self) -> io::Result<()> {
        for dir in self.dirs.values().chain(&self.devices) {
            for child in ["daemons", "moulds", "sandboxes"] {
                create_dir(&dir.join(child))?;
            }
        }
        for dir in self.dirs.values() {
            put(&dir.join("daemons/cgroup.procs"), "0")?;
        }
        match self.version {
            Version::V2 => {
                let base = &self.dirs[""];
                let mount = base.ancestors().filter(|dir| dir.join("cgroup.controllers").exists()).collect::<Vec<_>>();
                // From the mount's root down: a child can only enable what its parent has.
                for dir in mount.into_iter().rev().chain([base.join("sandboxes").as_path()]) {
                    let have = read(&dir.join("cgroup.subtree_control"))?;
                    for controller in V2.iter().filter(|c| !have.split_whitespace().any(|h| h == **c)) {
                        put(&dir.join("cgroup.subtree_control"), &format!("+{controller}"))?;
                    }
                }
                for dir in [base.clone(), base.join("sandboxes")] {
                    // One sandbox out of memory must not take its neighbours along.
                    if dir.join("memory.oom.group").exists() {
                        put(&dir.join("memory.oom.group"), "0")?;
                    }
                }
                // A limit of memory is one of memory, not of what fits besides into everybody's swap.
                let swap = base.join("sandboxes/memory.swap.max");
                if swap.exists() {
                    put(&swap, "0")?;
                }
            }
            Version::V1 => {
                if let Some(memory) = self.dirs.get("memory") {
                    // Limits of a child count in its parent too; refused harmlessly where children exist already.
                    let _ = put(&memory.join("memory.use_hierarchy"), "1");
                }
            }
        }
        if let Some(pids) = self.dir("pids") {
            put(&pids.join("sandboxes/pids.max"), &all_pids()?.to_string())?;
        }
        if let Some(devices) = &self.devices {
            let policed = devices.join("policed");
            create_dir(&policed)?;
            put(&policed.join("devices.deny"), "a")?;
            for rule in DEVICES {
                put(&policed.join("devices.allow"), rule)?;
            }
        }
        Ok(())
    }

    /// Puts process `pid` (0 = this one) under the devices rules of sandboxes; what it starts inherits them.
    pub fn police_devices(&self, pid: i32) -> io::Result<()> {
        match &self.devices {
            Some(devices) => put(&devices.join("policed/cgroup.procs"), &pid.to_string()),
            None => Ok(()),
        }
    }

    /// The same cgroups for a process that sees each of them at `point`, or on v1 at `point/<controller>`.
    pub fn seen_at(&self, point: &Path) -> Self {
        let at = |controller: &str| if controller.is_empty() { point.to_owned() } else { point.join(controller) };
        Self {
            version: self.version,
            dirs: self.dirs.keys().map(|controller| (controller.clone(), at(controller))).collect(),
            devices: self.devices.as_ref().map(|_| at(SHARED)),
        }
    }

    /// The directories of sandbox `id`.
    pub fn sandbox(&self, id: &str) -> Vec<PathBuf> {
        self.dirs.values().map(|dir| dir.join("sandboxes").join(id)).collect()
    }

    /// The directories of mould `id`, in every hierarchy that libcontainer sees.
    pub fn mould(&self, id: &str) -> Vec<PathBuf> {
        self.dirs.values().chain(&self.devices).map(|dir| dir.join("moulds").join(id)).collect()
    }

    /// Makes the directories of sandbox `id`.
    pub fn create(&self, id: &str) -> io::Result<Vec<PathBuf>> {
        let dirs = self.sandbox(id);
        for dir in &dirs {
            if let Err(error) = std::fs::create_dir(dir) {
                let _ = remove(&dirs, Duration::ZERO);
                return Err(named(dir, error));
            }
        }
        Ok(dirs)
    }

    /// Names of the sandboxes that have a directory in any hierarchy.
    pub fn list(&self) -> Vec<String> {
        names(self.dirs.values().map(|dir| dir.join("sandboxes")))
    }

    /// Names of the moulds that have a directory in any hierarchy.
    pub fn moulds(&self) -> Vec<String> {
        names(self.dirs.values().chain(&self.devices).map(|dir| dir.join("moulds")))
    }

    /// For the environment of a daemon that the keeper starts (`FSB_CGROUP_TREE`).
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a tree of paths is always JSON")
    }

    /// What [`Tree::to_json`] wrote.
    pub fn from_json(text: &str) -> io::Result<Self> {
        serde_json::from_str(text).map_err(io::Error::other)
    }
}

/// Names of the directories in `parents`.
fn names(parents: impl Iterator<Item = PathBuf>) -> Vec<String> {
    let mut names = Vec::new();
    for parent in parents {
        for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
    }
    names.sort();
    names.dedup();
    names
}

/// Opens the file of each directory through which a single-threaded process joins it. A process that writes "0" moves
/// itself; the permission checked is that of the opener (kernel commit 1756d7994ad8).
///
/// On v1 that file is `tasks`: a thread that moves itself there needs no lock against forks, where `cgroup.procs` takes
/// `cgroup_threadgroup_rwsem` for writing and so waits for an RCU grace period, 5–30 ms on a busy machine (kernel commit
/// 9a3284fad42f).
pub fn procs(dirs: &[PathBuf]) -> io::Result<Vec<OwnedFd>> {
    dirs.iter()
        .map(|dir| {
            let path = dir.join(if is_v2(dir) { "cgroup.procs" } else { "tasks" });
            let file = std::fs::OpenOptions::new().write(true).open(&path).map_err(|error| named(&path, error))?;
            Ok(file.into())
        })
        .collect()
}

/// Writes the limits that differ from `present` (all of them if `None`).
pub fn set_limits(dirs: &[PathBuf], limits: &Limits, present: Option<&Limits>) -> io::Result<()> {
    let changed = |field: fn(&Limits) -> u64| present.is_none_or(|p| field(p) != field(limits));
    for dir in dirs {
        let v2 = is_v2(dir);
        let is = |controller: &str| v2 || in_controller(dir, controller);
        if is("memory") && changed(|l| l.memory_bytes) {
            let bytes = limits.memory_bytes.to_string();
            if v2 {
                put(&dir.join("memory.max"), &bytes)?;
            } else {
                let raised = present.is_some_and(|present| present.memory_bytes < limits.memory_bytes);
                limit_memory_v1(dir, &bytes, raised)?;
            }
        }
        if is("pids") && changed(|l| l.pids) {
            put(&dir.join("pids.max"), &limits.pids.to_string())?;
        }
        if is("cpu") && changed(|l| l.cpu_millis.unwrap_or(0)) {
            let quota = limits.cpu_millis.map(|millis| millis.saturating_mul(PERIOD_US / 1000).max(1000));
            if v2 {
                let quota = quota.map_or("max".to_owned(), |q| q.to_string());
                put(&dir.join("cpu.max"), &format!("{quota} {PERIOD_US}"))?;
            } else {
                put(&dir.join("cpu.cfs_quota_us"), &quota.map_or("-1".to_owned(), |q| q.to_string()))?;
            }
        }
    }
    Ok(())
}

/// Limits memory, and memory with swap to the same. The kernel refuses a moment in which the second is the lesser.
fn limit_memory_v1(dir: &Path, bytes: &str, raised: bool) -> io::Result<()> {
    let memory = || put(&dir.join("memory.limit_in_bytes"), bytes);
    let with_swap = || match put(&dir.join("memory.memsw.limit_in_bytes"), bytes) {
        // The kernel does not count swap (swapaccount=0 before 6.1).
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    };
    if raised { with_swap().and_then(|()| memory()) } else { memory().and_then(|()| with_swap()) }
}

/// How many processes of this cgroup the OOM killer has killed. Read it before the directories go.
pub fn oom_kills(dirs: &[PathBuf]) -> u64 {
    dirs.iter()
        .filter_map(|dir| {
            let file = if is_v2(dir) { "memory.events" } else { "memory.oom_control" };
            let text = std::fs::read_to_string(dir.join(file)).ok()?;
            text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok())
        })
        .sum()
}

/// Process ids in a sandbox's cgroup.
pub fn processes(dirs: &[PathBuf]) -> Vec<i32> {
    let text = dirs.first().and_then(|dir| std::fs::read_to_string(dir.join("cgroup.procs")).ok()).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Removes directories. A cgroup stays busy for some milliseconds after its last process was killed: this retries
/// until `patience` is over. Directories that are gone are fine; the first other error is returned, after all of
/// them were tried.
pub fn remove(dirs: &[PathBuf], patience: Duration) -> io::Result<()> {
    let end = Instant::now() + patience;
    let mut result = Ok(());
    for dir in dirs {
        loop {
            match std::fs::remove_dir(dir) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => {
                    result = result.and(Err(named(dir, error)));
                    break;
                }
            }
        }
    }
    result
}

fn is_v2(dir: &Path) -> bool {
    // v1 directories lie below a mount named after their controllers.
    !OWN.iter().any(|controller| in_controller(dir, controller))
}

/// Whether a v1 directory belongs to `controller`: the name of its mount point, which cgroups(7) fixes by convention
/// (`/sys/fs/cgroup/cpu,cpuacct`), holds it.
fn in_controller(dir: &Path, controller: &str) -> bool {
    let mut parts = dir.iter().filter_map(|part| part.to_str());
    parts.find(|part| *part == "cgroup").is_some()
        && parts.next().is_some_and(|mount| mount.split(',').any(|name| name == controller))
}

fn inside(point: &Path, root: &str, path: &str) -> PathBuf {
    let path = path.strip_prefix(root.trim_end_matches('/')).unwrap_or("");
    let path = path.trim_matches('/');
    if path.is_empty() { point.to_owned() } else { point.join(path) }
}

fn create_dir(dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir).map_err(|error| named(dir, error))
}

fn read(path: &Path) -> io::Result<String> {
    std::fs::read_to_string(path).map_err(|error| named(path, error))
}

/// Processes and threads that all sandboxes of an agent may have: an eighth of what the machine has is left to everybody
/// else, the daemons among them. Since Linux 6.14 `pid_max` is a pid namespace's own: within one, `threads-max` decides.
fn all_pids() -> io::Result<u64> {
    let of =
        |file: &str| read(&Path::new("/proc/sys/kernel").join(file))?.trim().parse::<u64>().map_err(io::Error::other);
    let machine = of("pid_max")?.min(of("threads-max")?);
    Ok(machine / 8 * 7)
}

fn put(path: &Path, text: &str) -> io::Result<()> {
    let write = || std::fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes());
    write().map_err(|error| io::Error::new(error.kind(), format!("write {text:?} to {}: {error}", path.display())))
}

fn named(path: &Path, error: io::Error) -> io::Error {
    if error.raw_os_error() == Some(libc::EBUSY) {
        return error;
    }
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
21 20 0:20 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
22 20 0:21 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
23 20 0:22 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
24 20 0:23 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
25 20 0:24 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices
26 20 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
    const STANDING: &str = "9:memory:/pod/x\n8:cpu,cpuacct:/\n7:pids:/p\n6:freezer:/\n5:devices:/d\n0::/";

    #[test]
    fn a_hybrid_host_is_found_controller_by_controller() {
        let tree = Tree::parse(HYBRID, STANDING, "fsb/a").unwrap();
        assert_eq!(tree.version(), Version::V1);
        assert_eq!(tree.dir("memory").unwrap(), Path::new("/sys/fs/cgroup/memory/pod/x/fsb/a"));
        assert_eq!(tree.dir("cpu").unwrap(), Path::new("/sys/fs/cgroup/cpu,cpuacct/fsb/a"));
        assert_eq!(tree.sandbox("i").len(), 3);
        assert!(tree.polices_devices());
        assert!(in_controller(&tree.sandbox("i")[0], "cpu"));
        assert_eq!(Tree::from_json(&tree.to_json()).unwrap(), tree);
    }

    #[test]
    fn a_pure_v2_host_has_one_directory() {
        let info = "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        let tree = Tree::parse(info, "0::/kubepods/pod1", "").unwrap();
        assert_eq!(tree.version(), Version::V2);
        assert_eq!(tree.sandbox("i"), [PathBuf::from("/sys/fs/cgroup/kubepods/pod1/sandboxes/i")]);
        let tree = Tree::parse(info, "0::/user.slice/x", "fast-sandbox/agent-1").unwrap();
        assert_eq!(tree.dir("memory").unwrap(), Path::new("/sys/fs/cgroup/fast-sandbox/agent-1"));
    }

    #[test]
    fn a_mount_of_a_part_of_the_hierarchy_is_understood() {
        let info = "30 20 0:26 /kubepods/pod1 /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        let tree = Tree::parse(info, "0::/kubepods/pod1/c", "").unwrap();
        assert_eq!(tree.dir("").unwrap(), Path::new("/sys/fs/cgroup/c"));
    }

    #[test]
    fn swap_is_no_way_around_a_limit_of_v1_that_is_made_raised_or_lowered() {
        let hierarchy = Path::new("/sys/fs/cgroup/memory");
        if !hierarchy.join("memory.memsw.limit_in_bytes").exists() {
            // Without v1, or without swap being counted there.
            return;
        }
        let dir = hierarchy.join(format!("fsb-test-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let limits = |mib: u64| Limits { memory_bytes: mib << 20, ..Limits::NONE };
        let mut present = Limits::NONE;
        let tried = [64, 128, 32].map(|mib| {
            let set = set_limits(std::slice::from_ref(&dir), &limits(mib), Some(&present));
            present = limits(mib);
            let of = |file: &str| read(&dir.join(file)).unwrap().trim().parse::<u64>().unwrap() >> 20;
            (set.map_err(|error| error.to_string()), of("memory.limit_in_bytes"), of("memory.memsw.limit_in_bytes"))
        });
        std::fs::remove_dir(&dir).unwrap();
        assert_eq!(tried, [(Ok(()), 64, 64), (Ok(()), 128, 128), (Ok(()), 32, 32)]);
    }

    #[test]
    fn v2_limits_and_counters_are_written_and_read_in_a_fake_tree() {
        let fake = tempfile::tempdir().unwrap();
        let base = fake.path().join("agent");
        for dir in [fake.path().to_path_buf(), base.clone(), base.join("daemons"), base.join("sandboxes")] {
            std::fs::create_dir_all(&dir).unwrap();
            for file in ["cgroup.procs", "cgroup.subtree_control", "memory.oom.group", "memory.swap.max"] {
                std::fs::write(dir.join(file), "").unwrap();
            }
        }
        for dir in [fake.path(), &base] {
            std::fs::write(dir.join("cgroup.controllers"), "memory cpu pids").unwrap();
        }
        std::fs::write(base.join("sandboxes/pids.max"), "max").unwrap();
        let tree = Tree { version: Version::V2, dirs: BTreeMap::from([(String::new(), base.clone())]), devices: None };
        tree.prepare().unwrap();
        assert_eq!(read(&base.join("sandboxes/pids.max")).unwrap(), all_pids().unwrap().to_string());
        assert_eq!(read(&base.join("daemons/cgroup.procs")).unwrap(), "0");
        assert!(read(&base.join("cgroup.subtree_control")).unwrap().starts_with('+'));
        assert!(read(&base.join("sandboxes/cgroup.subtree_control")).unwrap().starts_with('+'));
        assert_eq!(read(&base.join("memory.oom.group")).unwrap(), "0");
        assert_eq!(read(&base.join("sandboxes/memory.swap.max")).unwrap(), "0");
        let dirs = tree.create("i").unwrap();
        for file in ["memory.max", "cpu.max", "pids.max"] {
            std::fs::write(dirs[0].join(file), "").unwrap();
        }
        let limits = Limits { memory_bytes: 1 << 20, pids: 7, cpu_millis: Some(500) };
        set_limits(&dirs, &limits, None).unwrap();
        assert_eq!(read(&dirs[0].join("memory.max")).unwrap(), "1048576");
        assert_eq!(read(&dirs[0].join("pids.max")).unwrap(), "7");
        assert_eq!(read(&dirs[0].join("cpu.max")).unwrap(), "50000 100000");
        std::fs::write(dirs[0].join("memory.events"), "low 0\noom 3\noom_kill 2\n").unwrap();
        assert_eq!(oom_kills(&dirs), 2);
        assert_eq!(tree.list(), ["i"]);
    }
}
