//! Where a node keeps what, and the names by which everything of it is known.

use crate::config::DEFAULT_RUN_DIR;
use crate::error::{Context, Result};
use crate::tokens;
use fsb_files::Access;
use fsb_host::making::Making;
use fsb_host::paths::Paths;
use std::path::{Path, PathBuf};

/// Begins the names of every node's links.
pub(crate) const EVERY_LINK: &str = "fsb";

/// The directories and names of one local node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dirs {
    /// `None` = the machine's own node.
    pub(crate) root: Option<PathBuf>,
    /// Sockets and records, on a tmpfs.
    pub(crate) run: PathBuf,
    /// Images, claims, writable layers.
    pub(crate) state: PathBuf,
    pub(crate) log: PathBuf,
    /// The parent of its agents' cgroups.
    pub(crate) cgroup: String,
    /// Begins the names of its links.
    pub(crate) link: String,
    /// Its nftables table.
    pub(crate) table: String,
}

impl Dirs {
    /// The node below `root`, or the machine's own.
    pub(crate) fn of(root: Option<&Path>) -> Self {
        let Some(root) = root else {
            return Self {
                root: None,
                run: DEFAULT_RUN_DIR.into(),
                state: "/var/lib/fast-sandbox".into(),
                log: "/var/log/fast-sandbox".into(),
                cgroup: "fast-sandbox".into(),
                link: "fsb-".into(),
                table: "fast_sandbox".into(),
            };
        };
        // The same directory by another way is the same node.
        let root = real(root);
        let hash = format!("{:08x}", fnv1a(root.as_os_str().as_encoded_bytes()));
        Self {
            run: root.join("run"),
            state: root.join("lib"),
            log: root.join("log"),
            cgroup: format!("fsb-{hash}"),
            link: format!("fsb{hash}-"),
            table: format!("fsb_{hash}"),
            root: Some(root),
        }
    }

    /// Makes them, or closes them to those who have no business there. The group has the controller's socket to get to,
    /// and so everything above it that is missing; all else is root's.
    pub(crate) fn make(&self) -> Result<()> {
        let all = [(&self.run, Access::Group), (&self.state, Access::Owner), (&self.log, Access::Owner)];
        all.into_iter().try_for_each(|(dir, access)| {
            fsb_files::create_dir(dir, access).context(|| format!("cannot make {}", dir.display()))
        })
    }

    pub(crate) fn controller_socket(&self) -> PathBuf {
        self.run.join("controller.sock")
    }

    /// What opens the Fast-Path over TCP. With the run directory it goes when the node goes down.
    pub(crate) fn tokens(&self) -> PathBuf {
        tokens::beside(&self.controller_socket())
    }

    pub(crate) fn agent_socket(&self, agent: &str) -> PathBuf {
        self.run.join(format!("{agent}.sock"))
    }

    /// What an agent's spawner says of itself.
    pub(crate) fn making(&self, agent: &str) -> Option<Making> {
        let path = Paths::new(&self.run, &self.state, &self.log, agent).making();
        Making::from_json(&std::fs::read_to_string(path).ok()?)
    }

    /// The file on which an agent's network namespace is pinned.
    pub(crate) fn netns(&self, agent: &str) -> PathBuf {
        self.run.join("netns").join(agent)
    }

    pub(crate) fn record(&self) -> PathBuf {
        self.run.join("node.json")
    }

    /// Held by the supervisor for as long as it lives. Beside the run directory, not in it: that one is mounted
    /// over and removed.
    pub(crate) fn lock(&self) -> PathBuf {
        self.state.join("node.lock")
    }

    pub(crate) fn claims(&self) -> PathBuf {
        self.state.join("claims.redb")
    }

    pub(crate) fn node_log(&self) -> PathBuf {
        self.log.join("node.log")
    }

    /// The path of an agent's cgroup below the supervisor's own.
    pub(crate) fn agent_cgroup(&self, agent: &str) -> String {
        format!("{}/{agent}", self.cgroup)
    }

    /// The flag that names this node on a command line.
    pub(crate) fn flag(&self) -> String {
        self.root.as_ref().map(|root| format!(" --root {}", root.display())).unwrap_or_default()
    }
}

/// The real path of the part that exists, and the rest as it is.
fn real(path: &Path) -> PathBuf {
    let mut rest = Vec::new();
    let mut at = path;
    loop {
        if let Ok(real) = at.canonicalize() {
            return rest.iter().rev().fold(real, |path, name| path.join(name));
        }
        match (at.parent(), at.file_name()) {
            (Some(parent), Some(name)) => {
                rest.push(name.to_owned());
                at = parent;
            }
            _ => return path.to_owned(),
        }
    }
}

/// FNV-1a with 32 bits: the same for ever, unlike the standard library's hasher.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_agents_have_link_names_that_the_kernel_takes() {
        let dirs = Dirs::of(Some(Path::new("/tmp/some/where")));
        assert!(format!("{}{}", dirs.link, 255).len() <= 15, "IFNAMSIZ with its NUL is 16");
    }

    #[test]
    fn two_roots_have_nothing_in_common_and_one_root_is_always_the_same() {
        let (a, b) = (Dirs::of(Some(Path::new("/tmp/no-a"))), Dirs::of(Some(Path::new("/tmp/no-b"))));
        let own = Dirs::of(None).link;
        assert!(own.starts_with(EVERY_LINK) && a.link.starts_with(EVERY_LINK) && !a.link.starts_with(&own));
        assert!(a.cgroup != b.cgroup && a.link != b.link && a.table != b.table && a.run != b.run);
        assert_eq!(a, Dirs::of(Some(Path::new("/tmp/../tmp/no-a"))));
    }
}
