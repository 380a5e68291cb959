//! Where a node's cgroups lie.
//!
//! On v1 and hybrid machines they lie below the cgroups that it is started from. On v2 a cgroup with processes cannot give
//! controllers to its children (cgroups(7), "no internal processes"), and most cgroups are somebody else's:
//!
//! | started | lies |
//! |---|---|
//! | in a login session, in no unit | at the root of the hierarchy: it survives the logout |
//! | in a unit that systemd delegates | inside the unit, whose processes go into its leaf `init` |
//! | in a unit that it does not | nowhere: systemd would move and remove what is ours |
//! | in a cgroup namespace, so in a container | at its root, whose processes go into its leaf `init` |
//!
//! Sources: systemd's CGROUP_DELEGATION.md (the extended attributes `trusted.delegate` and `user.delegate`);
//! cgroup-v2.rst of the kernel (the root of the hierarchy alone has no `cgroup.type`).

use super::cgroups;
use crate::error::{Context, Failure, Result};
use fsb_host::openat::xattr;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Path, PathBuf};

/// What holds the processes of a cgroup that has children with controllers.
const LEAF: &str = "init";
/// Looks at a cgroup until it holds no process: those that are moved may start others meanwhile.
const MAX_LOOKS: usize = 100;

/// The parent of a node's cgroups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Place {
    /// The cgroups that it is started from, on v1 and hybrid machines.
    Own,
    /// The root of the hierarchy of v2, which may hold processes.
    Root(PathBuf),
    /// A cgroup of v2 that is ours to divide.
    Inside(PathBuf),
}

impl Place {
    /// Where a node lies that this process starts.
    ///
    /// # Errors
    /// There is no such place. With what to do.
    pub(crate) fn find() -> Result<Self> {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let [cgroup, mountinfo] = ["/proc/self/cgroup", "/proc/self/mountinfo"].map(read);
        // Other machines have a line for each hierarchy of v1.
        let is_v2 = cgroup.lines().count() == 1 && cgroup.starts_with("0::");
        let (Some(point), true) = (cgroups::mount_point_of_v2(&mountinfo), is_v2) else { return Ok(Self::Own) };
        let own = cgroups::own().pop().unwrap_or_else(|| point.clone());
        let place = decide(&point, &own, is_delegated, |dir| !dir.join("cgroup.type").exists())?;
        match &place {
            Self::Inside(dir) if processes(dir).contains(&0) => {
                Err(unmovable(dir, 0, "it is of another pid namespace"))
            }
            _ => Ok(place),
        }
    }

    /// The directories below which the node's cgroups are, one for each hierarchy.
    pub(crate) fn directories(&self) -> Vec<PathBuf> {
        match self {
            Self::Own => cgroups::own(),
            Self::Root(dir) | Self::Inside(dir) => vec![dir.clone()],
        }
    }

    /// `cgroup`, a name below this place, as a keeper counts it: on v2 from the root of what is mounted.
    pub(crate) fn below(&self, cgroup: &str) -> PathBuf {
        match self {
            Self::Inside(dir) => {
                let point =
                    cgroups::mount_point_of_v2(&std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default());
                let inside = point.and_then(|point| Some(dir.strip_prefix(point).ok()?.join(cgroup)));
                inside.unwrap_or_else(|| cgroup.into())
            }
            Self::Own | Self::Root(_) => cgroup.into(),
        }
    }

    /// The file with the controllers that this place gives to its children.
    pub(crate) fn controllers(&self) -> Option<PathBuf> {
        match self {
            Self::Own => None,
            Self::Root(dir) | Self::Inside(dir) => Some(dir.join("cgroup.subtree_control")),
        }
    }

    /// Moves this process where it belongs, and all others out of a cgroup that is to have children with controllers.
    ///
    /// # Errors
    /// Names a process that cannot be moved.
    pub(crate) fn settle(&self) -> Result<()> {
        match self {
            Self::Own => Ok(()),
            Self::Root(dir) => stand(dir, "0").context(|| format!("cannot go to {}", dir.display())),
            Self::Inside(dir) => {
                let leaf = dir.join(LEAF);
                cgroups::make(&leaf)?;
                stand(&leaf, "0").context(|| format!("cannot go to {}", leaf.display()))?;
                move_all(dir, &leaf)
            }
        }
    }

    /// Undoes [`settle`](Self::settle), as far as the place is nobody's any more: as long as it gives controllers to
    /// children the kernel takes no process there.
    pub(crate) fn leave(&self) {
        if let Self::Inside(dir) = self {
            let leaf = dir.join(LEAF);
            if move_all(&leaf, dir).is_ok() {
                let _ = std::fs::remove_dir(leaf);
            }
        }
    }
}

/// `point` is where the hierarchy is mounted, `own` the cgroup of this process below it.
fn decide(
    point: &Path,
    own: &Path,
    is_delegated: impl Fn(&Path) -> bool,
    is_root: impl Fn(&Path) -> bool,
) -> Result<Place> {
    let above = || own.ancestors().take_while(|dir| dir.starts_with(point));
    // Whoever enters a container of which systemd is the first process stands in its `init.scope`.
    let is_unit = |dir: &&Path| {
        let suffix = dir.extension().and_then(|suffix| suffix.to_str());
        matches!(suffix, Some("service" | "scope")) && dir.file_name().is_some_and(|name| name != "init.scope")
    };
    let is_session = own.strip_prefix(point).is_ok_and(|own| own.starts_with("user.slice"));
    let unit = above().filter(|dir| *dir != point).find(is_unit).filter(|_| !is_session);
    let delegated = above().find(|dir| is_delegated(dir)).filter(|_| !is_session);
    match (unit, delegated) {
        (Some(unit), Some(dir)) if dir.starts_with(unit) => Ok(Place::Inside(dir.to_owned())),
        (Some(unit), _) => {
            let name = unit.file_name().unwrap_or_default().to_string_lossy();
            let what = format!("this is the unit {name}, in which systemd allows no cgroups of others");
            Err(Failure::new(what)
                .hint(format!("Delegate=yes for {name} (systemd-run -p Delegate=yes), or a login session")))
        }
        (None, Some(dir)) => Ok(Place::Inside(dir.to_owned())),
        (None, None) if is_root(point) => Ok(Place::Root(point.to_owned())),
        (None, None) => Ok(Place::Inside(point.to_owned())),
    }
}

fn is_delegated(dir: &Path) -> bool {
    let says = |name| File::open(dir).is_ok_and(|dir| matches!(xattr(&dir, name), Ok(Some(value)) if value == b"1"));
    says(c"trusted.delegate") || says(c"user.delegate")
}

fn move_all(from: &Path, to: &Path) -> Result<()> {
    for _ in 0..MAX_LOOKS {
        let pids = processes(from);
        if pids.is_empty() {
            return Ok(());
        }
        for pid in pids {
            match stand(to, &pid.to_string()) {
                // It has ended.
                Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => {}
                Err(error) => return Err(unmovable(from, pid, &error.to_string())),
                Ok(()) => {}
            }
        }
    }
    Err(Failure::new(format!("there are always new processes in {}", from.display())))
}

fn stand(dir: &Path, pid: &str) -> std::io::Result<()> {
    std::fs::write(dir.join("cgroup.procs"), pid)
}

fn unmovable(from: &Path, pid: i32, why: &str) -> Failure {
    let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let command = if command.is_empty() { "a process that is not seen here" } else { command.trim() };
    Failure::new(format!("process {pid} ({command}) cannot be moved out of {}: {why}", from.display()))
        .hint("end it, or start the node in a cgroup of its own")
}

/// 0 is a process of a pid namespace that we do not see.
fn processes(dir: &Path) -> Vec<i32> {
    let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where a node lies that is started in `own`, with these cgroups delegated.
    fn place(own: &str, delegated: &[&str], is_root: bool) -> Result<Place> {
        let at = |path: &str| Path::new("/c").join(path);
        let is_delegated = |dir: &Path| delegated.iter().any(|path| at(path) == dir);
        decide(Path::new("/c"), &at(own), is_delegated, |_| is_root)
    }

    fn inside(path: &str) -> Place {
        Place::Inside(Path::new("/c").join(path))
    }

    #[test]
    fn a_node_lies_at_the_root_or_in_a_unit_that_is_delegated() {
        let root = Place::Root("/c".into());
        for session in ["", "user.slice/user-0.slice/session-3.scope", "by-hand", "init.scope"] {
            assert_eq!(place(session, &[], true).unwrap(), root, "{session}");
        }
        let desktop = "user.slice/user-1000.slice/user@1000.service/app.slice/terminal.scope";
        let manager = "user.slice/user-1000.slice/user@1000.service";
        assert_eq!(place(desktop, &[manager], true).unwrap(), root, "a terminal of a desktop is a login session");
        let unit = "system.slice/node.service";
        assert_eq!(place(unit, &[unit], true).unwrap(), inside(unit));
        assert_eq!(place("system.slice/node.service/control", &[unit], true).unwrap(), inside(unit));
        for (unit, delegated) in [(unit, vec![]), ("system.slice/run-1.scope", vec!["system.slice"])] {
            let refused = place(unit, &delegated, true).unwrap_err();
            assert!(refused.hint.unwrap().starts_with("Delegate=yes"), "{unit}");
        }
    }

    #[test]
    fn in_a_cgroup_namespace_it_lies_at_the_root_of_that() {
        assert_eq!(place("", &[], false).unwrap(), inside(""));
        assert_eq!(place("init.scope", &[""], false).unwrap(), inside(""));
        assert_eq!(
            place("system.slice/a.service", &["system.slice/a.service", ""], false).unwrap(),
            inside("system.slice/a.service")
        );
        assert!(place("system.slice/a.service", &[""], false).is_err(), "a unit of the container's own systemd");
    }
}
