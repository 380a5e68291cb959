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

/// Locked memory that a program may have, the kernel's default since 5.16, where the daemons may have more.
const LOCKED_BYTES: u64 = 8 << 20;

/// The resource limits of a program, made of our own soft and hard ones, which nobody raises.
///
/// The kernel compares what *all* processes of a user of the host hold with the limit of the process that asks for more
/// (`inc_rlimit_ucounts` in kernel/ucount.c), and root in a sandbox is root of the host. So of pending signals, which
/// POSIX timers are as well, and of bytes in message queues sandboxes leave an eighth to the host's own programs.
fn rlimits(ours: impl Fn(Resource) -> (u64, u64)) -> Value {
    let both = |kind: &str, limit: u64| json!({ "type": kind, "soft": limit, "hard": limit });
    let reserved = |resource| ours(resource).0 / 8 * 7;
    json!([
        open_files(ours(Resource::RLIMIT_NOFILE).1),
        both("RLIMIT_SIGPENDING", reserved(Resource::RLIMIT_SIGPENDING)),
        both("RLIMIT_MSGQUEUE", reserved(Resource::RLIMIT_MSGQUEUE)),
        both("RLIMIT_MEMLOCK", ours(Resource::RLIMIT_MEMLOCK).0.min(LOCKED_BYTES)),
    ])
}

/// Open files that a program may have, soft and hard, as systemd and Docker have them, whatever the daemons raised their
/// own soft limit to. `ours` is our hard limit.
fn open_files(ours: u64) -> Value {
    let hard = ours.min(524_288);
    json!({ "type": "RLIMIT_NOFILE", "soft": hard.min(1024), "hard": hard })
}

fn base(root: &Path, cgroup: &str, host: &str) -> Value {
    // It fails for no resource that the kernel has.
    let ours = |resource| getrlimit(resource).unwrap_or((1024, 1024));
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
            "rlimits": rlimits(ours),
        },
        "mounts": [
            mount("/proc", "proc", "proc", &["nosuid", "nodev", "noexec"]),
            mount("/dev", "tmpfs", "dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            // `max`: terminals are 4,096 for the whole machine (kernel.pty.max), and 3,072 for all but the host's own.
            mount("/dev/pts", "devpts", "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5", "max=256"]),
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

    #[test]
    fn of_what_a_user_of_the_host_has_once_sandboxes_leave_an_eighth_to_the_host() {
        let limits = rlimits(|_| (800, 1600));
        let of = |kind| {
            let limit = limits.as_array().unwrap().iter().find(|limit| limit["type"] == kind).unwrap();
            (limit["soft"].as_u64().unwrap(), limit["hard"].as_u64().unwrap())
        };
        assert_eq!(
            [of("RLIMIT_SIGPENDING"), of("RLIMIT_MSGQUEUE"), of("RLIMIT_MEMLOCK")],
            [(700, 700), (700, 700), (800, 800)]
        );
        let limits = rlimits(|_| (u64::MAX, u64::MAX));
        assert_eq!(limits[3]["hard"], LOCKED_BYTES, "locked memory is limited, whatever the daemons have");
    }
}
