//! The node's nftables table: what its sandboxes reach, who reaches them, and under which address they leave.
//!
//! Each node has a table of its own. A packet has to pass every table of the machine, and a drop in one of them is the
//! end of it: nodes need not know of each other, and it does not matter which one came first or goes first. Within a
//! table what drops comes before what accepts.

use super::dirs::Dirs;
use super::program::{self, feed, run};
use super::record::Agent;
use super::resolvers::resolvers;
use super::subnets::Subnet;
use super::{dirs, global};
use crate::error::{Failure, Result};
use std::net::Ipv4Addr;

/// What the table is made from.
struct Plan<'a> {
    table: &'a str,
    /// Begins the names of the node's links.
    link: &'a str,
    /// The agents' networks, as CIDR.
    networks: Vec<String>,
    way_out: Option<WayOut>,
}

/// Sandboxes reach what this machine reaches.
struct WayOut {
    /// Where they ask for names, also where that is a link-local address or this machine's own.
    resolvers: Vec<Ipv4Addr>,
    /// The machine routed nothing before the first node: it routes for nobody else now.
    first_to_forward: bool,
}

/// Puts the table in force, and with `egress` opens the way out. Only within [`global::alone`].
pub(crate) fn open(dirs: &Dirs, agents: &[Agent], subnet: Subnet, egress: bool) -> Result<()> {
    if program::on_path("nft").is_none() {
        return Err(program::missing("nft"));
    }
    let way_out = match egress {
        true => Some(WayOut { resolvers: resolvers(), first_to_forward: global::need_forwarding(dirs)? }),
        false => None,
    };
    let networks = agents.iter().map(|agent| subnet.network(agent.octet)).collect();
    let rules = rules(&Plan { table: &dirs.table, link: &dirs.link, networks, way_out });
    feed("nft", ["-f", "-"], &rules).map_err(|failure| {
        Failure::new(failure.what).hint("the kernel needs nf_tables with conntrack and NAT: modprobe nft_masq nft_ct")
    })?;
    // Not before the rules are there.
    if egress { global::forward() } else { Ok(()) }
}

/// Closes it. Only within [`global::alone`].
pub(crate) fn close(dirs: &Dirs) -> Result<()> {
    let forwarding = global::unforward(dirs);
    if program::on_path("nft").is_some() {
        // Declared first: deleting what is not there is an error.
        feed("nft", ["-f", "-"], &format!("table inet {0}\ndelete table inet {0}\n", dirs.table))?;
    }
    forwarding
}

/// Whether the node's table is there.
pub(crate) fn is_in_force(dirs: &Dirs) -> bool {
    run("nft", ["list", "table", "inet", dirs.table.as_str()]).is_ok()
}

/// Replaces the node's table in one transaction.
fn rules(plan: &Plan<'_>) -> String {
    let table = plan.table;
    let (ours, of_all_nodes) = (format!("\"{}*\"", plan.link), format!("\"{}*\"", dirs::EVERY_LINK));
    // IPv6 ends at the link: no address of a sandbox is known beyond it.
    let mut input = vec![
        format!("iifname != {ours} accept"),
        // Answers to what this machine has asked a sandbox.
        "ct state established,related accept".into(),
    ];
    let mut forward = vec![
        format!("iifname {of_all_nodes} oifname {of_all_nodes} drop"),
        format!("oifname {ours} ct state != {{ established, related }} drop"),
    ];
    let mut nat = Vec::new();
    if let Some(way_out) = &plan.way_out {
        if !way_out.resolvers.is_empty() {
            let list = way_out.resolvers.iter().map(Ipv4Addr::to_string).collect::<Vec<_>>().join(", ");
            let names = format!("ip daddr {{ {list} }} meta l4proto {{ tcp, udp }} th dport 53 accept");
            input.push(names.clone());
            forward.push(format!("iifname {ours} {names}"));
        }
        forward.push(format!("iifname {ours} meta nfproto != ipv4 drop"));
        // Where clouds keep the machine's own credentials, among others (RFC 3927).
        forward.push(format!("iifname {ours} ip daddr 169.254.0.0/16 drop"));
        if way_out.first_to_forward {
            // What a bridge passes on to itself comes by here too, with br_netfilter, and is no matter of routing.
            let bridged = "meta iifkind \"bridge\" meta oifkind \"bridge\"";
            forward.push(format!("{bridged} accept"));
            forward.push(format!("meta nfproto ipv4 iifname != {of_all_nodes} oifname != {of_all_nodes} drop"));
        }
        let networks = plan.networks.join(", ");
        nat.push(format!("ip saddr {{ {networks} }} oifname != {ours} masquerade"));
    } else {
        forward.push(format!("iifname {ours} drop"));
    }
    input.push("drop".into());
    let chain = |name: &str, kind: &str, rules: &[String]| {
        let rules: String = rules.iter().map(|rule| format!("\t\t{rule}\n")).collect();
        format!("\tchain {name} {{\n\t\ttype {kind}; policy accept;\n{rules}\t}}\n")
    };
    let chains = [
        chain("input", "filter hook input priority 0", &input),
        chain("forward", "filter hook forward priority 0", &forward),
        chain("postrouting", "nat hook postrouting priority 100", &nat),
    ];
    format!("table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n{}}}\n", chains.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(way_out: Option<WayOut>) -> Plan<'static> {
        let networks = vec!["10.1.1.0/24".into(), "10.1.2.0/24".into()];
        Plan { table: "t", link: "fsb0-", networks, way_out }
    }

    /// The rules of a chain.
    fn chain<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
        let (_, rest) = text.split_once(&format!("chain {name} {{\n")).unwrap();
        rest.lines().skip(1).map(str::trim).take_while(|line| *line != "}").collect()
    }

    #[test]
    fn a_table_replaces_the_one_before_and_drops_before_it_accepts() {
        let text = rules(&plan(Some(WayOut { resolvers: vec![], first_to_forward: true })));
        assert!(text.starts_with("table inet t\ndelete table inet t\n"));
        assert_eq!(chain(&text, "forward")[0], "iifname \"fsb*\" oifname \"fsb*\" drop");
        assert_eq!(chain(&text, "input").last(), Some(&"drop"));
        assert_eq!(
            chain(&text, "postrouting"),
            ["ip saddr { 10.1.1.0/24, 10.1.2.0/24 } oifname != \"fsb0-*\" masquerade"]
        );
    }

    #[test]
    fn only_who_turned_forwarding_on_drops_what_others_forward() {
        let drops = |first_to_forward| {
            let text = rules(&plan(Some(WayOut { resolvers: vec![], first_to_forward })));
            text.contains("iifname != \"fsb*\" oifname != \"fsb*\" drop")
        };
        assert!(drops(true) && !drops(false));
    }

    #[test]
    fn names_are_asked_for_wherever_the_resolver_is_and_nothing_else_there() {
        let resolvers = vec![Ipv4Addr::new(169, 254, 169, 254), Ipv4Addr::new(192, 0, 2, 1)];
        let text = rules(&plan(Some(WayOut { resolvers, first_to_forward: false })));
        let names = "ip daddr { 169.254.169.254, 192.0.2.1 } meta l4proto { tcp, udp } th dport 53 accept";
        let forward = chain(&text, "forward");
        let at = |rule: &str| forward.iter().position(|line| line.ends_with(rule)).unwrap();
        assert!(at(names) < at("ip daddr 169.254.0.0/16 drop") && chain(&text, "input").contains(&names), "{text}");
    }

    #[test]
    fn without_a_way_out_nothing_is_forwarded_from_a_sandbox_and_no_address_is_changed() {
        let text = rules(&plan(None));
        assert_eq!(chain(&text, "forward").last(), Some(&"iifname \"fsb0-*\" drop"));
        assert!(!text.contains("masquerade"));
    }
}
