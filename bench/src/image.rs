//! The image that everything is started from: both payloads and the directories that a root file system has.

use crate::payload::Payload;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Its reference in an image store.
pub const REFERENCE: &str = "fsb-bench";

/// The image, on disk.
#[derive(Debug, Clone)]
pub struct Image {
    /// Unpacked, for floors and peers.
    pub rootfs: PathBuf,
    /// As a tar, for the agents' image stores.
    pub archive: PathBuf,
}

impl Image {
    /// Where the image of a run in `root` is unpacked.
    pub fn rootfs_in(root: &Path) -> PathBuf {
        root.join("image").join("rootfs")
    }

    /// Makes it below `dir`.
    pub fn create(dir: &Path) -> io::Result<Self> {
        let rootfs = dir.join("rootfs");
        for directory in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
            std::fs::create_dir_all(rootfs.join(directory))?;
        }
        std::fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/root:/bin/tiny\n")?;
        std::fs::write(rootfs.join("etc/group"), "root:x:0:\n")?;
        for payload in Payload::ALL {
            let path = rootfs.join(payload.path().trim_start_matches('/'));
            std::fs::write(&path, payload.program())?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        }
        let archive = dir.join("rootfs.tar");
        let mut tar = tar::Builder::new(std::fs::File::create(&archive)?);
        tar.append_dir_all(".", &rootfs)?;
        tar.finish()?;
        Ok(Self { rootfs, archive })
    }
}
