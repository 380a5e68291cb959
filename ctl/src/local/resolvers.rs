//! The name servers that sandboxes ask: those of this machine.

use std::net::{IpAddr, Ipv4Addr};

/// The first that is there is the one that sandboxes get (`Etc::read` in fsb-spawner): systemd-resolved listens on the
/// host's loopback; behind it is its own file.
const FILES: [&str; 2] = ["/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"];

/// The IPv4 ones that a network namespace of its own may reach.
pub(crate) fn resolvers() -> Vec<Ipv4Addr> {
    FILES.iter().find_map(|path| std::fs::read_to_string(path).ok()).map(|text| named(&text)).unwrap_or_default()
}

fn named(text: &str) -> Vec<Ipv4Addr> {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()?.parse()) {
            (Some("nameserver"), Ok(IpAddr::V4(address))) => Some(address),
            _ => None,
        }
    };
    text.lines().filter_map(address).filter(|address| !address.is_loopback()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_servers_of_a_resolver_configuration_are_found() {
        let text =
            "# nameserver 1.1.1.1\nsearch x\nnameserver 127.0.0.53\nnameserver\t192.0.2.1 \nnameserver fe80::1%eth0\n";
        assert_eq!(named(text), [Ipv4Addr::new(192, 0, 2, 1)]);
        assert!(named("nameserver\nnameserver x\n").is_empty());
    }
}
