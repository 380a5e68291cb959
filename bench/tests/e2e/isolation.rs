//! What a sandbox can reach: nothing of ours, and nothing of the host.

use crate::node::{Calls, Node, block_on};

#[test]
fn no_interface_of_ours_is_reachable_from_inside() {
    let node = Node::up(&[]);
    block_on(async {
        let mut client = node.client().await;
        let run = node.run_dir().display().to_string();
        // Every listening TCP address of the host and every socket of the node, tried from inside.
        let ports: Vec<String> = listening().into_iter().map(|port| port.to_string()).collect();
        let script = format!(
            r#"
            for port in {ports}; do for ip in 127.0.0.1 $(ip -o -4 addr | sed 's/.*inet \([0-9.]*\).*/\1/'); do
                nc -w 1 $ip $port </dev/null >/dev/null 2>&1 && echo "REACHED $ip:$port"; done; done
            for path in {run}/controller.sock {run}/agent-1.sock /run/fast-sandbox; do [ -e $path ] && echo "SEEN $path"; done
            grep -c @ /proc/net/unix
            echo "processes $(ls -d /proc/[0-9]* | wc -l)"
            echo "descriptors $(ls /proc/1/fd | tr '\n' ' ')"
            grep -E '{run}|/work|/home/' /proc/mounts | grep -v ' / '
            kill -9 -1 2>/dev/null
            echo alive"#,
            ports = ports.join(" "),
        );
        client.create("probe", &script).await.unwrap();
        let text = client.output("probe").await;
        assert!(!text.contains("REACHED") && !text.contains("SEEN"), "{text}");
        let abstract_sockets: usize = text.lines().next().unwrap().trim().parse().unwrap();
        assert_eq!(abstract_sockets, 0, "abstract sockets stand in its network namespace: {text}");
        assert!(text.contains("descriptors 0 1 2") && text.contains("alive"), "{text}");
        assert!(node.pids("fsb-agent").len() == 1, "the daemons are untouched");
    });
    node.finish();
}

/// TCP ports on which this machine listens.
fn listening() -> Vec<u16> {
    let text = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let listen = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.get(3) == Some(&"0A")).then(|| u16::from_str_radix(fields[1].split(':').nth(1)?, 16).ok())?
    };
    text.lines().filter_map(listen).collect()
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
