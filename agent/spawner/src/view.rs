//! The mounts that the spawner sees: its own, private, and with no cgroups but those of its agent.
//!
//! libcontainer takes a cgroup's path from the root of what is mounted. On hosts where a process stands in different
//! v1 cgroups per controller no one path is right, so this puts the agent's own cgroups where the hierarchies were:
//! `/sandboxes/<id>` is then right for all of them, and libcontainer deals with these controllers instead of all.

use fsb_files::Access;
use fsb_host::cgroup::{Tree, Version};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use std::io;
use std::path::Path;

const NONE: Option<&str> = None;
/// Where they are seen.
pub const CGROUPS: &str = "/sys/fs/cgroup";

/// Enters the network namespace that sandboxes stand in.
pub fn enter_netns(path: &Path) -> io::Result<()> {
    let named = |error| io::Error::new(error, format!("network namespace {}: {error}", path.display()));
    let file = std::fs::File::open(path).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
    setns(file, CloneFlags::CLONE_NEWNET).map_err(|error| named(io::Error::from(error).kind()))
}

/// Leaves the host's mount namespace for a private copy with the agent's own cgroups. Returns where these are now.
pub fn enter(tree: &Tree, scratch: &Path) -> io::Result<Tree> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    let binds: Vec<(String, std::path::PathBuf)> =
        // libcontainer insists on `devices` on v1.
        tree.dirs()
            .chain(tree.devices().map(|dir| ("devices", dir)))
            .map(|(controller, dir)| (controller.to_owned(), dir.to_owned()))
            .collect();
    // The originals disappear below the new mount, so they are brought aside first.
    fsb_files::create_dir(scratch, Access::Owner)?;
    mount(Some("tmpfs"), scratch, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
    for (controller, dir) in &binds {
        let aside = scratch.join(format!("c-{controller}"));
        std::fs::create_dir(&aside)?;
        mount(Some(dir), &aside, NONE, MsFlags::MS_BIND, NONE)?;
    }
    umount2(CGROUPS, MntFlags::MNT_DETACH)?;
    if tree.version() == Version::V1 {
        mount(Some("tmpfs"), CGROUPS, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
    }
    for (controller, _) in &binds {
        let place = Path::new(CGROUPS).join(controller);
        if !controller.is_empty() {
            std::fs::create_dir(&place)?;
        }
        let aside = scratch.join(format!("c-{controller}"));
        mount(Some(&aside), &place, NONE, MsFlags::MS_MOVE, NONE)?;
    }
    umount2(scratch, MntFlags::MNT_DETACH)?;
    Ok(tree.seen_at(Path::new(CGROUPS)))
}
