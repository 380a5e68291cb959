//! OCI runtime specs: of a container that libcontainer makes, and of a mould.

use caps::Capability;
use fsb_host::profile::{self, MOULD_CAPABILITIES, READONLY};
use fsb_host::wire::{Plugin, User};
use nix::sys::resource::{Resource, getrlimit};
use serde_json::{Value, json};
use std::path::Path;

/// What differs from one spec to the next.
pub struct Container<'a> {
    pub root: &'a Path,
    /// Relative to the agent's own cgroup.
    pub cgroup: &'a str,
    pub host: &'a str,
    pub user: &'a User,
    pub capabilities: &'a [Capability],
    pub plugins: &'a [Plugin],
}

/// The spec of a container.
pub fn container(container: &Container<'_>) -> Value {
    let User { uid, gid, groups } = container.user;
    let mut spec = base(container.root, container.cgroup, container.host);
    spec["process"]["user"] = json!({ "uid": uid, "gid": gid, "additionalGids": groups });
    spec["process"]["capabilities"] = sets(container.capabilities);
    spec["process"]["noNewPrivileges"] = true.into();
    for plugin in container.plugins {
        let mount = json!({
            "destination": plugin.target, "type": "bind", "source": plugin.source,
            "options": ["rbind", "ro", "nosuid", "nodev"],
        });
        spec["mounts"].as_array_mut().expect("an array, see base").push(mount);
    }
    spec
}

/// The spec of a mould for containers with these capabilities. It has no pid namespace: a clone with CLONE_PARENT from
/// a namespace's first process fails with EINVAL (clone(2)).
pub fn mould(root: &Path, cgroup: &str, capabilities: &[Capability]) -> Value {
    let mut spec = base(root, cgroup, "mould");
    let mut all = capabilities.to_vec();
    all.extend(MOULD_CAPABILITIES);
    all.sort_by_key(|capability| *capability as u8);
    all.dedup();
    spec["process"]["capabilities"] = sets(&all);
    let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("an array, see base");
    namespaces.retain(|namespace| namespace["type"] != "pid");
    spec
}

fn sets(capabilities: &[Capability]) -> Value {
    let names: Vec<String> = capabilities.iter().map(ToString::to_string).collect();
    // No inheritable ones: a program with file capabilities would get them back (CVE-2022-24769).
    json!({ "bounding": names, "effective": names, "permitted": names })
}

/// Open files that a program may have, soft and hard, as systemd and Docker have them, whatever the daemons raised their
/// own soft limit to. `ours` is our hard limit, which nobody raises.
fn open_files(ours: u64) -> Value {
    let hard = ours.min(524_288);
    json!({ "type": "RLIMIT_NOFILE", "soft": hard.min(1024), "hard": hard })
}

fn base(root: &Path, cgroup: &str, host: &str) -> Value {
    let (_, ours) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": source, "options": options });
    json!({
        "ociVersion": "1.0.2",
        "root": { "path": root, "readonly": false },
        "hostname": host,
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            // Never executed: the container parks in our own program.
            "args": ["fsb-park"],
            "env": [],
            "cwd": "/",
            "rlimits": [open_files(ours)],
        },
        "mounts": [
            mount("/proc", "proc", "proc", &["nosuid", "nodev", "noexec"]),
            mount("/dev", "tmpfs", "dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "cgroupsPath": cgroup,
            // No network namespace: it is the agent's, in which the spawner stands.
            "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" }],
            "resources": {},
            "maskedPaths": profile::masked(),
            "readonlyPaths": READONLY,
        },
    })
}

/// The plan of the parked program for the same container.
pub fn plan(
    mode: fsb_host::park::Mode,
    user: &User,
    capabilities: &[Capability],
    seccomp: &[u8],
) -> fsb_host::park::Plan {
    let mask = profile::mask(capabilities);
    fsb_host::park::Plan {
        mode,
        bounding: mask,
        effective: mask,
        permitted: mask,
        inheritable: 0,
        uid: user.uid,
        gid: user.gid,
        groups: user.groups.clone(),
        // Those below /sys come with the mould's /sys.
        masked: profile::masked().iter().filter(|path| path.starts_with("/proc/")).cloned().collect(),
        readonly: READONLY.map(str::to_owned).to_vec(),
        seccomp: seccomp.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_has_the_open_files_of_docker_or_fewer() {
        let of = |ours| {
            let limit = open_files(ours);
            (limit["soft"].as_u64().unwrap(), limit["hard"].as_u64().unwrap())
        };
        assert_eq!(of(u64::MAX), (1024, 524_288));
        assert_eq!(of(4096), (1024, 4096));
        assert_eq!(of(512), (512, 512));
    }
}
