//! Connections of whoever says nothing.

use crate::node::{Node, block_on};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const CONNECTIONS: usize = 2000;

/// The TCP ports on which a process listens (proc_pid_net(5)), on IPv4 or on all addresses of IPv6.
fn ports(pid: i32) -> BTreeSet<u16> {
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let links = links.filter_map(|entry| std::fs::read_link(entry.path()).ok()?.into_os_string().into_string().ok());
    let sockets: BTreeSet<String> =
        links.filter_map(|link| Some(link.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())).collect();
    let mut ports = BTreeSet::new();
    for table in ["tcp", "tcp6"] {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields[3] == "0A" && sockets.contains(fields[9]) {
                ports.insert(u16::from_str_radix(fields[1].rsplit(':').next().unwrap(), 16).unwrap());
            }
        }
    }
    ports
}

#[test]
fn silent_connections_by_the_thousand_keep_nobody_waiting() {
    let node = Node::up(&[]);
    let controller = node.pids("fsb-controller")[0];
    let ports = ports(controller);
    assert!(ports.len() >= 2, "metrics and health: {ports:?}");
    let limit = std::fs::read_to_string(format!("/proc/{controller}/limits")).unwrap();
    let files = limit.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let files: Vec<&str> = files.split_whitespace().collect();
    assert_eq!(files[3], files[4], "the soft limit is the hard one");
    for socket in [None, Some("controller.sock"), Some("agent-1.sock")] {
        let mut silent: Vec<Box<dyn Send>> = Vec::new();
        match socket {
            None => {
                for port in &ports {
                    for _ in 0..CONNECTIONS {
                        silent
                            .push(Box::new(TcpStream::connect(SocketAddrV4::new(Ipv4Addr::LOCALHOST, *port)).unwrap()));
                    }
                }
            }
            Some(name) => {
                for _ in 0..CONNECTIONS {
                    silent.push(Box::new(UnixStream::connect(node.run_dir().join(name)).unwrap()));
                }
            }
        }
        let mut fastest = Duration::MAX;
        for _ in 0..3 {
            let since = Instant::now();
            node.ctl_ok(&["ls"]);
            fastest = fastest.min(since.elapsed());
            if fastest <= Duration::from_millis(100) {
                break;
            }
        }
        assert!(fastest <= Duration::from_millis(100), "{socket:?}: `ls` took {fastest:?}");
        // And the node itself goes on.
        node.ctl_ok(&["run", "--rm", "--image", "busybox", "--", "true"]);
        drop(silent);
    }
    block_on(async { drop(node.client().await) });
    node.finish();
}
