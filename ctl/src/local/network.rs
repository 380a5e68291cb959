//! An agent's network: a namespace of its own, pinned in the node's run directory, and a pair of links to the host.
//!
//! Pinned by ourselves and not by `ip netns`, which mounts its directory as shared and leaves that behind.

use super::dirs::Dirs;
use super::mounts;
use super::program::{inside, run, words};
use super::record::Agent;
use super::subnets::{Network, Subnet, in_use};
use crate::error::{Context, Result};
use fsb_files::Access;
use nix::mount::{MntFlags, umount2};
use std::path::Path;

/// The link inside the namespace.
const INNER: &str = "eth0";

/// The networks that interfaces and routes of this machine use.
pub(crate) fn used() -> Result<Vec<Network>> {
    let mut networks = in_use(&run("ip", words("-o -4 addr show"))?);
    networks.extend(in_use(&run("ip", words("-4 route show table all"))?));
    Ok(networks)
}

/// The host's link of an agent.
pub(crate) fn link(dirs: &Dirs, agent: &Agent) -> String {
    format!("{}{}", dirs.link, agent.octet)
}

/// Makes an agent's network, or puts right what is there.
pub(crate) fn make(dirs: &Dirs, agent: &Agent, subnet: Subnet, egress: bool) -> Result<()> {
    let netns = dirs.netns(&agent.name);
    let link = link(dirs, agent);
    if mounts::is_namespace(&netns) && exists(&link) && configure(&netns, &link, agent, subnet, egress).is_ok() {
        return Ok(());
    }
    remove_link(&link)?;
    unpin(&netns)?;
    pin(&netns)?;
    let netns_shown = netns.display();
    run("ip", words(&format!("link add {link} type veth peer name {INNER} netns {netns_shown}")))?;
    configure(&netns, &link, agent, subnet, egress)
}

fn configure(netns: &Path, link: &str, agent: &Agent, subnet: Subnet, egress: bool) -> Result<()> {
    let (host, inner) = (subnet.host(agent.octet), subnet.sandboxes(agent.octet));
    run("ip", words(&format!("addr replace {host}/24 dev {link}")))?;
    run("ip", words(&format!("link set {link} up")))?;
    inside(netns, "ip link set lo up")?;
    inside(netns, &format!("ip addr replace {inner}/24 dev {INNER}"))?;
    inside(netns, &format!("ip link set {INNER} up"))?;
    if egress {
        inside(netns, &format!("ip route replace default via {host}"))?;
    }
    Ok(())
}

/// Makes a network namespace and pins it on `path`.
fn pin(path: &Path) -> Result<()> {
    if let Some(parent) = path.parent() {
        fsb_files::create_dir(parent, Access::Owner).context(|| format!("cannot make {}", parent.display()))?;
    }
    fsb_files::write(path, "", Access::Owner).context(|| format!("cannot make {}", path.display()))?;
    run("unshare", [format!("--net={}", path.display()).as_str(), "--", "true"]).map(drop)
}

/// Lets a pinned namespace go. Processes in it keep it until they end.
pub(crate) fn unpin(path: &Path) -> Result<()> {
    if mounts::is_namespace(path) {
        umount2(path, MntFlags::MNT_DETACH).context(|| format!("cannot unmount {}", path.display()))?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Removes every link of the node. The other ends go with them.
pub(crate) fn remove_links(dirs: &Dirs) -> Result<()> {
    let names = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    for name in names.filter_map(|entry| entry.file_name().into_string().ok()) {
        if is_ours(&dirs.link, &name) {
            remove_link(&name)?;
        }
    }
    Ok(())
}

/// A link of the node: its beginning and a number.
fn is_ours(beginning: &str, name: &str) -> bool {
    name.strip_prefix(beginning).is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
}

fn remove_link(link: &str) -> Result<()> {
    if !exists(link) {
        return Ok(());
    }
    let removed = run("ip", words(&format!("link del {link}")));
    // It may have gone by itself meanwhile, with its namespace.
    if exists(link) { removed.map(drop) } else { Ok(()) }
}

fn exists(link: &str) -> bool {
    Path::new("/sys/class/net").join(link).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_links_of_this_node_are_taken_for_its_own() {
        assert!(is_ours("fsb-", "fsb-1"));
        for other in ["fsb-", "fsb-x", "fsb01234567-1", "eth0"] {
            assert!(!is_ours("fsb-", other), "{other}");
        }
    }
}
