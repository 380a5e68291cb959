//! Everything that processes listen on, as the kernel's tables say it.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

/// A place where somebody may knock.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Door {
    Tcp(SocketAddr),
    /// A unix socket with a path, as it was bound.
    Path(PathBuf),
    /// A unix socket without one: the name after the NUL.
    Abstract(String),
}

/// What these processes listen on, each in its own network namespace; what listens on every address is there under the
/// loopback of both families.
///
/// # Panics
/// If one of them has a bound socket that is none of a stream: nobody here would know how to knock there.
pub fn of(pids: &[i32]) -> BTreeSet<Door> {
    let mut doors = BTreeSet::new();
    for pid in pids {
        let sockets = sockets(*pid);
        let table = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap_or_default();
        for name in ["tcp", "tcp6"] {
            let table = table(name);
            let rows = table.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
            // 0A is TCP_LISTEN (include/net/tcp_states.h).
            for row in rows.filter(|row| row.len() > 9 && row[3] == "0A" && sockets.contains(row[9])) {
                let address = address(row[1]);
                let addresses = if address.ip().is_unspecified() {
                    vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
                } else {
                    vec![address.ip()]
                };
                doors.extend(addresses.into_iter().map(|ip: IpAddr| Door::Tcp(SocketAddr::new(ip, address.port()))));
            }
        }
        for name in ["udp", "udp6", "raw", "raw6"] {
            let ours = table(name).lines().skip(1).any(|row| row.split_whitespace().any(|word| sockets.contains(word)));
            assert!(!ours, "process {pid} has a socket in {name}");
        }
        for row in table("unix").lines().skip(1) {
            let row: Vec<&str> = row.split_whitespace().collect();
            let Some(name) = row.get(7).filter(|_| sockets.contains(row[6])) else { continue };
            assert_eq!(row[4], "0001", "process {pid}: {name} is not a stream");
            doors.insert(match name.strip_prefix('@') {
                Some(name) => Door::Abstract(name.to_owned()),
                None => Door::Path((*name).into()),
            });
        }
    }
    doors
}

/// Inode numbers of a process's sockets.
fn sockets(pid: i32) -> BTreeSet<String> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let links = descriptors.filter_map(|entry| entry.path().read_link().ok()?.into_os_string().into_string().ok());
    links.filter_map(|link| Some(link.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())).collect()
}

/// `0100007F:2382`, words of four bytes in this machine's order (proc_net_tcp.rst in the kernel's documentation).
fn address(text: &str) -> SocketAddr {
    let (ip, port) = text.split_once(':').unwrap();
    let words: Vec<u8> = (0..ip.len() / 8)
        .flat_map(|word| u32::from_str_radix(&ip[word * 8..word * 8 + 8], 16).unwrap().to_ne_bytes())
        .collect();
    let ip = match <[u8; 4]>::try_from(words.as_slice()) {
        Ok(four) => IpAddr::from(four),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(words.as_slice()).unwrap()),
    };
    SocketAddr::new(ip, u16::from_str_radix(port, 16).unwrap())
}
