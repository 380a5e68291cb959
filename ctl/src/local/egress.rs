//! The way out: the sandboxes' traffic is forwarded and leaves under the machine's own address.

use super::dirs::Dirs;
use super::program::{self, feed, run};
use super::record::Agent;
use super::subnets::Subnet;
use super::{global, network};
use crate::error::{Failure, Result};

/// Opens it. Only within [`global::alone`].
pub(crate) fn open(dirs: &Dirs, agents: &[Agent], subnet: Subnet) -> Result<()> {
    if program::on_path("nft").is_none() {
        let missing = program::missing("nft");
        return Err(Failure::new(missing.what).hint("apt-get install nftables, or local up --no-egress"));
    }
    global::forward(dirs)?;
    let links: Vec<(String, String)> =
        agents.iter().map(|agent| (network::link(dirs, agent), subnet.network(agent.octet))).collect();
    feed("nft", ["-f", "-"], &rules(&dirs.table, &links)).map(drop)
}

/// Closes it. Only within [`global::alone`].
pub(crate) fn close(dirs: &Dirs) -> Result<()> {
    if program::on_path("nft").is_some() {
        // Declared first: deleting what is not there is an error.
        feed("nft", ["-f", "-"], &format!("table ip {0}\ndelete table ip {0}\n", dirs.table))?;
    }
    global::unforward(dirs)
}

/// Whether the node's table is there.
pub(crate) fn is_open(dirs: &Dirs) -> bool {
    run("nft", ["list", "table", "ip", dirs.table.as_str()]).is_ok()
}

/// Replaces the node's table in one transaction.
fn rules(table: &str, links: &[(String, String)]) -> String {
    let names = links.iter().map(|(link, _)| format!("\"{link}\"")).collect::<Vec<_>>().join(", ");
    let networks = links.iter().map(|(_, network)| network.as_str()).collect::<Vec<_>>().join(", ");
    format!(
        "table ip {table}\n\
         delete table ip {table}\n\
         table ip {table} {{\n\
         \tchain postrouting {{\n\
         \t\ttype nat hook postrouting priority 100; policy accept;\n\
         \t\tip saddr {{ {networks} }} oifname != {{ {names} }} masquerade\n\
         \t}}\n\
         \tchain forward {{\n\
         \t\ttype filter hook forward priority 0; policy accept;\n\
         \t\tiifname {{ {names} }} accept\n\
         \t\toifname {{ {names} }} accept\n\
         \t}}\n\
         }}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_name_every_link_and_network_and_replace_the_old_ones() {
        let text = rules("t", &[("l1".into(), "10.1.1.0/24".into()), ("l2".into(), "10.1.2.0/24".into())]);
        assert!(text.starts_with("table ip t\ndelete table ip t\n"));
        assert!(text.contains("ip saddr { 10.1.1.0/24, 10.1.2.0/24 } oifname != { \"l1\", \"l2\" } masquerade"));
    }
}
