//! The layers of a container's own, and the root file system that they make with the image's.

use fsb_host::layer::{ETC_FILES, LOWER, UPPER, WORK};
use fsb_host::mount;
use fsb_host::wire::{Overlay, Plugin};
use nix::mount::{MntFlags, umount2};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// Files of ours and of overlayfs in a layer, plugins' places among them: they do not count as the sandbox's.
const OWN_INODES: u64 = 64;

/// What the node contributes to every container's `/etc`.
pub struct Etc {
    /// Address of the sandboxes' network namespace, for `/etc/hosts`.
    address: String,
    resolv: String,
}

impl Etc {
    /// From the node's own files.
    pub fn read(address: &str) -> Self {
        // systemd-resolved listens on the host's loopback; behind it is this file.
        let candidates = ["/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"];
        let text = candidates.iter().find_map(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
        Self { address: address.to_owned(), resolv: reachable(&text) }
    }

    fn hosts(&self, host: &str) -> String {
        // Debian's convention for a host without an address.
        let address = if self.address.is_empty() { "127.0.1.1" } else { &self.address };
        format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{address}\t{host}\n")
    }
}

/// A resolver configuration without the name servers that only the host's own loopback reaches.
fn reachable(text: &str) -> String {
    let loopback = |line: &str| {
        let mut words = line.split_whitespace();
        words.next() == Some("nameserver")
            && words.next().and_then(|word| word.parse::<std::net::IpAddr>().ok()).is_some_and(|ip| ip.is_loopback())
    };
    text.lines().filter(|line| !loopback(line)).map(|line| format!("{line}\n")).collect()
}

/// Makes the layer of a container in `dir`, from what is there already if it is a spare one, and returns its root file
/// system, detached.
pub fn create(
    dir: &Path,
    lowers: &[PathBuf],
    overlay: Overlay,
    plugins: &[Plugin],
    host: &str,
    etc: &Etc,
    attributes: u64,
) -> io::Result<OwnedFd> {
    make_dir(dir, 0o700)?;
    if let Overlay::Tmpfs { bytes, inodes } = overlay {
        mount::attach(mount::tmpfs(bytes, inodes + OWN_INODES)?.as_fd(), dir)?;
    }
    let made = fill(dir, lowers, plugins, host, etc, attributes);
    if let Overlay::Tmpfs { .. } = overlay {
        // The overlay holds it; in this namespace nobody needs it any more.
        umount2(dir, MntFlags::MNT_DETACH)?;
    }
    made
}

fn fill(
    dir: &Path,
    lowers: &[PathBuf],
    plugins: &[Plugin],
    host: &str,
    etc: &Etc,
    attributes: u64,
) -> io::Result<OwnedFd> {
    let (lower, upper, work) = (dir.join(LOWER), dir.join(UPPER), dir.join(WORK));
    make_dir(&upper, 0o755)?;
    make_dir(&work, 0o755)?;
    // The root directory that a process sees is the upper one: it looks as the image has it.
    if let Some(top) = lowers.first() {
        copy_attributes(&top.symlink_metadata()?, &upper)?;
    }
    for plugin in plugins {
        place(&upper, plugin)?;
    }
    let mut lowers: Vec<&Path> = lowers.iter().map(PathBuf::as_path).collect();
    if write_etc(&lower, &lowers, host, etc)? {
        lowers.insert(0, &lower);
    }
    mount::overlay(&lowers, &upper, &work, attributes)
}

/// Writes hosts, hostname and resolv.conf into `ours`, a layer between the image's and the writable one. An image whose
/// `/etc` is not a directory gets none: a link there is the image's. Returns whether there is such a layer.
fn write_etc(ours: &Path, lowers: &[&Path], host: &str, etc: &Etc) -> io::Result<bool> {
    let found = lowers.iter().find_map(|lower| lower.join("etc").symlink_metadata().ok());
    // A whiteout (a character device 0:0) says that there is none.
    let found = found.filter(|found| !(found.file_type().is_char_device() && found.rdev() == 0));
    if found.as_ref().is_some_and(|found| !found.is_dir()) {
        return Ok(false);
    }
    let target = ours.join("etc");
    make_dir(ours, 0o755)?;
    make_dir(&target, 0o755)?;
    match found {
        Some(found) => copy_attributes(&found, &target)?,
        None => set_attributes(&target, 0, 0, 0o755)?,
    }
    for (name, content) in ETC_FILES.iter().zip([&etc.hosts(host), &format!("{host}\n"), &etc.resolv]) {
        write(&target.join(name), content)?;
    }
    Ok(true)
}

/// Makes a file be `content`. Most are as long as they were: they keep their place on the disk.
fn write(path: &Path, content: &str) -> io::Result<()> {
    let file = File::options().write(true).create(true).truncate(false).open(path)?;
    file.write_all_at(content.as_bytes(), 0)?;
    let metadata = file.metadata()?;
    if metadata.len() > content.len() as u64 {
        file.set_len(content.len() as u64)?;
    }
    // A directory with setgid gives its group to what is made in it.
    if metadata.gid() != 0 { chown(path, Some(0), Some(0)) } else { Ok(()) }
}

/// The place that a plugin is mounted on: in a directory that is ours alone, whatever the image has there.
fn place(upper: &Path, plugin: &Plugin) -> io::Result<()> {
    let relative = plugin.target.strip_prefix("/").unwrap_or(&plugin.target);
    let path = upper.join(relative);
    if let Some(parent) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    if std::fs::metadata(&plugin.source)?.is_dir() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&path)
    } else {
        std::fs::write(&path, "")
    }
}

/// Makes a directory, unless it is there.
fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    match std::fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(named(path, &error)),
        _ => Ok(()),
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn copy_attributes(from: &std::fs::Metadata, to: &Path) -> io::Result<()> {
    set_attributes(to, from.uid(), from.gid(), from.mode() & 0o7777)
}

fn set_attributes(path: &Path, uid: u32, gid: u32, mode: u32) -> io::Result<()> {
    let present = path.symlink_metadata()?;
    if (present.uid(), present.gid()) != (uid, gid) {
        chown(path, Some(uid), Some(gid))?;
    }
    if present.mode() & 0o7777 != mode {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_on_the_hosts_loopback_are_left_out() {
        let text = "search example\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 192.0.2.1\n";
        assert_eq!(reachable(text), "search example\nnameserver 192.0.2.1\n");
    }

    fn etc() -> Etc {
        Etc { address: "192.0.2.1".into(), resolv: "nameserver 192.0.2.2\n".into() }
    }

    #[test]
    fn a_link_in_the_place_of_etc_is_the_images() {
        let dir = tempfile::tempdir().unwrap();
        let (image, ours, outside) = (dir.path().join("i"), dir.path().join("l"), dir.path().join("o"));
        for path in [&image, &outside] {
            std::fs::create_dir(path).unwrap();
        }
        std::os::unix::fs::symlink(&outside, image.join("etc")).unwrap();
        assert!(!write_etc(&ours, &[&image], "h", &etc()).unwrap());
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
        assert!(!ours.exists());
    }

    #[test]
    fn a_spare_layer_is_as_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let (image, other) = (dir.path().join("i"), dir.path().join("o"));
        for (image, mode) in [(&image, 0o755), (&other, 0o1700)] {
            std::fs::create_dir_all(image.join("etc")).unwrap();
            std::fs::set_permissions(image.join("etc"), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let look = |ours: &Path| {
            let mode = ours.join("etc").metadata().unwrap().mode();
            (mode, ETC_FILES.map(|name| std::fs::read_to_string(ours.join("etc").join(name)).unwrap()))
        };
        let (spare, new) = (dir.path().join("spare"), dir.path().join("new"));
        assert!(write_etc(&spare, &[&other], "a-longer-name", &etc()).unwrap());
        assert!(write_etc(&spare, &[&image], "name", &etc()).unwrap());
        assert!(write_etc(&new, &[&image], "name", &etc()).unwrap());
        assert_eq!(look(&spare), look(&new));
    }
}
