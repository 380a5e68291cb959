//! Which /24 each agent gets: the first ones of the node's /16 that no interface of this machine uses.

use std::net::Ipv4Addr;
use std::str::FromStr;

/// A /16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subnet(u8, u8);

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "must be a private IPv4 network of 16 bits, like 10.213.0.0/16".to_owned();
        let (address, "16") = text.split_once('/').ok_or_else(wrong)? else { return Err(wrong()) };
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let [a, b, c, d] = address.octets();
        if (c, d) != (0, 0) || !address.is_private() {
            return Err(wrong());
        }
        Ok(Self(a, b))
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.0.0/16", self.0, self.1)
    }
}

impl Subnet {
    /// The host's side of the `octet`th /24.
    pub(crate) fn host(self, octet: u8) -> Ipv4Addr {
        Ipv4Addr::new(self.0, self.1, octet, 1)
    }

    /// The sandboxes' side.
    pub(crate) fn sandboxes(self, octet: u8) -> Ipv4Addr {
        Ipv4Addr::new(self.0, self.1, octet, 2)
    }

    /// The network.
    pub(crate) fn network(self, octet: u8) -> String {
        format!("{}.{}.{octet}.0/24", self.0, self.1)
    }

    /// The first `count` octets whose /24 meets none of the networks in use; `None` if there are not so many.
    pub(crate) fn free(self, count: usize, used: &[Network]) -> Option<Vec<u8>> {
        let free = (1..=254).filter(|octet| {
            let ours = Network { address: self.host(*octet), bits: 24 };
            !used.iter().any(|other| other.meets(ours))
        });
        let octets: Vec<u8> = free.take(count).collect();
        (octets.len() == count).then_some(octets)
    }
}

/// A network in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network {
    pub(crate) address: Ipv4Addr,
    pub(crate) bits: u8,
}

impl Network {
    fn meets(self, other: Self) -> bool {
        let bits = self.bits.min(other.bits);
        let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
        u32::from(self.address) & mask == u32::from(other.address) & mask
    }
}

/// The networks in the output of `ip -o -4 addr` and `ip -4 route`. The default route is in nobody's way.
pub(crate) fn in_use(text: &str) -> Vec<Network> {
    let networks = text.split_whitespace().filter_map(|word| {
        let (address, bits) = word.split_once('/')?;
        let bits: u8 = bits.parse().ok().filter(|bits| (1..=32).contains(bits))?;
        Some(Network { address: address.parse().ok()?, bits })
    });
    networks.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_get_the_first_networks_that_nobody_uses() {
        let subnet: Subnet = "10.213.0.0/16".parse().unwrap();
        let used = in_use("3: fsb-1    inet 10.213.1.1/24 scope global fsb-1\n10.213.3.128/25 via 10.0.0.1 dev eth0\n");
        assert_eq!(subnet.free(3, &used), Some(vec![2, 4, 5]));
        assert_eq!(subnet.free(2, &[]), Some(vec![1, 2]));
        assert_eq!(subnet.sandboxes(4).to_string(), "10.213.4.2");
    }

    #[test]
    fn a_machine_whose_own_network_is_the_subnet_has_no_room() {
        let subnet: Subnet = "10.213.0.0/16".parse().unwrap();
        assert_eq!(subnet.free(1, &in_use("inet 10.1.2.3/8 eth0")), None);
        assert_eq!(subnet.free(1, &in_use("default via 10.0.0.1 dev eth0 0.0.0.0/0")), Some(vec![1]));
    }

    #[test]
    fn only_a_private_slash_16_is_a_subnet() {
        for bad in ["10.0.0.0/8", "10.1.2.0/16", "8.8.0.0/16", "x/16", "10.213.0.0", ""] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
        let text = "172.20.0.0/16";
        assert_eq!(text.parse::<Subnet>().unwrap().to_string(), text);
    }
}
