//! What a sandbox can reach: nothing of ours, and nothing of the host.

use crate::networks::{self, Elsewhere, SERVED, machine};
use crate::node::{Calls, Node, block_on};
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
fn no_interface_of_ours_is_reachable_from_inside() {
    let _machine = machine();
    // With a way out, which leads to every address of the host, and from every agent.
    let node = Node::up_with_egress(&["--agent", "name=a,namespace=one", "--agent", "name=b,namespace=two"]);
    let root = node.root().display().to_string();
    let ours = listening(&root);
    assert!(!ours.is_empty(), "the controller listens");
    // A server of somebody else on all of this machine's addresses is not found either; one beyond it is.
    let control = std::net::TcpListener::bind("[::]:0").unwrap();
    let open = control.local_addr().unwrap().port();
    std::thread::spawn(move || while control.accept().is_ok() {});
    let elsewhere = Elsewhere::new(3);
    let ports = || ours.iter().copied().chain([open]);
    let mut targets: Vec<(String, u16)> =
        addresses().iter().flat_map(|address| ports().map(|port| (address.clone(), port))).collect();
    targets.push((elsewhere.address.to_string(), SERVED));
    // What it expands before it forks shows its first process as it is.
    let script = format!(
        r#"
        echo processes; ls -d /proc/[0-9]*; echo descriptors; ls /proc/1/fd
        echo mounts; cat /proc/self/mountinfo; echo end
        echo "abstract $(grep -c @ /proc/net/unix)"
        for path in {root} /run/fast-sandbox /var/lib/fast-sandbox; do [ -e $path ] && echo "SEEN $path"; done
        kill -9 -1 2>/dev/null
        echo alive
        {}"#,
        networks::script(&targets)
    );
    for namespace in ["one", "two"] {
        let text = node.ctl_ok(&["run", "--rm", "--image", "busybox", "-n", namespace, "--", "sh", "-c", &script]);
        assert!(text.starts_with("processes\n/proc/1\ndescriptors\n0\n1\n2\nmounts\n"), "{text}");
        let (_, mounts) = text.split_once("mounts\n").unwrap();
        for mount in mounts.split_once("\nend\n").unwrap().0.lines() {
            assert!(is_its_own(mount, &root), "{mount}");
        }
        assert!(text.contains("\nabstract 0\n"), "abstract sockets stand in its network namespace: {text}");
        assert!(!text.contains("SEEN") && text.contains("\nalive\n"), "{text}");
        assert_eq!(networks::reached(&text), [(elsewhere.address.to_string(), SERVED)]);
    }
    assert!(node.pids("fsb-agent").len() == 2, "the daemons are untouched");
    // Nor by somebody without rights on this machine.
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut find = Command::new("find");
    find.args([&root, "-type", "s", "-writable"]).uid(65534).gid(65534);
    let found = find.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    node.finish();
}

/// Every address of this machine, as a sandbox names it.
fn addresses() -> BTreeSet<String> {
    let all = nix::ifaddrs::getifaddrs().unwrap().filter_map(|interface| interface.address);
    let name = |address: nix::sys::socket::SockaddrStorage| match address.as_sockaddr_in6() {
        Some(six) if six.ip().is_unicast_link_local() => Some(format!("{}%eth0", six.ip())),
        Some(six) => Some(six.ip().to_string()),
        None => Some(address.as_sockaddr_in()?.ip().to_string()),
    };
    all.filter_map(name).collect()
}

/// TCP ports on which the processes of the node below `root` listen, each in the network namespace that it stands in.
pub fn listening(root: &str) -> BTreeSet<u16> {
    let mut ports = BTreeSet::new();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let read = |file: &str| {
            let bytes = std::fs::read(process.path().join(file)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        if !read("cmdline").contains(root) && !read("environ").contains(root) {
            continue;
        }
        let held = std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let held: BTreeSet<PathBuf> = held.filter_map(|held| std::fs::read_link(held.path()).ok()).collect();
        for table in [read("net/tcp"), read("net/tcp6")] {
            for line in table.lines() {
                // Documentation/networking/proc_net_tcp.rst of the kernel; 0A is TCP_LISTEN.
                let fields: Vec<&str> = line.split_whitespace().collect();
                let [_, local, _, "0A", _, _, _, _, _, inode, ..] = fields[..] else { continue };
                if held.contains(Path::new(&format!("socket:[{inode}]"))) {
                    let (_, port) = local.rsplit_once(':').unwrap();
                    ports.insert(u16::from_str_radix(port, 16).unwrap());
                }
            }
        }
    }
    ports
}

/// Whether a line of proc_pid_mountinfo(5) is of a mount that a sandbox has for itself, and not of a place of the host.
fn is_its_own(mount: &str, root: &str) -> bool {
    let (left, right) = mount.split_once(" - ").unwrap();
    let left: Vec<&str> = left.split(' ').collect();
    let (shown, point) = (left[3], left[4]);
    match right.split(' ').next().unwrap() {
        // Its layers are named there, as with every overlay.
        "overlay" => point == "/",
        "proc" | "sysfs" => !mount.contains(root),
        // Whole ones, and its own /dev/null as a mask.
        "tmpfs" | "devpts" | "mqueue" => ["/", "/null"].contains(&shown) && !mount.contains(root),
        _ => false,
    }
}

#[test]
fn forbidden_system_calls_are_refused_to_root_and_users() {
    let node = Node::up(&[]);
    block_on(async {
        let mut client = node.client().await;
        // Refused, and because it is forbidden: what fails for another reason shows nothing.
        let script = r#"
            try() {
                if said=$("$@" 2>&1); then echo "POSSIBLE: $*"; return; fi
                case $said in
                    *"peration not permitted"*|*"ermission denied"*|*"Read-only file system"*) ;;
                    *) echo "FAILED OTHERWISE: $*: $said" ;;
                esac
            }
            try unshare -U true; try unshare -m true; try unshare -n true; try unshare -p true
            try nsenter -t 1 -m true; try mount -t tmpfs x /tmp; try umount /proc/kcore; try pivot_root / /tmp
            try ping -c 1 -W 1 127.0.0.1; try ip link add x type dummy; try hostname other
            try swapoff /dev/null; try insmod /bin/busybox; try reboot -f; try renice -n -5 1
            try sh -c 'echo 1 > /proc/sys/kernel/panic'
            # Not every kernel has it.
            [ ! -e /proc/sysrq-trigger ] || try sh -c 'echo c > /proc/sysrq-trigger'
            try sh -c 'mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk'
            # A kernel without packet sockets has none to give.
            arping -c 1 -w 1 -I eth0 127.0.0.1 2>&1 | grep -q "not supported" || try arping -c 1 -w 1 -I eth0 127.0.0.1
            chroot /proc/1/root/.. ls /work 2>&1 | grep -qE "not permitted|ermission denied|No such file" || echo "POSSIBLE: chroot"
            echo checked"#;
        for user in ["", "1000"] {
            let mut request = crate::node::shell(&format!("try{user}"), script);
            request.user = user.into();
            client.create_as(request).await.unwrap();
            assert_eq!(client.output(&format!("try{user}")).await, "checked\n");
        }
    });
    node.finish();
}

#[test]
fn a_sandbox_knows_its_name_its_user_and_its_place() {
    let node = Node::up(&[]);
    block_on(async {
        let mut client = node.client().await;
        let mut request = crate::node::shell(
            "who",
            "hostname; id -u; id -G; pwd; grep -c $(hostname) /etc/hosts; cat /etc/hostname; echo $K; readlink /proc/self/fd/0",
        );
        request.user = "user".into();
        request.working_dir = "/not/there/yet".into();
        request.envs.insert("K".into(), "v w".into());
        client.create_as(request).await.unwrap();
        let text = client.output("who").await;
        let id = client.info("who").await.unwrap().instance_id;
        let host = &id[..12];
        assert_eq!(text, format!("{host}\n1000\n1000 2000\n/not/there/yet\n1\n{host}\nv w\n/dev/null\n"));
    });
    node.finish();
}

#[test]
fn the_agent_holds_only_the_privileges_that_it_needs() {
    let node = Node::up(&[]);
    // CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, KILL, SYS_PTRACE, SYS_ADMIN, MKNOD, SETFCAP: SYS_ADMIN
    // for overlayfs' attributes, SYS_PTRACE to see what another user's process runs, the others for files
    // (linux/capability.h).
    let needed = bits(&[0, 1, 2, 3, 4, 5, 19, 21, 27, 31]);
    holds(
        node.pids("fsb-agent")[0],
        &[("CapEff", needed), ("CapPrm", needed), ("CapBnd", needed), ("CapInh", 0), ("CapAmb", 0)],
    );
    node.finish();
}

#[test]
fn the_controller_holds_only_the_privileges_that_it_needs() {
    let node = Node::up(&[]);
    // CHOWN, DAC_OVERRIDE, NET_BIND_SERVICE. No program that it could start gets others back.
    let needed = bits(&[0, 1, 10]);
    let sets = [("CapEff", needed), ("CapPrm", needed), ("CapInh", 0), ("CapAmb", 0), ("NoNewPrivs", 1)];
    holds(node.pids("fsb-controller")[0], &sets);
    node.finish();
}

fn bits(capabilities: &[u32]) -> u64 {
    capabilities.iter().fold(0, |bits, capability| bits | 1 << capability)
}

/// Checks whole sets, of every thread: what is neither needed nor thought of is not there either.
fn holds(pid: i32, wanted: &[(&str, u64)]) {
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        let Ok(status) = std::fs::read_to_string(task.path().join("status")) else { continue };
        for (set, wanted) in wanted {
            let held = status.lines().find_map(|line| line.strip_prefix(set)?.strip_prefix(':')).unwrap().trim();
            assert_eq!(u64::from_str_radix(held, 16).unwrap(), *wanted, "{set} is {held}, not {wanted:x}");
        }
    }
}
