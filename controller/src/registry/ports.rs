//! On which agents which port is in use.

use super::bitmap::Bitmap;
use super::hash::Seed;
use std::collections::HashMap;

/// All ports of a pool.
#[derive(Debug, Default)]
pub struct Ports {
    users: HashMap<u16, Bitmap, Seed>,
    /// Uses beyond the first one of a port on an agent. An agent admits only one, so these are overlaps of reports.
    more: HashMap<(u16, u32), u32, Seed>,
}

impl Ports {
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
