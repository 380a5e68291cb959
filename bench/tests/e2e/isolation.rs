//! What a sandbox can reach: nothing of ours, and nothing of the host.

use crate::node::{Calls, Node, block_on};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

#[test]
fn no_interface_of_ours_is_reachable_from_inside() {
    let node = Node::up(&[]);
    // With a way out, which leads to every address of the host.
    node.ctl_ok(&["local", "down"]);
    node.ctl_ok(&["local", "up"]);
    block_on(async {
        let mut client = node.client().await;
        let root = node.root().display().to_string();
        let ours = listening(&root);
        assert!(!ours.is_empty(), "the controller listens");
        // No rule of the node keeps sandboxes from the machine itself, not even without egress. They find a server of
        // anybody else there, so they would find one of ours, too.
        let control = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
        let open = control.local_addr().unwrap().port();
        tokio::spawn(async move { while control.accept().await.is_ok() {} });
        // What it expands before it forks shows its first process as it is.
        let script = format!(
            r#"
            echo processes; ls -d /proc/[0-9]*; echo descriptors; ls /proc/1/fd
            echo mounts; cat /proc/self/mountinfo; echo end
            echo "abstract $(grep -c @ /proc/net/unix)"
            for path in {root} /run/fast-sandbox /var/lib/fast-sandbox; do [ -e $path ] && echo "SEEN $path"; done
            for port in {ports}; do for ip in {hosts} $(ip -o -4 addr | sed 's/.*inet \([0-9.]*\).*/\1/'); do
                nc -w 1 $ip $port </dev/null >/dev/null 2>&1 && echo "REACHED $ip:$port"; done; done
            kill -9 -1 2>/dev/null
            echo alive"#,
            ports = words(ours.iter().chain([&open])),
            hosts = words(addresses()),
        );
        client.create("probe", &script).await.unwrap();
        let text = client.output("probe").await;
        assert!(text.starts_with("processes\n/proc/1\ndescriptors\n0\n1\n2\nmounts\n"), "{text}");
        let (_, mounts) = text.split_once("mounts\n").unwrap();
        for mount in mounts.split_once("\nend\n").unwrap().0.lines() {
            assert!(is_its_own(mount, &root), "{mount}");
        }
        assert!(text.contains("\nabstract 0\n"), "abstract sockets stand in its network namespace: {text}");
        assert!(!text.contains("SEEN") && text.ends_with("\nalive\n"), "{text}");
        let reached: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("REACHED ")).collect();
        assert!(!reached.is_empty(), "not even what is open to all (does this machine have a firewall?): {text}");
        assert!(reached.iter().all(|address| address.ends_with(&format!(":{open}"))), "{reached:?}");
        assert!(node.pids("fsb-agent").len() == 1, "the daemons are untouched");
    });
    node.finish();
}

fn words<T: ToString>(list: impl IntoIterator<Item = T>) -> String {
    list.into_iter().map(|word| word.to_string()).collect::<Vec<_>>().join(" ")
}

/// Every IPv4 address of this machine.
fn addresses() -> BTreeSet<Ipv4Addr> {
    let all = nix::ifaddrs::getifaddrs().unwrap();
    all.filter_map(|interface| interface.address?.as_sockaddr_in().map(|address| address.ip())).collect()
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
        let script = r#"
            try() { if "$@" >/dev/null 2>&1; then echo "POSSIBLE: $*"; fi; }
            try unshare -U true; try unshare -m true; try unshare -n true; try unshare -p true
            try nsenter -t 1 -m true; try mount -t tmpfs x /tmp; try umount /proc/kcore; try pivot_root / /tmp
            try ping -c 1 -W 1 127.0.0.1; try arping -c 1 -w 1 127.0.0.1; try ip link add x type dummy; try hostname other
            try swapoff -a; try insmod /x; try reboot -f; try renice -n -5 1; try chroot /proc/1/root/.. ls /work
            try sh -c 'echo 1 > /proc/sys/kernel/panic'; try sh -c 'echo c > /proc/sysrq-trigger'
            try sh -c 'mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk'
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
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pids("fsb-agent")[0])).unwrap();
    for set in ["CapEff:\t", "CapPrm:\t", "CapBnd:\t"] {
        let bits = status.lines().find_map(|line| line.strip_prefix(set)).unwrap();
        let bits = u64::from_str_radix(bits, 16).unwrap();
        // NET_ADMIN, NET_RAW, SYS_MODULE, SYS_RAWIO, SYS_BOOT, SYS_TIME, SETUID (capabilities(7))
        for capability in [12, 13, 16, 17, 22, 25, 7] {
            assert_eq!(bits >> capability & 1, 0, "{set}{bits:x} holds {capability}");
        }
        assert_eq!(bits >> 21 & 1, 1, "SYS_ADMIN is needed for overlayfs' attributes");
    }
    node.finish();
}

#[test]
fn the_controller_holds_only_the_privileges_that_it_needs() {
    let node = Node::up(&[]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pids("fsb-controller")[0])).unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    for set in ["CapEff:", "CapPrm:"] {
        let bits = u64::from_str_radix(&field(set), 16).unwrap();
        // CHOWN, DAC_OVERRIDE, NET_BIND_SERVICE (linux/capability.h)
        assert_eq!(bits, 1 | 1 << 1 | 1 << 10, "{set} {bits:x}");
    }
    assert_eq!(field("NoNewPrivs:"), "1", "no program that it could start gets them back");
    node.finish();
}
