//! Removes what carries a run's name: cgroups with whatever still runs in them, and mounts.

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a killed process may keep its cgroup busy.
const PATIENCE: Duration = Duration::from_secs(5);

/// Kills and removes every cgroup called `name` with all that is below it, and unmounts everything below `dir`.
/// Returns what could not be removed, in words.
pub fn sweep(name: &str, dir: &Path) -> Vec<String> {
    let mut left = Vec::new();
    let mut own = Vec::new();
    find(Path::new("/sys/fs/cgroup"), name, 6, &mut own);
    for cgroup in &own {
        // On v2 the bench itself may stand in it.
        if let Some(parent) = cgroup.parent() {
            step_out(cgroup, parent);
        }
        let end = Instant::now() + PATIENCE;
        while let Err(error) = remove(cgroup) {
            if Instant::now() > end {
                left.push(format!("cgroup {} stays: {error}", cgroup.display()));
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    for point in mounts(&std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default(), dir) {
        if let Err(error) = umount2(&point, MntFlags::MNT_DETACH) {
            left.push(format!("mount {} stays: {error}", point.display()));
        }
    }
    left
}

fn find(dir: &Path, name: &str, depth: usize, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name() == name {
            found.push(entry.path());
        } else if depth > 0 {
            find(&entry.path(), name, depth - 1, found);
        }
    }
}

fn step_out(cgroup: &Path, parent: &Path) {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let inside = |line: &str| line.rsplit(':').next().is_some_and(|path| path.len() > 1 && stands_in(path, cgroup));
    if own.lines().any(inside) {
        let _ = std::fs::write(parent.join("cgroup.procs"), "0");
    }
}

/// Whether a path of /proc/self/cgroup lies in the directory `cgroup`, whatever the mount point.
fn stands_in(path: &str, cgroup: &Path) -> bool {
    Path::new(path)
        .ancestors()
        .any(|dir| dir.as_os_str().len() > 1 && cgroup.ends_with(dir.strip_prefix("/").unwrap_or(dir)))
}

/// Children first; kills what stands in them.
fn remove(cgroup: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(cgroup)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path())?;
        }
    }
    for pid in std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default().lines() {
        if let Some(pid) = pid.parse().ok().filter(|&pid| pid != std::process::id() as i32 && pid > 0) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    std::fs::remove_dir(cgroup)
}

/// Mount points below `dir`, the innermost first.
fn mounts(mountinfo: &str, dir: &Path) -> Vec<PathBuf> {
    let mut points: Vec<PathBuf> = mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|point| point.starts_with(dir))
        .collect();
    points.reverse();
    points
}

/// Held by tests that start processes: a sweep must not meet those of another test, and a program cannot be executed
/// while another thread's child still holds it open for writing.
#[cfg(test)]
pub(crate) fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_below_the_directory_are_found_innermost_first() {
        let text = "1 0 8:1 / / rw - ext4 a rw\n2 1 8:1 / /tmp/x rw - tmpfs a rw\n3 2 8:1 / /tmp/x/y rw - proc a rw\n\
                    4 1 8:1 / /tmp/xy rw - tmpfs a rw";
        assert_eq!(mounts(text, Path::new("/tmp/x")), [PathBuf::from("/tmp/x/y"), PathBuf::from("/tmp/x")]);
    }

    #[test]
    fn a_cgroup_goes_with_the_process_in_it() {
        let _alone = alone();
        let name = format!("fsb-bench-sweep-{}", std::process::id());
        let tree = fsb_host::cgroup::Tree::discover(&name).unwrap();
        let dirs: Vec<PathBuf> = tree.dirs().map(|(_, dir)| dir.join("a")).collect();
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        for dir in &dirs {
            std::fs::create_dir_all(dir).unwrap();
            std::fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        // The zombie is reaped here, as the bench does with its children; a cgroup holds no zombies.
        let waiting = std::thread::spawn(move || child.wait().unwrap());
        assert_eq!(sweep(&name, Path::new("/nowhere")), Vec::<String>::new());
        assert!(!waiting.join().unwrap().success());
        assert!(dirs.iter().all(|dir| !dir.exists()));
    }
}
