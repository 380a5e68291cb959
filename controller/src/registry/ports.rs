//! On which agents which port is in use.

use super::bitmap::Bitmap;
use super::hash::Seed;
use std::collections::{BTreeSet, HashMap};

/// The ports of one sandbox; no memory of their own unless there are many.
#[derive(Debug)]
pub enum PortList {
    /// So many of these.
    Few(u8, [u16; FEW]),
    /// All of these.
    Many(Box<[u16]>),
}

/// Ports that need no memory of their own.
const FEW: usize = 7;

impl Default for PortList {
    fn default() -> Self {
        Self::Few(0, [0; FEW])
    }
}

impl PortList {
    /// Copies them.
    #[inline]
    pub fn new(ports: &BTreeSet<u16>) -> Self {
        if ports.is_empty() {
            return Self::default();
        }
        if ports.len() > FEW {
            return Self::Many(ports.iter().copied().collect());
        }
        let mut few = [0; FEW];
        few.iter_mut().zip(ports).for_each(|(place, port)| *place = *port);
        Self::Few(ports.len() as u8, few)
    }

    /// All of them.
    pub fn as_slice(&self) -> &[u16] {
        match self {
            Self::Few(count, ports) => &ports[..usize::from(*count)],
            Self::Many(ports) => ports,
        }
    }
}

/// All ports of a pool.
#[derive(Debug, Default)]
pub struct Ports {
    users: HashMap<u16, Bitmap, Seed>,
    /// Uses beyond the first one of a port on an agent: a sandbox's reservation uses it, and so does its report.
    more: HashMap<(u16, u32), u32, Seed>,
}

impl Ports {
    /// For each of these ports that is in use: the agents on which it is.
    pub fn busy(&self, ports: &BTreeSet<u16>) -> Vec<&Bitmap> {
        if ports.is_empty() { Vec::new() } else { ports.iter().filter_map(|port| self.users(*port)).collect() }
    }

    /// The agents on which the port is in use.
    pub fn users(&self, port: u16) -> Option<&Bitmap> {
        self.users.get(&port)
    }

    /// One more use.
    pub fn take(&mut self, port: u16, agent: u32) {
        let users = self.users.entry(port).or_default();
        if users.contains(agent) {
            *self.more.entry((port, agent)).or_default() += 1;
        } else {
            users.set(agent, true);
        }
    }

    /// One use less.
    pub fn free(&mut self, port: u16, agent: u32) {
        if !self.more.is_empty()
            && let Some(more) = self.more.get_mut(&(port, agent))
        {
            *more -= 1;
            if *more == 0 {
                self.more.remove(&(port, agent));
            }
            return;
        }
        if let Some(users) = self.users.get_mut(&port) {
            users.set(agent, false);
            if users.is_empty() {
                self.users.remove(&port);
            }
        }
    }

    /// The agent is gone with all that used its ports. Looks at every port in use: agents come and go rarely.
    pub fn forget(&mut self, agent: u32) {
        self.more.retain(|(_, other), _| *other != agent);
        self.users.retain(|_, users| {
            users.set(agent, false);
            !users.is_empty()
        });
    }
}
