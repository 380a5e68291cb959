//! The writable layer of a container, and the root file system on top of the image.

use fsb_host::layer::ETC_FILES;
use fsb_host::mount;
use fsb_host::wire::{Overlay, Plugin};
use nix::mount::{MntFlags, umount2};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

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

/// Makes the layer of a container in `dir` and returns its root file system, detached.
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
    if let Overlay::Tmpfs { bytes } = overlay {
        mount::attach(mount::tmpfs(bytes)?.as_fd(), dir)?;
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
    let (upper, work) = (dir.join("upper"), dir.join("work"));
    make_dir(&upper, 0o755)?;
    make_dir(&work, 0o755)?;
    // The root directory that a process sees is the upper one: it looks as the image has it.
    if let Some(top) = lowers.first() {
        copy_attributes(&top.symlink_metadata()?, &upper)?;
    }
    write_etc(&upper, lowers, host, etc)?;
    for plugin in plugins {
        place(&upper, plugin)?;
    }
    mount::overlay(lowers, &upper, &work, attributes)
}

/// Writes hosts, hostname and resolv.conf straight into the layer. An image whose `/etc` is not a directory gets none:
/// a link there is the image's, and is not followed.
fn write_etc(upper: &Path, lowers: &[PathBuf], host: &str, etc: &Etc) -> io::Result<()> {
    let target = upper.join("etc");
    match lowers.iter().find_map(|lower| lower.join("etc").symlink_metadata().ok()) {
        Some(found) if found.is_dir() => {
            make_dir(&target, 0o755)?;
            copy_attributes(&found, &target)?;
        }
        // Nothing there, or a whiteout (a character device 0:0): it is made.
        None => make_dir(&target, 0o755)?,
        Some(found) if found.file_type().is_char_device() && found.rdev() == 0 => make_dir(&target, 0o755)?,
        Some(_) => return Ok(()),
    }
    for (name, content) in ETC_FILES.iter().zip([&etc.hosts(host), &format!("{host}\n"), &etc.resolv]) {
        std::fs::write(target.join(name), content)?;
    }
    Ok(())
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

fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .mode(mode)
        .create(path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn copy_attributes(from: &std::fs::Metadata, to: &Path) -> io::Result<()> {
    if from.uid() != 0 || from.gid() != 0 {
        chown(to, Some(from.uid()), Some(from.gid()))?;
    }
    if from.mode() & 0o7777 != 0o755 {
        std::fs::set_permissions(to, std::fs::Permissions::from_mode(from.mode() & 0o7777))?;
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

    #[test]
    fn a_link_in_the_place_of_etc_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (lower, upper, outside) = (dir.path().join("l"), dir.path().join("u"), dir.path().join("o"));
        for path in [&lower, &upper, &outside] {
            std::fs::create_dir(path).unwrap();
        }
        std::os::unix::fs::symlink(&outside, lower.join("etc")).unwrap();
        write_etc(&upper, &[lower], "h", &Etc { address: String::new(), resolv: String::new() }).unwrap();
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
        assert!(!upper.join("etc").exists());
    }
}
