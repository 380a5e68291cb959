//! The cgroups of a node, on every hierarchy that this machine has.

use crate::error::{Context, Failure, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A cgroup whose last process was just killed is busy for more than 5 ms.
const PATIENCE: Duration = Duration::from_secs(10);

/// Directories of this process's own cgroup, one per mounted hierarchy.
pub(crate) fn own() -> Vec<PathBuf> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    directories(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"))
}

/// The cgroup of `cgroup` (proc_pid_cgroup(5)) on each hierarchy of `mountinfo`.
fn directories(cgroup: &str, mountinfo: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for mount in mountinfo.lines() {
        let Some((before, after)) = mount.split_once(" - ") else { continue };
        let (before, after): (Vec<&str>, Vec<&str>) = (before.split(' ').collect(), after.split(' ').collect());
        let (Some(root), Some(point), Some(kind)) = (before.get(3), before.get(4), after.first()) else { continue };
        let options: Vec<&str> = after.get(2).map(|options| options.split(',').collect()).unwrap_or_default();
        let own = cgroup.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let matches = match *kind {
                "cgroup2" => controllers.is_empty(),
                "cgroup" => !controllers.is_empty() && controllers.split(',').all(|name| options.contains(&name)),
                _ => false,
            };
            matches.then_some(path)
        });
        let Some(own) = own else { continue };
        // What is mounted may be a part of the hierarchy; our path counts from the whole.
        let below = if *root == "/" { Some(own) } else { own.strip_prefix(root) };
        let Some(below) = below else { continue };
        let path = Path::new(point).join(below.trim_start_matches('/'));
        if !found.contains(&path) {
            found.push(path);
        }
    }
    found
}

/// Where cgroup v2 is mounted, the topmost mount if there are several.
pub(crate) fn mount_point_of_v2(mountinfo: &str) -> Option<PathBuf> {
    let mounts = mountinfo.lines().filter_map(|line| line.split_once(" - "));
    let mut v2 = mounts.filter(|(_, after)| after.starts_with("cgroup2 "));
    v2.next_back()?.0.split(' ').nth(4).map(PathBuf::from)
}

/// Makes a cgroup, unless it is there.
pub(crate) fn make(dir: &Path) -> Result<()> {
    match std::fs::create_dir(dir) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(error).context(|| format!("cannot make the cgroup {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Ends every process in `name` below each of `parents` and removes it with all that is in it.
pub(crate) fn remove(parents: &[PathBuf], name: &str) -> Result<()> {
    let mut tops: Vec<PathBuf> = parents.iter().map(|parent| parent.join(name)).collect();
    let until = Instant::now() + PATIENCE;
    loop {
        tops.retain(|top| top.exists());
        let mut why = None;
        for top in &tops {
            why = end(top).err().map(|error| (top.clone(), error)).or(why);
        }
        match why {
            None => return Ok(()),
            Some((path, error)) if Instant::now() > until => {
                return Err(Failure::new(format!("cannot remove the cgroup {}: {error}", path.display())));
            }
            Some(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// One try: the innermost first.
fn end(directory: &Path) -> std::io::Result<()> {
    let children = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let _ = write_if_there(&directory.join("cgroup.kill"), "1");
    for pid in std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default().lines() {
        // 0 is a process of a pid namespace that we do not see; and never our own group.
        if let Some(pid) = pid.parse::<i32>().ok().filter(|pid| *pid > 1) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    let mut failed = None;
    for child in children.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        failed = end(&child.path()).err().or(failed);
    }
    match std::fs::remove_dir(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed.unwrap_or(error)),
        _ => Ok(()),
    }
}

fn write_if_there(path: &Path, text: &str) -> std::io::Result<()> {
    if path.exists() { std::fs::write(path, text) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hierarchy_of_a_hybrid_host_is_found() {
        let cgroup = "5:name=systemd:/a\n4:memory:/m/x\n2:cpu,cpuacct:/\n0::/u\n";
        let mounts = "1 2 0:1 / /cg/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                      1 2 0:2 / /cg/memory rw shared:9 - cgroup cgroup rw,memory\n\
                      1 2 0:3 / /cg/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
                      1 2 0:4 / /cg/unified rw - cgroup2 cgroup2 rw\n\
                      1 2 0:5 / /proc rw - proc proc rw\n";
        let expected = ["/cg/cpu/", "/cg/memory/m/x", "/cg/systemd/a", "/cg/unified/u"].map(PathBuf::from);
        assert_eq!(directories(cgroup, mounts), expected);
    }

    #[test]
    fn a_part_of_the_hierarchy_is_counted_from_its_own_root() {
        let mounts = "1 2 0:4 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
        assert_eq!(directories("0::/docker/x/y\n", mounts), [PathBuf::from("/sys/fs/cgroup/y")]);
        assert!(directories("0::/elsewhere\n", mounts).is_empty());
    }
}
