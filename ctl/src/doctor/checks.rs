//! The checks. What a file says is judged by a pure function; the rest is tried.

use super::Finding;
use crate::local::dirs::Dirs;
use crate::local::place::Place;
use crate::local::{self, program};
use fsb_proto::fastpath::AgentSummary;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::statvfs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

/// openat2, pidfd_open, clone3, fsopen, close_range and overlayfs' `volatile` (5.10).
const OLDEST_KERNEL: (u32, u32) = (5, 10);
const DESCRIPTORS: u64 = 1 << 16;
const DISK_BYTES: u64 = 1 << 30;

/// Looks at everything.
pub(crate) fn all(dirs: &Dirs) -> Vec<Finding> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let mut findings = vec![root(), kernel(&read("/proc/sys/kernel/osrelease"))];
    findings.push(filesystem(&read("/proc/filesystems")));
    findings.push(seccomp(&read("/proc/sys/kernel/seccomp/actions_avail")));
    findings.push(io_uring(&read("/proc/sys/kernel/io_uring_disabled")));
    findings.push(cgroups(
        &read("/proc/cgroups"),
        &read("/proc/self/mountinfo"),
        &read("/sys/fs/cgroup/cgroup.controllers"),
    ));
    findings.push(place(dirs));
    findings.extend(programs_found());
    findings.push(firewall(&program::run("nft", ["list", "chains"]).unwrap_or_default()));
    findings.push(namespaces());
    findings.push(oom_scores(&read("/proc/self/status")));
    findings.push(overlay(&dirs.state));
    findings.push(disk(&dirs.state));
    findings.push(descriptors());
    findings.push(ports(dirs));
    findings.extend(node_programs());
    findings
}

fn root() -> Finding {
    if nix::unistd::geteuid().is_root() {
        Finding::ok("root", "yes")
    } else {
        Finding::missing("root", "no", "run fsb-ctl with sudo")
    }
}

fn kernel(release: &str) -> Finding {
    let release = release.trim();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|word| word.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= OLDEST_KERNEL {
        Finding::ok("kernel", format!("{release}: pidfd, clone3, openat2, fsopen"))
    } else {
        let (major, minor) = OLDEST_KERNEL;
        Finding::missing(
            "kernel",
            release,
            format!("boot Linux {major}.{minor} or newer: openat2, fsopen, clone3 and pidfd are needed"),
        )
    }
}

fn filesystem(filesystems: &str) -> Finding {
    if filesystems.lines().any(|line| line.split_whitespace().next_back() == Some("overlay")) {
        Finding::ok("overlayfs", "in the kernel")
    } else {
        // It may be a module that nobody has needed yet; the mount below decides.
        Finding::warning("overlayfs", "not loaded", "modprobe overlay")
    }
}

fn seccomp(actions: &str) -> Finding {
    if actions.split_whitespace().any(|action| action == "errno") {
        Finding::ok("seccomp", "filters")
    } else {
        Finding::missing("seccomp", "no filters", "boot a kernel with CONFIG_SECCOMP_FILTER")
    }
}

/// 0 = everybody may, 1 = only a group and CAP_SYS_ADMIN, 2 = nobody (sysctl kernel.io_uring_disabled).
fn io_uring(disabled: &str) -> Finding {
    match disabled.trim() {
        "2" => Finding::warning(
            "io_uring",
            "forbidden",
            "logs are drained with epoll instead; sysctl -w kernel.io_uring_disabled=0 allows it",
        ),
        _ => Finding::ok("io_uring", "allowed"),
    }
}

const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// `proc` is /proc/cgroups, `v2` is cgroup.controllers at the root of a machine that has only v2.
fn cgroups(proc: &str, mountinfo: &str, v2: &str) -> Finding {
    let mounts: Vec<&str> =
        mountinfo.lines().filter_map(|line| line.split_once(" - ").map(|(_, after)| after)).collect();
    let v1: Vec<&str> = mounts.iter().filter(|mount| mount.starts_with("cgroup ")).copied().collect();
    let has_v2 = mounts.iter().any(|mount| mount.starts_with("cgroup2 "));
    let kind = match (v1.is_empty(), has_v2) {
        (false, true) => "hybrid",
        (false, false) => "v1",
        (true, true) => "v2",
        (true, false) => {
            return Finding::missing("cgroups", "nothing is mounted", "mount -t cgroup2 none /sys/fs/cgroup");
        }
    };
    if let Some(point) = read_only_cgroups(mountinfo) {
        return Finding::missing(
            "cgroups",
            format!("{kind}: {point} is mounted read-only"),
            "of a unit: ProtectControlGroups=no; of a container: start it with --privileged",
        );
    }
    let available = |name: &str| {
        let mounted = v1.iter().any(|mount| mount.split([' ', ',']).any(|word| word == name));
        mounted || v2.split_whitespace().any(|word| word == name)
    };
    let missing: Vec<&str> = CONTROLLERS.into_iter().filter(|name| !available(name)).collect();
    if missing.is_empty() {
        return Finding::ok("cgroups", format!("{kind}: {}", CONTROLLERS.join(", ")));
    }
    let off = |name: &&str| proc.lines().any(|line| line.starts_with(*name) && line.ends_with("\t0"));
    let fix = match missing.iter().find(|name| off(name)) {
        Some(name) => format!("boot with cgroup_enable={name}"),
        None => "mount these controllers, or boot a kernel that has them".into(),
    };
    Finding::missing("cgroups", format!("{kind}, without {}", missing.join(", ")), fix)
}

/// Where a hierarchy is mounted that nothing can be made in.
fn read_only_cgroups(mountinfo: &str) -> Option<&str> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let before: Vec<&str> = before.split(' ').collect();
        let is_cgroup = after.starts_with("cgroup ") || after.starts_with("cgroup2 ");
        let is_read_only = |options: &str| options.split(',').any(|option| option == "ro");
        let read_only = is_read_only(before.get(5)?) || is_read_only(after.split(' ').nth(2)?);
        (is_cgroup && read_only).then(|| before[4])
    })
}

/// Where the node's cgroups would lie.
fn place(dirs: &Dirs) -> Finding {
    if local::lives(dirs) {
        return Finding::ok("place", "that of the local node, which is up");
    }
    match Place::find() {
        Ok(Place::Own) => Finding::ok("place", "below the cgroups that it is started from"),
        Ok(Place::Root(_)) => Finding::ok("place", "at the root of cgroup v2"),
        Ok(Place::Inside(dir)) => Finding::ok("place", format!("inside {}", dir.display())),
        Err(failure) => Finding::missing("place", failure.what, failure.hint.unwrap_or_default()),
    }
}

fn programs_found() -> Vec<Finding> {
    let check = |check: &'static str, names: &[&str], package: &str| {
        let absent: Vec<&str> = names.iter().copied().filter(|name| program::on_path(name).is_none()).collect();
        match absent.is_empty() {
            true => Finding::ok(check, "installed"),
            false => Finding::missing(check, format!("no {}", absent.join(", ")), format!("apt-get install {package}")),
        }
    };
    vec![
        check("ip", &["ip"], "iproute2"),
        check("util-linux", &["unshare", "nsenter"], "util-linux"),
        check("nft", &["nft"], "nftables"),
    ]
}

/// Our own rules accept what is forwarded, but a packet has to pass everybody's.
fn firewall(chains: &str) -> Finding {
    let drops = |line: &&str| line.contains("hook forward") && line.contains("policy drop");
    if chains.lines().any(|line| drops(&line)) {
        return Finding::warning(
            "firewall",
            "another table drops what is forwarded",
            "accept 10.213.0.0/16 there (with Docker: iptables -I DOCKER-USER -j ACCEPT -s 10.213.0.0/16, and -d), \
             or start with --no-egress",
        );
    }
    Finding::ok("firewall", "nobody drops what is forwarded")
}

/// `status` is /proc/self/status. Only whoever has CAP_SYS_RESOURCE moves the least that a process may lower its
/// oom_score_adj to.
fn oom_scores(status: &str) -> Finding {
    const CAP_SYS_RESOURCE: u32 = 24;
    let effective = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    if effective.is_some_and(|bits| bits >> CAP_SYS_RESOURCE & 1 == 1) {
        return Finding::ok("out of memory", "sandboxes are killed before daemons, and cannot change that");
    }
    Finding::warning(
        "out of memory",
        "no CAP_SYS_RESOURCE: a sandbox can have itself killed as late as the daemons",
        "start the node with that capability, or leave memory for the daemons: --capacity and --memory",
    )
}

fn namespaces() -> Finding {
    let kinds = ["--fork", "--pid", "--mount", "--mount-proc", "--ipc", "--uts", "--net", "--", "true"];
    match program::run("unshare", kinds) {
        Ok(_) => Finding::ok("namespaces", "pid, mount, ipc, uts, net"),
        Err(failure) => {
            Finding::missing("namespaces", failure.what, "run as root, outside of a container that forbids namespaces")
        }
    }
}

/// Tries an overlay whose writable layer lies where the sandboxes' would.
fn overlay(state: &Path) -> Finding {
    let place = existing(state);
    let Ok(directory) = tempfile::Builder::new().prefix(".fsb-doctor-").tempdir_in(&place) else {
        return Finding::missing(
            "overlay mount",
            format!("cannot write to {}", place.display()),
            "run as root on a writable disk",
        );
    };
    let script = "cd \"$1\" && mkdir lower upper work merged && \
                  mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged && touch merged/x";
    let path = directory.path().to_string_lossy().into_owned();
    let words = ["--mount", "--propagation", "private", "--", "sh", "-c", script, "sh", path.as_str()];
    match program::run("unshare", words) {
        Ok(_) => Finding::ok("overlay mount", format!("works on {}", place.display())),
        Err(failure) => Finding::missing(
            "overlay mount",
            failure.what,
            format!("put {} on ext4, xfs or btrfs, not on an overlay; modprobe overlay", state.display()),
        ),
    }
}

fn disk(state: &Path) -> Finding {
    let place = existing(state);
    match statvfs(&place) {
        Err(error) => Finding::warning("disk", format!("{}: {error}", place.display()), "look at that directory"),
        Ok(stat) => {
            let free = stat.blocks_available() * stat.fragment_size();
            let found = format!("{} free on {}", crate::units::human_bytes(free), place.display());
            if free >= DISK_BYTES {
                Finding::ok("disk", found)
            } else {
                Finding::warning("disk", found, "make room for images and writable layers")
            }
        }
    }
}

fn descriptors() -> Finding {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if hard < DESCRIPTORS => Finding::warning(
            "descriptors",
            format!("at most {hard}"),
            format!("ulimit -Hn {DESCRIPTORS}: a sandbox costs its keeper some"),
        ),
        Ok((_, hard)) => Finding::ok("descriptors", format!("at most {hard}")),
        Err(error) => Finding::warning("descriptors", error.to_string(), "look at ulimit -n"),
    }
}

/// The ports of the machine's own node; one with a root takes free ones.
fn ports(dirs: &Dirs) -> Finding {
    if dirs.root.is_some() || local::lives(dirs) {
        return Finding::ok(
            "ports",
            if dirs.root.is_some() { "free ones are taken" } else { "held by the local node" },
        );
    }
    let taken: Vec<String> = [9091u16, 9092]
        .into_iter()
        .filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_err())
        .map(|port| port.to_string())
        .collect();
    if taken.is_empty() {
        Finding::ok("ports", "127.0.0.1:9091 and 9092 are free")
    } else {
        let fix = "stop what listens there (ss -ltnp), or use a node with --root, which takes free ports";
        Finding::missing("ports", format!("127.0.0.1: {} in use", taken.join(", ")), fix)
    }
}

fn node_programs() -> Vec<Finding> {
    let absent: Vec<&str> = ["fsb-controller", "fsb-keeper", "fsb-agent", "fsb-spawner"]
        .into_iter()
        .filter(|name| program::ours(name).is_err())
        .collect();
    vec![if absent.is_empty() {
        Finding::ok("programs", "all beside fsb-ctl or on the PATH")
    } else {
        Finding::missing("programs", format!("no {}", absent.join(", ")), "make build puts them into target/release")
    }]
}

/// What the controller of a node that is up says of its claims.
pub(super) fn claims(unreadable: &[String]) -> Finding {
    if unreadable.is_empty() {
        return Finding::ok("claims", "all were read");
    }
    Finding::warning(
        "claims",
        format!("{} could not be read and are put aside: {}", unreadable.len(), unreadable.join(", ")),
        "their names are free: create what you need of them again, which takes it off this list",
    )
}

/// Whether every agent of the node makes new containers.
pub(super) fn room(agents: &[AgentSummary]) -> Finding {
    let without = agents.iter().filter(|agent| !agent.no_room.is_empty());
    let without: Vec<String> = without.map(|agent| format!("{}: {}", agent.name, agent.no_room)).collect();
    if without.is_empty() {
        return Finding::ok("room", "agents make new containers");
    }
    let fix = "fsb-ctl rm one of the largest writers, or free space on that disk; starts from stock go on";
    Finding::warning("room", without.join("; "), fix)
}

/// Whether moulds make the containers of every agent.
pub(super) fn moulds(without: &[(String, String)]) -> Finding {
    if without.is_empty() {
        return Finding::ok("moulds", "containers are cast");
    }
    let found: Vec<String> = without.iter().map(|(agent, why)| format!("{agent}: {why}")).collect();
    let fix = "mend what it says; until then libcontainer makes each container, and what is not in stock starts slowly";
    Finding::warning("moulds", found.join("; "), fix)
}

/// The path itself, or the nearest directory above that is there.
fn existing(path: &Path) -> PathBuf {
    path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{self, Missing, Ok, Warning};
    use super::*;

    fn verdict(finding: Finding) -> Verdict {
        assert_eq!(finding.verdict == Ok, finding.fix.is_empty(), "a finding has a fix: {finding:?}");
        finding.verdict
    }

    #[test]
    fn an_old_kernel_is_missing_something() {
        assert_eq!(verdict(kernel("6.18.44-fc\n")), Ok);
        assert_eq!(verdict(kernel("5.10.0-9")), Ok);
        assert_eq!(verdict(kernel("5.9.1")), Missing);
        assert_eq!(verdict(kernel("")), Missing);
    }

    #[test]
    fn a_forbidden_io_uring_is_only_a_warning() {
        assert_eq!(verdict(io_uring("2\n")), Warning);
        assert_eq!(verdict(io_uring("0\n")), Ok);
        assert_eq!(verdict(io_uring("")), Ok);
    }

    #[test]
    fn a_firewall_that_drops_forwarded_packets_is_a_warning() {
        let chain =
            "table ip filter {\n\tchain FORWARD {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n}";
        assert_eq!(verdict(firewall(chain)), Warning);
        assert_eq!(verdict(firewall(&chain.replace("drop", "accept"))), Ok);
    }

    #[test]
    fn claims_that_could_not_be_read_are_named() {
        assert_eq!(verdict(claims(&[])), Ok);
        let bad = claims(&["default/a".into(), "team/b".into()]);
        assert!(bad.found.contains("default/a, team/b"), "{bad:?}");
        assert_eq!(verdict(bad), Warning);
    }

    #[test]
    fn an_agent_without_room_is_named_with_its_largest_writers() {
        let agent = |name: &str, no_room: &str| AgentSummary {
            name: name.into(),
            no_room: no_room.into(),
            ..Default::default()
        };
        assert_eq!(verdict(room(&[agent("a", "")])), Ok);
        let bad = room(&[agent("a", ""), agent("b", "the disk is full; the largest writers here: default/writer")]);
        assert!(bad.found.starts_with("b: ") && bad.found.contains("default/writer"), "{bad:?}");
        assert_eq!(verdict(bad), Warning);
    }

    #[test]
    fn agents_without_moulds_are_named_with_the_reason() {
        assert_eq!(verdict(moulds(&[])), Ok);
        let bad = moulds(&[("a".into(), "too many processes".into())]);
        assert!(bad.found.contains("a: too many processes"), "{bad:?}");
        assert_eq!(verdict(bad), Warning);
    }

    #[test]
    fn a_node_that_cannot_keep_oom_scores_up_is_told_so() {
        assert_eq!(verdict(oom_scores("CapEff:\t000001ffffffffff\n")), Ok);
        assert_eq!(verdict(oom_scores("CapInh:\t0000000001000000\nCapEff:\t000001fffeffffff\n")), Warning);
        assert_eq!(verdict(oom_scores("")), Warning);
    }

    #[test]
    fn a_read_only_hierarchy_is_named_with_what_makes_it_so() {
        let mount =
            |options: &str| format!("1 2 0:1 / /sys/fs/cgroup {options},nosuid - cgroup2 cgroup2 rw,nsdelegate\n");
        assert_eq!(verdict(cgroups("", &mount("rw"), "memory cpu pids")), Ok);
        let bad = cgroups("", &mount("ro"), "memory cpu pids");
        assert!(bad.found.contains("/sys/fs/cgroup is mounted read-only"), "{bad:?}");
        assert!(bad.fix.contains("ProtectControlGroups=no"), "{bad:?}");
        assert_eq!(verdict(bad), Missing);
    }

    #[test]
    fn every_controller_that_limits_sandboxes_is_looked_for() {
        let v1 = "1 2 0:1 / /c rw - cgroup cgroup rw,memory\n1 2 0:1 / /c rw - cgroup cgroup rw,cpu,cpuacct\n";
        let pids = "1 2 0:1 / /c rw - cgroup cgroup rw,pids\n1 2 0:1 / /c rw - cgroup2 cgroup2 rw\n";
        assert_eq!(verdict(cgroups("", &format!("{v1}{pids}"), "")), Ok);
        assert_eq!(verdict(cgroups("", v1, "")), Missing);
        let v2 = "1 2 0:1 / /c rw - cgroup2 cgroup2 rw\n";
        assert_eq!(verdict(cgroups("", v2, "cpuset cpu io memory pids")), Ok);
        let off = cgroups("memory\t0\t1\t0\n", v2, "cpu pids");
        assert!(off.fix.contains("cgroup_enable=memory"), "{off:?}");
        assert_eq!(verdict(cgroups("", "", "")), Missing);
    }
}
